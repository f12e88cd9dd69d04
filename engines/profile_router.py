"""Which optimization profile runs a batch.

    shapes of the feeds -> size of each symbolic axis -> the narrowest profile that contains them all

TensorRT tunes a profile for its optimum and reserves memory for its maximum, so the profile that admits least
beside the sizes at hand is the one tuned closest to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemotrt.bundle import TensorSpec
from nemotrt.errors import ProfileError
from nemotrt.profiles import AxisRange

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ProfileRouter:
    """Chooses among the optimization profiles of one engine; ``ranges`` has one mapping by axis for each."""

    inputs: tuple[TensorSpec, ...]
    ranges: Sequence[Mapping[str, AxisRange]]

    def route(self, shapes: Shapes) -> int:
        """Index of the narrowest profile that contains ``shapes``.

        Narrowest: admits the fewest combinations of sizes, then has the smallest maximum, then comes first.

        Args:
            shapes: by input name, as ``nemotrt.engines.feeds.check_feeds`` accepts them.

        Raises:
            ProfileError: no profile contains the shapes; says what each one takes.
        """
        sizes = self._axis_sizes(shapes)
        fitting = [index for index, profile in enumerate(self.ranges) if _contains(profile, sizes)]
        if not fitting:
            given = (f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())
            raise ProfileError(
                "no optimization profile of the engine contains these shapes",
                where=", ".join(given),
                found=", ".join(f"{axis} {size}" for axis, size in sizes.items()),
                fix=f"stay within {self._admitted(tuple(sizes))}, or build with a wider profile",
            )
        return min(fitting, key=lambda index: _width(self.ranges[index], tuple(sizes)))

    def input_shapes(self, profile: int, spec: TensorSpec) -> tuple[tuple[int, ...], ...]:
        """Minimum, optimum and maximum shape of an input under ``profile``, as the builder was told."""
        ranges = self.ranges[profile]
        return tuple(
            tuple(axis if isinstance(axis, int) else getattr(ranges[axis], bound) for axis in spec.shape)
            for bound in ("min", "opt", "max")
        )

    def _axis_sizes(self, shapes: Shapes) -> dict[str, int]:
        return {
            axis: size
            for spec in self.inputs
            for axis, size in zip(spec.shape, shapes[spec.name], strict=True)
            if isinstance(axis, str)
        }

    def _admitted(self, axes: tuple[str, ...]) -> str:
        profiles = (
            ", ".join(f"{axis} {profile[axis].min}..{profile[axis].max}" for axis in axes) for profile in self.ranges
        )
        return " or ".join(f"({profile})" for profile in profiles)


def _contains(profile: Mapping[str, AxisRange], sizes: Mapping[str, int]) -> bool:
    return all(size in profile[axis] for axis, size in sizes.items())


def _width(profile: Mapping[str, AxisRange], axes: tuple[str, ...]) -> tuple[int, int]:
    admitted = math.prod(profile[axis].max - profile[axis].min + 1 for axis in axes)
    return admitted, math.prod(profile[axis].max for axis in axes)

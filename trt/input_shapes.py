"""Axis ranges to input shapes: what one optimization profile says of every dynamic input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemotrt.bundle import ComponentSpec, TensorSpec
from nemotrt.errors import ProfileError
from nemotrt.profiles import AxisRange


@dataclass(frozen=True)
class ShapeRange:
    """Smallest, tuned and largest shape of one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def shape_ranges(component: ComponentSpec, ranges: Mapping[str, AxisRange]) -> dict[str, ShapeRange]:
    """The shape range of every input that has a dynamic axis, by input name; fixed inputs are left out.

    Raises:
        ProfileError: an axis that ``ranges`` does not have.
    """
    dynamic = [spec for spec in component.inputs if any(isinstance(axis, str) for axis in spec.shape)]
    return {spec.name: _shape_range(spec, ranges) for spec in dynamic}


def _shape_range(spec: TensorSpec, ranges: Mapping[str, AxisRange]) -> ShapeRange:
    axes = [AxisRange(axis, axis, axis) if isinstance(axis, int) else _range(spec, axis, ranges) for axis in spec.shape]
    return ShapeRange(
        tuple(axis.min for axis in axes), tuple(axis.opt for axis in axes), tuple(axis.max for axis in axes)
    )


def _range(spec: TensorSpec, axis: str, ranges: Mapping[str, AxisRange]) -> AxisRange:
    if axis not in ranges:
        raise ProfileError(
            f"the profile says nothing of axis {axis!r}",
            where=f"input {spec.name} {list(spec.shape)}",
            found=", ".join(ranges) or "no axis at all",
            fix=f"give {axis!r} a minimum, an optimum and a maximum",
        )
    return ranges[axis]

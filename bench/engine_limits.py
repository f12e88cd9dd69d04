"""Which clips and batches a set of engines takes, from the ranges that they were built for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nemotrt.bundle import BATCH, FRAMES
from nemotrt.engines.manifest import EngineManifest
from nemotrt.profiles import AxisRange, Geometry


@dataclass(frozen=True)
class EngineLimits:
    """``profiles`` holds for each engine its optimization profiles: range by symbolic axis. No engine, no limits."""

    profiles: tuple[tuple[Mapping[str, AxisRange], ...], ...] = ()

    @classmethod
    def of(cls, manifests: Iterable[EngineManifest]) -> EngineLimits:
        """What all of these engines take."""
        return cls(tuple(manifest.ranges for manifest in manifests))

    def takes(self, *, frames: int, batch: int) -> bool:
        """Whether every engine has a profile for ``batch`` rows of ``frames`` feature frames."""
        sizes = {FRAMES: frames, BATCH: batch}
        return all(any(_contains(profile, sizes) for profile in profiles) for profiles in self.profiles)

    def largest_batch(self, frames: Iterable[int], *, at_most: int) -> int:
        """The most rows that every engine takes with each of ``frames``; 0 for none."""
        lengths = tuple(frames)
        sizes = (size for size in range(at_most, 0, -1) if all(self.takes(frames=n, batch=size) for n in lengths))
        return next(sizes, 0)

    def in_words(self, geometry: Geometry) -> str:
        """``0.3 to 12 s in batches of 1 to 4``, for each distinct profile that limits the length of clips."""
        timed = [p for profiles in self.profiles for p in profiles if FRAMES in p and BATCH in p]
        return " or ".join(dict.fromkeys(_in_words(profile, geometry) for profile in timed))


def _contains(profile: Mapping[str, AxisRange], sizes: Mapping[str, int]) -> bool:
    return all(size in profile[axis] for axis, size in sizes.items() if axis in profile)


def _in_words(profile: Mapping[str, AxisRange], geometry: Geometry) -> str:
    frames, batch = profile[FRAMES], profile[BATCH]
    shortest, longest = map(geometry.seconds_from_feature_frames, (frames.min, frames.max))
    return f"{shortest:g} to {longest:g} s in batches of {batch.min} to {batch.max}"

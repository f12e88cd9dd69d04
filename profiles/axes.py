"""Seconds to tensor axes.

    samples        = round(seconds * sample_rate)
    frames         = samples // hop_samples                            feature frames, at least 1
    encoder_frames = frames halved log2(subsampling_factor) times      ceil(n / 2), causal: floor(n / 2) + 1

All three grow with their argument, so minimum, optimum and maximum of one give those of the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemotrt.errors import ProfileError
from nemotrt.profiles.profile import CountRange, Profile

AxisName = Literal["batch", "frames", "encoder_frames", "joint_frames", "tokens"]
"""The symbolic axes of the bundle contract that an engine sees."""


@dataclass(frozen=True)
class AxisRange:
    """What one axis may be, and what it is tuned for: ``1 <= min <= opt <= max``.

    Raises:
        ProfileError: the three are not in order, or below 1.
    """

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ProfileError(
                "the range of an axis is out of order",
                found=f"min {self.min}, opt {self.opt}, max {self.max}",
                fix="choose 1 <= min <= opt <= max",
            )

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.min <= size <= self.max


@dataclass(frozen=True)
class Geometry:
    """How a model turns time into frames. ``max_feature_frames`` is where its position table ends."""

    sample_rate: int
    hop_samples: int
    subsampling_factor: int
    causal_subsampling: bool
    max_feature_frames: int

    def __post_init__(self) -> None:
        factor = self.subsampling_factor
        sizes = (self.sample_rate, self.hop_samples, factor, self.max_feature_frames)
        if min(sizes) < 1 or factor & (factor - 1):
            raise ProfileError(
                "the geometry of the model is impossible",
                found=str(self),
                fix="sizes are positive, and the subsampling factor is a power of two",
            )

    def feature_frames_from_seconds(self, seconds: float) -> int:
        """Feature frames of a clip, at least 1."""
        return max(1, round(seconds * self.sample_rate) // self.hop_samples)

    def seconds_from_feature_frames(self, frames: int) -> float:
        """Length of the shortest clip that has ``frames`` feature frames."""
        return frames * self.hop_samples / self.sample_rate

    def encoder_frames_from_feature_frames(self, frames: int) -> int:
        """Encoder output length for ``frames`` feature frames."""
        return subsampled_frames(frames, factor=self.subsampling_factor, causal=self.causal_subsampling)


def subsampled_frames(frames: int, *, factor: int, causal: bool) -> int:
    """Exact length after convolutions of stride 2 that divide the rate by ``factor`` (NeMo ``calc_length``)."""
    for _ in range(factor.bit_length() - 1):
        frames = frames // 2 + 1 if causal else (frames + 1) // 2
    return frames


def axis_ranges(profile: Profile, geometry: Geometry) -> dict[AxisName, AxisRange]:
    """The range of every axis of the contract, by its symbolic name.

    Raises:
        ProfileError: the longest clip of the profile does not fit the position table of the model.
    """
    seconds = profile.seconds
    frames = tuple(geometry.feature_frames_from_seconds(s) for s in (seconds.min, seconds.opt, seconds.max))
    if frames[-1] > geometry.max_feature_frames:
        longest = geometry.seconds_from_feature_frames(geometry.max_feature_frames)
        raise ProfileError(
            "the profile allows clips longer than the model has positions for",
            where=f"profile {profile.name}: seconds.max",
            found=f"{seconds.max:g} s are {frames[-1]} feature frames, the model takes {geometry.max_feature_frames}",
            fix=f"set seconds.max to at most {longest:g}",
        )
    encoder_frames = tuple(map(geometry.encoder_frames_from_feature_frames, frames))
    return {
        "batch": _axis_range(profile.batch),
        "frames": AxisRange(*frames),
        "encoder_frames": AxisRange(*encoder_frames),
        "joint_frames": _axis_range(profile.joint_frames),
        "tokens": _axis_range(profile.tokens),
    }


def _axis_range(counts: CountRange) -> AxisRange:
    return AxisRange(counts.min, counts.opt, counts.max)

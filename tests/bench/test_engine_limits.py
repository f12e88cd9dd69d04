"""Which clips and batches the engines take. Oracle: sizes worked out by hand."""

from __future__ import annotations

import pytest

from nemotrt.bench.engine_limits import EngineLimits
from nemotrt.profiles import AxisRange, Geometry

SHORT = {"batch": AxisRange(1, 4, 8), "frames": AxisRange(30, 100, 200)}
LONG = {"batch": AxisRange(1, 1, 2), "frames": AxisRange(150, 500, 1000)}
JOINT = {"batch": AxisRange(1, 1, 4), "joint_frames": AxisRange(1, 1, 1), "tokens": AxisRange(1, 1, 1)}
GEOMETRY = Geometry(
    sample_rate=16000, hop_samples=160, subsampling_factor=8, causal_subsampling=False, max_feature_frames=5000
)


@pytest.mark.parametrize(
    ("frames", "batch", "takes"),
    [(30, 1, True), (29, 1, False), (200, 4, True), (200, 5, False), (201, 2, True), (201, 3, False), (1001, 1, False)],
)
def test_a_batch_must_lie_in_one_profile_of_every_engine(frames: int, batch: int, takes: bool) -> None:
    limits = EngineLimits(((SHORT, LONG), (JOINT,)))
    assert limits.takes(frames=frames, batch=batch) is takes


def test_without_engines_there_are_no_limits() -> None:
    assert EngineLimits().takes(frames=10**9, batch=10**9)
    assert EngineLimits().largest_batch([1], at_most=4) == 4


def test_the_largest_batch_fits_every_clip_there_is() -> None:
    limits = EngineLimits(((SHORT, LONG), (JOINT,)))
    assert limits.largest_batch([50, 200], at_most=8) == 4
    assert limits.largest_batch([50, 900], at_most=8) == 2
    assert limits.largest_batch([50, 5000], at_most=8) == 0


def test_the_limits_read_in_seconds() -> None:
    limits = EngineLimits(((SHORT, LONG), (SHORT,), (JOINT,)))
    assert limits.in_words(GEOMETRY) == "0.3 to 2 s in batches of 1 to 8 or 1.5 to 10 s in batches of 1 to 2"

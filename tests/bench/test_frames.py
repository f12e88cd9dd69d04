from __future__ import annotations

import numpy as np
import pytest

from nemotrt.bench.frames import cosine_by_frame, frame_agreement
from nemotrt.bench.results import PROFILE_BINS
from nemotrt.errors import UsageError


def frames(count: int = 20, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(width, count)).astype(np.float32)


def test_cosine_is_that_of_the_definition_frame_by_frame() -> None:
    left, right = frames(seed=1), frames(seed=2)
    expected = [np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(left.T, right.T, strict=True)]
    np.testing.assert_allclose(cosine_by_frame(left, right), expected, rtol=1e-5)


def test_scale_does_not_change_the_cosine_but_shows_in_the_difference() -> None:
    left = frames()
    agreement = frame_agreement(left, left * 2)
    assert agreement.min_cosine == pytest.approx(1.0)
    assert agreement.max_abs == pytest.approx(float(np.abs(left).max()))


def test_zero_frames_agree_with_each_other_only() -> None:
    left, right = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    right[0, 1] = 1
    assert cosine_by_frame(left, right).tolist() == [1.0, 0.0]


def test_one_bad_frame_among_thousands_is_the_minimum_and_has_its_bin() -> None:
    left = frames(count=4000)
    right = left.copy()
    right[:, 2500] *= -1
    agreement = frame_agreement(left, right)
    assert agreement.min_cosine == pytest.approx(-1.0)
    assert agreement.median_cosine == pytest.approx(1.0)
    assert len(agreement.profile) == PROFILE_BINS
    assert int(np.argmin(agreement.profile)) == 2500 * PROFILE_BINS // 4000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_marked_and_kept_out_of_the_figures(value: float) -> None:
    left = frames()
    right = left.copy()
    right[0, 3] = value
    agreement = frame_agreement(left, right)
    assert [i for i, bin_ in enumerate(agreement.profile) if bin_ is None] == [3]
    assert agreement.min_cosine == pytest.approx(1.0)
    assert agreement.max_abs == 0.0


def test_other_lengths_are_compared_over_what_both_have_and_none_at_all_is_unknown() -> None:
    left = frames()
    assert frame_agreement(left, left[:, :7]).frames == 7
    empty = frame_agreement(left, left[:, :0])
    assert (empty.frames, empty.min_cosine, empty.max_abs, empty.profile) == (0, None, None, ())


def test_frames_of_another_width_are_not_two_versions_of_one_model() -> None:
    with pytest.raises(UsageError, match="frame by frame"):
        frame_agreement(frames(width=6), frames(width=5))

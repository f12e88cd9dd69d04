"""How far, where, and what counts as different."""

from __future__ import annotations

import numpy as np
import pytest

from nemotrt.bench.tensor_difference import HEAT_WIDTH, tensor_difference
from nemotrt.bench.tolerances import tensor_tolerance_for
from nemotrt.errors import UsageError


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 20, 5)).astype(np.float32)


def test_equal_tensors_do_not_differ_and_show_no_heat(frames: np.ndarray) -> None:
    same = tensor_difference(frames, frames.copy(), limit=0.0, frame_axis=1)
    assert not same.differs
    assert (same.relative, same.elements, same.rows, same.frames, same.heat) == (0.0, 0, None, None, "")


def test_rows_and_frames_that_are_wrong_are_named(frames: np.ndarray) -> None:
    wrong = frames.copy()
    wrong[1, 7:12] += np.abs(frames).max()
    found = tensor_difference(frames, wrong, limit=1e-3, frame_axis=1)
    assert found.state == "beyond"
    assert (found.rows, found.frames, found.frame_count, found.elements) == ((1, 1), (7, 11), 20, 25)
    assert found.relative == pytest.approx(1.0, rel=1e-6)
    assert found.heat == "·" * 7 + "█" * 5 + "·" * 8


def test_a_difference_within_the_limit_is_none_and_just_beyond_is_one(frames: np.ndarray) -> None:
    wrong = frames.copy()
    wrong[0, 0, 0] += 1e-2 * np.abs(frames).max()
    assert not tensor_difference(frames, wrong, limit=1.01e-2).differs
    assert tensor_difference(frames, wrong, limit=0.99e-2).differs


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_on_one_side_is_beyond_any_limit(frames: np.ndarray, value: float) -> None:
    wrong = frames.copy()
    wrong[2, 19] = value
    found = tensor_difference(frames, wrong, limit=1e9, frame_axis=1)
    assert (found.state, found.not_finite, found.frames, found.rows) == ("not finite", 5, (19, 19), (2, 2))
    assert found.heat.endswith("·!")
    assert not tensor_difference(wrong, wrong.copy(), limit=0.0).differs


def test_integers_and_booleans_have_to_be_equal() -> None:
    lengths = np.array([300, 77])
    assert tensor_difference(lengths, lengths + 1, limit=1.0).differs
    assert not tensor_difference(lengths, lengths.copy(), limit=1.0).differs
    mask = np.array([True, False])
    assert tensor_difference(mask, ~mask, limit=1.0).elements == 2


def test_another_shape_is_a_difference_of_its_own(frames: np.ndarray) -> None:
    found = tensor_difference(frames, frames[:, :-1], limit=1.0)
    assert (found.state, found.shape, found.reference_shape) == ("another shape", (3, 19, 5), (3, 20, 5))


def test_what_should_be_zero_has_no_relative_difference() -> None:
    found = tensor_difference(np.zeros(4), np.array([0, 0, 1e-30, 0]), limit=1.0)
    assert (found.differs, found.relative, found.max_abs) == (True, None, 1e-30)


def test_a_long_tensor_is_shown_in_as_many_characters_as_a_line_has() -> None:
    long = np.ones((1, 1000))
    assert len(tensor_difference(long, 2 * long, limit=0.1, frame_axis=1).heat) == HEAT_WIDTH


def test_scalars_and_empty_tensors_can_be_compared() -> None:
    assert tensor_difference(np.float32(1.0), np.float32(2.0), limit=0.1).differs
    assert not tensor_difference(np.zeros((0, 3)), np.zeros((0, 3)), limit=0.0, frame_axis=0).differs


def test_the_coarser_precision_decides_the_limit_and_depth_widens_it() -> None:
    single, mixed = tensor_tolerance_for("fp32", "fp32"), tensor_tolerance_for("fp32", "fp16")
    assert mixed.at(1) > single.at(400) > single.at(1)
    assert mixed == tensor_tolerance_for("fp16", "fp32")
    with pytest.raises(UsageError, match="no tolerance"):
        tensor_tolerance_for("fp32", "fp3")

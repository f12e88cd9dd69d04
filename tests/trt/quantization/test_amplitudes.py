"""Amplitudes of a stream. Oracle: numpy's percentile of all values at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemotrt.errors import GraphError
from nemotrt.trt.quantization.amplitudes import PERCENT, Amplitude, bounds_of


def observed(*arrays: np.ndarray) -> Amplitude:
    amplitude = Amplitude()
    for array in arrays:
        amplitude.add(array)
    return amplitude


@pytest.mark.parametrize("percent", [50, 90, 99, PERCENT])
def test_the_percentile_of_a_stream_is_that_of_all_its_values(percent: float) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, size, (30, 17, 64)).astype(np.float32) for size in (0.1, 2.0, 0.5, 7.0)]
    everything = np.abs(np.concatenate([array.ravel() for array in arrays]))
    bin_width = float(2 * everything.max() / 4096)
    assert observed(*arrays).percentile(percent) == pytest.approx(np.percentile(everything, percent), abs=2 * bin_width)


@settings(max_examples=50, deadline=None)
@example([[4e-44]])
@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20), min_size=1, max_size=8))
def test_no_order_of_the_arrays_loses_a_value(arrays: list[list[float]]) -> None:
    stream = [np.asarray(array, np.float32) for array in arrays]
    amplitude = observed(*stream)
    everything = np.abs(np.concatenate(stream))
    assert amplitude.bound("max") == everything.max()
    assert amplitude.percentile(100) == pytest.approx(everything.max())
    share = np.mean(everything <= amplitude.percentile(90) * (1 + 1e-6))
    assert share >= 0.9 or not everything.max()


def test_a_rare_outlier_moves_the_largest_value_and_not_the_percentile() -> None:
    usual = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    amplitude = observed(usual, np.asarray([50], np.float32))
    assert amplitude.bound("max") == 50
    assert amplitude.bound("percentile") < 1.1


def test_zeros_count_whether_they_come_first_or_last() -> None:
    zeros, ones = np.zeros(900, np.float32), np.ones(100, np.float32)
    assert observed(zeros, ones).percentile(50) == observed(ones, zeros).percentile(50) < 1e-2
    assert observed(ones).percentile(50) > 0.99


def test_an_activation_that_is_always_zero_is_refused_by_name() -> None:
    amplitudes = {"loud": observed(np.ones(3, np.float32)), "silent": observed(np.zeros(3, np.float32))}
    with pytest.raises(GraphError, match="zero wherever it was observed") as caught:
        bounds_of(amplitudes, "percentile")
    assert caught.value.found == "silent"
    assert bounds_of({"loud": amplitudes["loud"]}, "max") == {"loud": 1.0}

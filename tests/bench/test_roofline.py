from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemotrt.bench.roofline import (
    HardwarePeak,
    encoder_layer_flops,
    floor_seconds,
    hardware_peak,
    subsampling_channels,
    subsampling_flops,
)
from nemotrt.bundle import Bundle, EncoderSpec


def spec(**changes: Any) -> EncoderSpec:
    values = {
        "layers": 24,
        "d_model": 1024,
        "heads": 8,
        "feed_forward": 4096,
        "conv_kernel": 9,
        "features": 128,
        "subsampling_factor": 8,
        "causal_subsampling": False,
        "max_encoder_frames": 5000,
        "max_feature_frames": 40000,
        "attention_context": (-1, -1),
        "attention_style": "regular",
    }
    return EncoderSpec(**(values | changes))


def test_parakeet_0_6b_needs_14_5_gflop_per_audio_second_in_its_layers() -> None:
    # Per-frame work alone, 12.5 frames a second: large batches hide the position table, short clips the attention.
    frames, batch = 13, 100_000
    by_second = encoder_layer_flops(spec(), encoder_frames=frames, batch=batch) / (batch * frames / 12.5)
    assert by_second / 1e9 == pytest.approx(14.5, rel=0.01)


def test_attention_grows_with_the_square_of_the_length() -> None:
    def excess(frames: int) -> float:
        """What one long clip costs more than two of half its length."""
        halves = 2 * encoder_layer_flops(spec(), encoder_frames=frames // 2, batch=1)
        return encoder_layer_flops(spec(), encoder_frames=frames, batch=1) - halves

    assert excess(4000) / excess(2000) == pytest.approx(4.0, rel=0.01)


def test_a_multiply_add_of_every_weight_is_two_flops_a_frame() -> None:
    # Oracle: the parameters of a layer's matrices and convolutions, counted one by one.
    d, f, k = 16, 48, 5
    weights = 2 * (d * f + f * d) + 4 * d * d + (2 * d * d + d * k + d * d)
    tiny = spec(layers=1, d_model=d, feed_forward=f, conv_kernel=k)
    one_frame_attention = 4 * d + 2 * d + 2 * d**2
    assert encoder_layer_flops(tiny, encoder_frames=1, batch=1) == 2 * weights + one_frame_attention


def test_subsampling_counts_every_tap_of_every_output() -> None:
    tiny = spec(d_model=16, features=8, subsampling_factor=4)
    channels, frames = 3, 10
    first = 9 * channels * 5 * 4
    second = (9 * channels + channels * channels) * 3 * 2
    projection = channels * 2 * 16 * 3
    expected = 2 * (first + second + projection)
    assert subsampling_flops(tiny, channels=channels, feature_frames=frames, batch=1) == expected


def test_the_width_of_the_subsampling_is_read_from_the_graph(tdt_bundle: Bundle, tiny_bundle: Bundle) -> None:
    assert subsampling_channels(tdt_bundle.graph_path("encoder")) == 64
    assert subsampling_channels(tiny_bundle.graph_path("ctc")) is None


def test_an_unknown_peak_has_a_reason_and_no_floor() -> None:
    for peak in (hardware_peak(None, "fp32"), hardware_peak("NVIDIA Unheard-of", "fp16")):
        assert peak.flops_per_second is None
        assert peak.reason
        assert floor_seconds(1e9, 1000, peak) is None
    assert hardware_peak("NVIDIA H200", "fp16").flops_per_second == 790e12


def test_the_floor_is_the_slower_of_computing_and_reading_weights() -> None:
    peak = HardwarePeak(flops_per_second=100.0, bytes_per_second=10.0, reason="made up")
    assert floor_seconds(1000.0, 10, peak) == 10.0
    assert floor_seconds(1000.0, 500, peak) == 50.0
    assert floor_seconds(1000.0, 500, replace(peak, bytes_per_second=None)) is None

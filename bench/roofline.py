"""What the encoder has to compute, and how long that takes at best.

    attention, feed-forward, convolution    L [ (8 d f + 14 d^2 + 2 d k) T B
                                              + (4 d T^2 + 2 d T (2T-1)) B + 2 d^2 (2T-1) ]
    subsampling (depthwise-separable, C channels, F features, stages i = 1..s, T_i = ceil(T_{i-1} / 2))
                                            2 B [ 9 C T_1 F_1 + sum_{i>1} (9 C + C^2) T_i F_i + C F_s d T ]
    time >= max(FLOPs / peak FLOP/s, weight bytes / peak bytes/s)

L layers, d model width, f feed-forward width, k convolution kernel, T encoder frames, B batch; one multiply-add is
two FLOPs. Normalisation, activations and softmax are left out: they move bytes, not FLOPs. The formula has every
frame attend to all T: an upper count for a limited attention context, unless masked work is really skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from nemotrt.bundle import EncoderSpec

_CONV_TAPS = 9  # 3 x 3


@dataclass(frozen=True)
class HardwarePeak:
    """What the hardware can do at best; ``None`` where it is not known. ``reason`` says where figures come from."""

    flops_per_second: float | None
    bytes_per_second: float | None
    reason: str


# Dense matrix-multiply peaks that large GEMMs reach, and copy bandwidth. Only what was measured or published.
_GPU_PEAKS: dict[tuple[str, str], HardwarePeak] = {
    ("H200", "fp16"): HardwarePeak(790e12, 4.3e12, "H200: FP16 GEMM and copy rates as measured, not the data sheet"),
}


def hardware_peak(gpu: str | None, precision: str) -> HardwarePeak:
    """The peak of the GPU called ``gpu`` (``None``: the CPU) in ``precision``; unknown is ``None`` with the reason."""
    if gpu is None:
        return HardwarePeak(None, None, "the peak of this CPU is not known: clock and cores are shared")
    for (name, known), peak in _GPU_PEAKS.items():
        if name in gpu and known == precision:
            return peak
    return HardwarePeak(None, None, f"no peak is on record for {gpu} in {precision}")


def encoder_layer_flops(spec: EncoderSpec, *, encoder_frames: int, batch: int) -> float:
    """FLOPs of all layers for ``batch`` rows of ``encoder_frames`` frames, padding included."""
    d, f, k, t = spec.d_model, spec.feed_forward, spec.conv_kernel, encoder_frames
    by_frame = (8 * d * f + 14 * d**2 + 2 * d * k) * t * batch
    attention = (4 * d * t**2 + 2 * d * t * (2 * t - 1)) * batch
    positions = 2 * d**2 * (2 * t - 1)
    return float(spec.layers * (by_frame + attention + positions))


def subsampling_flops(spec: EncoderSpec, *, channels: int, feature_frames: int, batch: int) -> float:
    """FLOPs of the strided convolutions and the projection to ``d_model``; ``channels`` is C above."""
    frames, features = feature_frames, spec.features
    total = 0
    for stage in range(spec.subsampling_factor.bit_length() - 1):
        frames, features = _halved(frames, spec), _halved(features, spec)
        pointwise = channels**2 if stage else 0
        total += (_CONV_TAPS * channels + pointwise) * frames * features
    total += channels * features * spec.d_model * frames
    return float(2 * batch * total)


def subsampling_channels(encoder_graph: Path) -> int | None:
    """C, read from the first two-dimensional convolution of an encoder graph; ``None`` if it has none.

    Weights are not loaded.
    """
    graph = onnx.load(encoder_graph, load_external_data=False).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and len(shape := shapes.get(node.input[1], ())) == 4:
            return int(shape[0])
    return None


def floor_seconds(flops: float, weight_bytes: int, peak: HardwarePeak) -> float | None:
    """No run can be faster than this; ``None`` where the peak is not known."""
    if peak.flops_per_second is None or peak.bytes_per_second is None:
        return None
    return max(flops / peak.flops_per_second, weight_bytes / peak.bytes_per_second)


def _halved(size: int, spec: EncoderSpec) -> int:
    return size // 2 + 1 if spec.causal_subsampling else (size + 1) // 2

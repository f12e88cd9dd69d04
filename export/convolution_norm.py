"""The norm behind the depthwise convolution of a layer (NeMo ``conv_norm_type``), by what it costs at run time.

    batch_norm, fused_batch_norm   an affine map of the channels: part of the convolution's weights
    layer_norm                     written by the layer, as its other norms
    group_norm, instance_norm      statistics of each group of channels over all frames of a row

NeMo takes those statistics over the padding as well, so that a row's result depends on its neighbours in the batch.
Here they are taken over the row's own frames: what NeMo gives for the row alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nemotrt.export.encoder_config import EncoderConfig
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.weights import FloatArray, Weights

_EPSILON = 1e-5


@dataclass(frozen=True)
class ChannelAffine:
    """Inference batch norm: ``x * scale() + shift``. A fused one was brought to that form in training."""

    weights: Weights
    source: str
    channels: int
    fused: bool

    def __post_init__(self) -> None:
        for name in ("weight", "bias") if self.fused else ("weight", "bias", "running_mean", "running_var"):
            self.weights.expect(f"{self.source}.{name}", (self.channels,))

    def scale(self) -> FloatArray:
        """gamma / sqrt(variance + epsilon)."""
        gamma = self._read("weight")
        return gamma if self.fused else np.asarray(gamma / np.sqrt(self._read("running_var") + np.float32(_EPSILON)))

    def shift(self, bias: FloatArray | None) -> FloatArray:
        """beta + (bias - mean) * scale."""
        mean = np.float32(0) if self.fused else self._read("running_mean")
        return np.asarray(((np.float32(0) if bias is None else bias) - mean) * self.scale() + self._read("bias"))

    def _read(self, name: str) -> FloatArray:
        return self.weights.read(f"{self.source}.{name}")


def norm_over_frames(
    g: GraphBuilder, weights: Weights, config: EncoderConfig, x: ir.Value, *, source: str, valid: ir.Value | None
) -> ir.Value:
    """``x`` [B,D,T] with zero mean and unit variance by row and group of channels; ``valid`` bool [B,T,1]."""
    channels = config.spec.d_model
    groups = channels if config.conv_norm == "instance_norm" else config.conv_groups
    split = g.op("Reshape", x, g.constant([0, groups, channels // groups, -1]))
    own = None if valid is None else g.op("Unsqueeze", _by_frame(g, valid), g.constant([1]))
    centred = g.op("Sub", split, _mean(g, split, own, channels // groups))
    variance = _mean(g, g.op("Mul", centred, centred), own, channels // groups)
    deviation = g.op("Sqrt", g.op("Add", variance, g.constant(_EPSILON)))
    normed = g.op("Reshape", g.op("Div", centred, deviation), g.constant([0, channels, -1]))
    if config.conv_norm == "instance_norm":
        return normed
    scale, bias = (_column(g, weights, source, name, channels) for name in ("weight", "bias"))
    return g.op("Add", g.op("Mul", normed, scale), bias)


def _column(g: GraphBuilder, weights: Weights, source: str, name: str, channels: int) -> ir.Value:
    load = weights.expect(f"{source}.{name}", (channels,))
    return g.weight(f"norm.{name}", (channels, 1), lambda: load()[:, None])


def _by_frame(g: GraphBuilder, valid: ir.Value) -> ir.Value:
    """bool [B,T,1] -> float [B,1,T]."""
    return g.op("Transpose", g.op("Cast", valid, to=ir.DataType.FLOAT), perm=[0, 2, 1])


def _mean(g: GraphBuilder, x: ir.Value, own: ir.Value | None, channels: int) -> ir.Value:
    """Mean of [B,G,C,T] over C and the row's own frames, [B,G,1,1]; ``own`` float [B,1,1,T], ``None`` for all."""
    axes = g.constant([2, 3])
    if own is None:
        return g.op("ReduceMean", x, axes)
    total = g.op("ReduceSum", g.op("Mul", x, own), axes)
    count = g.op("Mul", g.op("ReduceSum", own, axes), g.constant(float(channels)))
    return g.op("Div", total, g.op("Max", count, g.constant(1.0)))

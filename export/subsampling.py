"""Convolutional subsampling (NeMo ``ConvSubsampling``: ``dw_striding``, ``striding``), with exact integer lengths.

A factor of 1 is no convolution but one projection of each frame.

A valid-frame mask is computed once, by one comparison; the masks of the halved rates are strided slices of it:

    regular   level k is valid at j  iff  2^k j < length
    causal    level k is valid at j  iff  2^k (j - 1) + 2 <= length      (each level is floor(n/2) + 1)

so the output length is the number of valid frames, and no length is ever a float. NeMo computes lengths as
floats, which are wrong from 2049 frames on where its graph is cast to half precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nemotrt.bundle import EncoderSpec
from nemotrt.export.encoder_config import EncoderConfig
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.weights import FloatArray, Weights

_KERNEL = 3


def subsampling(
    g: GraphBuilder,
    weights: Weights,
    config: EncoderConfig,
    *,
    audio_signal: ir.Value,
    masks: Sequence[ir.Value] | None,
) -> ir.Value:
    """``audio_signal`` [B,F,T] to model frames [B,T',D].

    ``masks`` has one of each level (see :func:`masks_from_length`), ``None`` where nothing is padded. The convolutions
    see zeros outside of them, so what is not a row's own audio never reaches a valid frame.
    """
    channels = config.subsampling_channels
    if masks is not None:
        audio_signal = g.op("Where", g.op("Unsqueeze", masks[0], g.constant([1])), audio_signal, g.constant(0.0))
    if config.subsampling == "linear":
        return _project_frames(g, weights, audio_signal, config)
    x = g.op("Unsqueeze", audio_signal, g.constant([1]))
    x = g.op("Relu", _strided(g, weights, x, index=0, config=config, channels_in=1))
    for level in range(config.spec.subsampling_factor.bit_length() - 2):
        if masks is not None:
            # Finite by now, so a product masks as well as a selection, and runtimes do it faster.
            mask = g.op("Cast", g.op("Unsqueeze", masks[1 + level], g.constant([1, 2])), to=ir.DataType.FLOAT)
            x = g.op("Mul", x, mask)
        if config.subsampling == "striding":
            x = _strided(g, weights, x, index=2 + 2 * level, config=config, channels_in=channels)
        else:
            index = 2 + 3 * level
            x = _strided(g, weights, x, index=index, config=config, channels_in=channels, depthwise=True)
            x = _pointwise(g, weights, x, index=index + 1, channels=channels)
        x = g.op("Relu", x)
    return _project(g, weights, x, config)


def count_valid(g: GraphBuilder, mask: ir.Value) -> ir.Value:
    """bool [B,T] -> int64 [B]."""
    return g.op("ReduceSum", g.op("Cast", mask, to=ir.DataType.INT64), g.constant([1]), keepdims=0)


def masks_from_length(g: GraphBuilder, spec: EncoderSpec, *, frames: ir.Value, length: ir.Value) -> list[ir.Value]:
    """Frames before each row's end, bool [B, frames of the level], from the input rate down to the output rate.

    ``frames`` is T, int64 []; ``length`` int64 [B].
    """
    factor, causal = spec.subsampling_factor, spec.causal_subsampling
    column = g.op("Unsqueeze", length, g.constant([1]))
    levels = range(factor.bit_length())
    if causal:
        positions = g.op("Range", g.constant(2 - factor), g.op("Add", frames, g.constant(1)), g.constant(1))
        valid = g.op("LessOrEqual", positions, column)
        offsets = [factor - 2**level for level in levels]
    else:
        valid = g.op("Less", g.op("Range", g.constant(0), frames, g.constant(1)), column)
        offsets = [0 for _ in levels]
    return [
        valid if (offset, level) == (0, 0) else g.slice(valid, axis=1, start=offset, step=2**level)
        for level, offset in zip(levels, offsets, strict=True)
    ]


def _strided(
    g: GraphBuilder,
    weights: Weights,
    x: ir.Value,
    *,
    index: int,
    config: EncoderConfig,
    channels_in: int,
    depthwise: bool = False,
) -> ir.Value:
    """3x3 convolution of stride 2. Layout [B,C,F,T], so NeMo's kernels, made for [B,C,T,F], are transposed."""
    name = f"encoder.pre_encode.conv.{index}"
    shape = (config.subsampling_channels, 1 if depthwise else channels_in, _KERNEL, _KERNEL)
    load = weights.expect(f"{name}.weight", shape)
    kernel = g.weight(f"conv.{index}.weight", shape, lambda: load().transpose(0, 1, 3, 2))
    bias = g.weight(f"conv.{index}.bias", shape[:1], weights.expect(f"{name}.bias", shape[:1]))
    pads = [_KERNEL - 1, _KERNEL - 1, 1, 1] if config.spec.causal_subsampling else [1, 1, 1, 1]
    return g.op("Conv", x, kernel, bias, strides=[2, 2], pads=pads, group=channels_in if depthwise else 1)


def _pointwise(g: GraphBuilder, weights: Weights, x: ir.Value, *, index: int, channels: int) -> ir.Value:
    name = f"encoder.pre_encode.conv.{index}"
    kernel = g.weight(
        f"conv.{index}.weight",
        (channels, channels, 1, 1),
        weights.expect(f"{name}.weight", (channels, channels, 1, 1)),
    )
    bias = g.weight(f"conv.{index}.bias", (channels,), weights.expect(f"{name}.bias", (channels,)))
    return g.op("Conv", x, kernel, bias)


def _project(g: GraphBuilder, weights: Weights, x: ir.Value, config: EncoderConfig) -> ir.Value:
    """[B,C,F',T'] -> [B,T',D]."""
    width = config.subsampling_channels * config.spec.encoder_frames_from_feature_frames(config.spec.features)
    flat = g.op("Reshape", g.op("Transpose", x, perm=[0, 3, 1, 2]), g.constant([0, 0, width]))
    return _linear(g, weights, flat, config, source="encoder.pre_encode.out", width=width)


def _project_frames(g: GraphBuilder, weights: Weights, x: ir.Value, config: EncoderConfig) -> ir.Value:
    """[B,F,T] -> [B,T,D]."""
    frames = g.op("Transpose", x, perm=[0, 2, 1])
    return _linear(g, weights, frames, config, source="encoder.pre_encode", width=config.spec.features)


def _linear(
    g: GraphBuilder, weights: Weights, x: ir.Value, config: EncoderConfig, *, source: str, width: int
) -> ir.Value:
    """[B,T',width] -> [B,T',D]; NeMo's scaling of the input by sqrt(D) (``xscaling``) is part of the weights."""
    d = config.spec.d_model
    scale = np.float32(np.sqrt(d) if config.xscaling else 1.0)
    load_weight, load_bias = weights.expect(f"{source}.weight", (d, width)), weights.expect(f"{source}.bias", (d,))
    kernel = g.weight("out.weight", (width, d), lambda: _scaled(load_weight().T, scale))
    bias = g.weight("out.bias", (d,), lambda: _scaled(load_bias(), scale))
    return g.linear(x, kernel, bias)


def _scaled(array: NDArray[np.float32], scale: np.float32) -> FloatArray:
    return np.ascontiguousarray(array * scale)

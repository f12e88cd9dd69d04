"""The cache-aware streaming encoder: one graph of fixed length for the first, every later and a short last chunk.

    audio_signal [B,F,W], length [B], caches -> encoder_output [B,D,T], encoded_lengths [B], caches

A window is some feature frames of the past and the chunk's own: W = factor (T + 1) + 1 for T encoder frames. Its first
two encoder frames rest on the convolutions' own padding and are dropped. A stream's first window has 2 factor frames
before the audio; what the convolutions make of them must be zero at every level, as padding is offline. So a row whose
cache is empty gets a start mask, and what is streamed equals what is encoded at once, the first chunk included.

    caches   "inputs"  the attention's inputs [B,C,D] a layer, as NeMo keeps them: projected again with every chunk
             "kv"      its keys and values, [B,H,C,d_k] each: projected once
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nemotrt.bundle import BATCH, CacheLayout, EncoderSpec, StreamingSpec
from nemotrt.errors import UnsupportedModelError, UsageError
from nemotrt.export.conformer import ConformerLayer, LayerCache, LayerContext
from nemotrt.export.encoder import FORBIDDEN_SCORE
from nemotrt.export.encoder_config import EncoderConfig
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.positions import position_table
from nemotrt.export.relative_shift import ChunkShift
from nemotrt.export.subsampling import count_valid, masks_from_length, subsampling
from nemotrt.export.weights import FloatArray, Weights

_DROPPED = 2  # encoder frames
_NORMS_OVER_ALL_FRAMES = ("group_norm", "instance_norm")


def streaming_spec(config: EncoderConfig, layout: CacheLayout, *, drop: int) -> StreamingSpec:
    """How a checkpoint of this config is streamed; of each chunk ``drop`` encoder frames come again with the next.

    Raises:
        UnsupportedModelError: the encoder looks at audio that a stream does not have yet.
        UsageError: ``drop`` leaves nothing new in a chunk.
    """
    spec = config.spec
    left, right = spec.attention_context
    reasons = {
        "encoder.att_context_style is not chunked_limited": spec.attention_style != "chunked_limited",
        "encoder.att_context_size has no limit to the left, or sees less than two frames": left < _DROPPED,
        "encoder.causal_downsampling is false": not spec.causal_subsampling,
        "encoder.self_attention_model is not rel_pos": config.positions != "rel_pos",
        "encoder.conv_context_size is not causal": config.conv_context[1] != 0,
        "encoder.conv_norm_type takes statistics of the whole input": config.conv_norm in _NORMS_OVER_ALL_FRAMES,
    }
    if any(reasons.values()):
        raise UnsupportedModelError(
            "the encoder was not trained for streaming",
            found="; ".join(reason for reason, holds in reasons.items() if holds),
            fix="export its offline components, or a cache-aware checkpoint",
        )
    factor, chunk = spec.subsampling_factor, right + 1
    if not 0 <= drop < chunk:
        raise UsageError(
            "a chunk must bring something new",
            found=f"{drop} of its {chunk} encoder frames are dropped from the cache",
            fix=f"choose a drop size from 0 to {right}, or a longer look-ahead",
        )
    return StreamingSpec(
        window_feature_frames=factor * (chunk + 1) + 1,
        chunk_feature_frames=factor * (chunk - drop),
        first_chunk_feature_frames=factor * right + 1,
        chunk_encoder_frames=chunk,
        left_context_frames=left,
        conv_cache_frames=config.conv_context[0],
        cache=layout,
        cache_drop_frames=drop,
    )


@dataclass(frozen=True)
class _Caches:
    """Graph inputs: one per kind, layers stacked in front."""

    attention: tuple[ir.Value, ...]
    convolution: ir.Value
    length: ir.Value


def streaming_encoder(g: GraphBuilder, weights: Weights, config: EncoderConfig, streaming: StreamingSpec) -> None:
    """Write the whole component."""
    spec = config.spec
    audio_signal = g.input("audio_signal", "float32", (BATCH, spec.features, streaming.window_feature_frames))
    length = g.input("length", "int64", (BATCH,))
    caches = _cache_inputs(g, spec, streaming)
    with g.scope("pre_encode"):
        masks = _window_masks(g, spec, streaming, length=length, cached=caches.length)
        x = g.slice(subsampling(g, weights, config, audio_signal=audio_signal, masks=masks), axis=1, start=_DROPPED)
        valid = g.slice(masks[-1], axis=1, start=_DROPPED)
        lengths = count_valid(g, valid)
    with g.scope("context"):
        context = _layer_context(g, streaming, valid=valid, cached=caches.length)
    kept: list[LayerCache] = []
    for index in range(spec.layers):
        with g.scope(f"layers.{index}"):
            positions = _positions(g, weights, spec, streaming, layer=index)
            cache = LayerCache(
                tuple(_of_layer(g, stacked, index) for stacked in caches.attention),
                _of_layer(g, caches.convolution, index),
            )
            x, seen = ConformerLayer(g, weights, config, index=index).stream(x, positions, context, cache)
            kept.append(_newest(g, seen, streaming))
    output = g.op("Transpose", x, perm=[0, 2, 1])
    g.output(output, "encoder_output", "float32", (BATCH, spec.d_model, streaming.chunk_encoder_frames))
    g.output(lengths, "encoded_lengths", "int64", (BATCH,))
    _cache_outputs(g, spec, streaming, kept, caches.length)


def cache_shapes(spec: EncoderSpec, streaming: StreamingSpec) -> dict[str, tuple[int | str, ...]]:
    """The float32 caches by input name, layers first. Outputs are called the same with ``_out`` behind."""
    layers, frames = spec.layers, streaming.left_context_frames
    last_time = {"cache_last_time": (layers, BATCH, spec.d_model, streaming.conv_cache_frames)}
    if streaming.cache == "inputs":
        return {"cache_last_channel": (layers, BATCH, frames, spec.d_model), **last_time}
    by_head = (layers, BATCH, spec.heads, frames, spec.d_model // spec.heads)
    return {"cache_keys": by_head, "cache_values": by_head, **last_time}


def _cache_inputs(g: GraphBuilder, spec: EncoderSpec, streaming: StreamingSpec) -> _Caches:
    *attention, convolution = (g.input(name, "float32", shape) for name, shape in cache_shapes(spec, streaming).items())
    return _Caches(tuple(attention), convolution, g.input("cache_last_channel_len", "int64", (BATCH,)))


def _cache_outputs(
    g: GraphBuilder, spec: EncoderSpec, streaming: StreamingSpec, kept: list[LayerCache], cached: ir.Value
) -> None:
    columns = [*zip(*(cache.attention for cache in kept), strict=True), tuple(cache.convolution for cache in kept)]
    for (name, shape), layers in zip(cache_shapes(spec, streaming).items(), columns, strict=True):
        stacked = g.op("Concat", *(g.op("Unsqueeze", layer, g.constant([0])) for layer in layers), axis=0)
        g.output(stacked, f"{name}_out", "float32", shape)
    seen = g.op("Add", cached, g.constant(streaming.chunk_encoder_frames - streaming.cache_drop_frames))
    limited = g.op("Min", seen, g.constant(streaming.left_context_frames))
    g.output(limited, "cache_last_channel_len_out", "int64", (BATCH,))


def _of_layer(g: GraphBuilder, stacked: ir.Value, layer: int) -> ir.Value:
    return g.op("Gather", stacked, g.constant(layer), axis=0)


def _newest(g: GraphBuilder, seen: LayerCache, streaming: StreamingSpec) -> LayerCache:
    """The last frames of what a layer saw, but for those that come again: they push as many of the oldest out."""
    new = streaming.chunk_encoder_frames - streaming.cache_drop_frames
    axis = 1 if streaming.cache == "inputs" else 2

    def kept(value: ir.Value, *, axis: int, frames: int) -> ir.Value:
        end = g.constant([new + frames]) if streaming.cache_drop_frames else None
        return g.slice(value, axis=axis, start=new, end=end)

    return LayerCache(
        tuple(kept(value, axis=axis, frames=streaming.left_context_frames) for value in seen.attention),
        kept(seen.convolution, axis=2, frames=streaming.conv_cache_frames),
    )


def _window_masks(
    g: GraphBuilder, spec: EncoderSpec, streaming: StreamingSpec, *, length: ir.Value, cached: ir.Value
) -> list[ir.Value]:
    """Frames of each row's own audio at every level, bool [B, frames of the level].

    With an empty cache the first ``factor * 2`` feature frames are before the audio, and ``2^-k`` of that at level k;
    with one frame in it, half of them.
    """
    window, factor = streaming.window_feature_frames, spec.subsampling_factor
    ended = masks_from_length(g, spec, frames=g.constant(window), length=length)
    before = g.op("Sub", g.constant(_DROPPED * factor), g.op("Mul", cached, g.constant(factor)))
    started = g.op("GreaterOrEqual", g.constant(np.arange(window)), g.op("Unsqueeze", before, g.constant([1])))
    return [
        g.op("And", mask, started if level == 0 else g.slice(started, axis=1, step=2**level))
        for level, mask in enumerate(ended)
    ]


def _layer_context(g: GraphBuilder, streaming: StreamingSpec, *, valid: ir.Value, cached: ir.Value) -> LayerContext:
    """Every query of a chunk sees the whole chunk and all that is cached; ``valid`` bool [B,T]."""
    chunk, frames = streaming.chunk_encoder_frames, streaming.left_context_frames
    filled = g.op("Unsqueeze", g.op("Sub", g.constant(frames), cached), g.constant([1]))
    is_cached = g.op("GreaterOrEqual", g.constant(np.arange(frames)), filled)
    allowed = g.op("Unsqueeze", g.op("Concat", is_cached, valid, axis=1), g.constant([1, 2]))
    return LayerContext(
        score_bias=g.op("Where", allowed, g.constant(0.0), g.constant(FORBIDDEN_SCORE)),
        valid=g.op("Unsqueeze", valid, g.constant([2])),
        shift=ChunkShift(queries=chunk, keys=frames + chunk),
    )


def _positions(
    g: GraphBuilder, weights: Weights, spec: EncoderSpec, streaming: StreamingSpec, *, layer: int
) -> ir.Value:
    """The projected positions of a layer, [1, H, d_k, S+T]: constants, since the window is."""
    chunk = streaming.chunk_encoder_frames
    keys = streaming.left_context_frames + chunk
    d, d_k = spec.d_model, spec.d_model // spec.heads
    load = weights.expect(f"encoder.layers.{layer}.self_attn.linear_pos.weight", (d, d))

    def projected() -> FloatArray:
        rows = position_table(keys, d)[: keys + chunk]
        return (rows @ load().T).reshape(keys + chunk, spec.heads, d_k).transpose(1, 2, 0)[None]

    return g.weight("positions", (1, spec.heads, d_k, keys + chunk), projected)

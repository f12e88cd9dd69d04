"""The encoder graph: subsampling, masks and positions once, then L layers.

    audio_signal [B,F,T], length [B] -> encoder_output [B,D,T'], encoded_lengths [B]
    audio_signal [B,F,T]             -> encoder_output [B,D,T']                       without masks

Rows of one length, and so every single one, need no masks: nothing of theirs is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from nemotrt.bundle import BATCH, FRAMES, EncoderSpec
from nemotrt.export.conformer import ConformerLayer, LayerContext
from nemotrt.export.encoder_config import EncoderConfig
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.positions import absolute_positions, projected_positions
from nemotrt.export.relative_shift import WholeShift
from nemotrt.export.subsampling import count_valid, masks_from_length, subsampling
from nemotrt.export.weights import Weights

# Added to the scores of forbidden keys. Finite, and within half range, so that a row without any allowed key gives
# numbers and not NaN; exp() of it is zero in every precision. NeMo fills with the same number.
FORBIDDEN_SCORE = -10000.0


@dataclass(frozen=True)
class Encoded:
    """``x`` [B,T',D]; ``lengths`` int64 [B], ``None`` without masks."""

    x: ir.Value
    lengths: ir.Value | None


def encoder(g: GraphBuilder, weights: Weights, config: EncoderConfig, *, masked: bool) -> Encoded:
    """Declare the inputs and write the whole encoder; the caller adds a head and declares outputs."""
    spec = config.spec
    audio_signal = g.input("audio_signal", "float32", (BATCH, spec.features, FRAMES))
    with g.scope("pre_encode"):
        masks = _masks(g, spec, audio_signal) if masked else None
        x = subsampling(g, weights, config, audio_signal=audio_signal, masks=masks)
        valid = None if masks is None else masks[-1]
        lengths = None if valid is None else count_valid(g, valid)
    with g.scope("context"):
        frames = g.extent(x, 1) if valid is None else g.extent(valid, 1)
        context = _layer_context(g, config, valid=valid, frames=frames)
    positions: Sequence[ir.Value | None] = [None] * spec.layers
    with g.scope("positions"):
        if config.positions == "rel_pos":
            positions = projected_positions(g, weights, spec, frames=frames)
        else:
            x = absolute_positions(g, spec, x, frames=frames)
    for index in range(spec.layers):
        with g.scope(f"layers.{index}"):
            x = ConformerLayer(g, weights, config, index=index)(x, positions[index], context)
    return Encoded(x, lengths)


def _masks(g: GraphBuilder, spec: EncoderSpec, audio_signal: ir.Value) -> list[ir.Value]:
    length = g.input("length", "int64", (BATCH,))
    return masks_from_length(g, spec, frames=g.scalar(g.extent(audio_signal, 2)), length=length)


def _layer_context(g: GraphBuilder, config: EncoderConfig, *, valid: ir.Value | None, frames: ir.Value) -> LayerContext:
    """``valid`` bool [B,T], ``None`` for all; ``frames`` is T, int64 [1]."""
    allowed = _attention_window(g, config, frames)
    if valid is not None:
        own = g.op("Unsqueeze", valid, g.constant([1]))
        allowed = own if allowed is None else g.op("And", own, allowed)
        valid = g.op("Unsqueeze", valid, g.constant([2]))
    return LayerContext(
        score_bias=None if allowed is None else _score_bias(g, allowed, axis=1 if valid is not None else 0),
        valid=valid,
        shift=WholeShift.of(g, frames),
    )


def _score_bias(g: GraphBuilder, allowed: ir.Value, *, axis: int) -> ir.Value:
    """bool [B,1|T,T] -> float [B,1,1|T,T]."""
    return g.op("Unsqueeze", g.op("Where", allowed, g.constant(0.0), g.constant(FORBIDDEN_SCORE)), g.constant([axis]))


def _attention_window(g: GraphBuilder, config: EncoderConfig, frames: ir.Value) -> ir.Value | None:
    """Which key each query may see regardless of padding, bool [T,T]; ``None`` if every one.

    regular: ``-left <= key - query <= right``. chunked_limited: the query's chunk of ``right + 1`` frames and the
    ``left / chunk`` chunks before it (NeMo ``ConformerEncoder._create_masks``).
    """
    left, right = config.spec.attention_context
    is_chunked = config.spec.attention_style == "chunked_limited"
    if (left, right) == (-1, -1) and not is_chunked:
        return None
    index = g.op("Range", g.constant(0), g.scalar(frames), g.constant(1))
    if is_chunked:
        chunk = right + 1
        index = g.op("Div", index, g.constant(chunk))
        left, right = (left // chunk if left >= 0 else -1), 0
    back = g.op("Sub", g.op("Unsqueeze", index, g.constant([1])), index)
    bounds = []
    if left >= 0:
        bounds.append(g.op("LessOrEqual", back, g.constant(left)))
    if right >= 0:
        bounds.append(g.op("GreaterOrEqual", back, g.constant(-right)))
    return bounds[0] if len(bounds) == 1 else g.op("And", *bounds)

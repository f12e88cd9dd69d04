"""Relative positions: one sinusoidal table, one projection for all layers.

    table row r holds position max - r:   max, max-1, ..., 0, ..., -max        2 max + 1 rows
    T frames use rows max-T .. max+T:     T, T-1, ..., -T                      2 T + 1 rows

Positions T and -T are never used; they make the relative shift a reshape and a slice (see ``relative_shift.py``).
Source: Transformer-XL (arXiv 1901.02860), NeMo ``RelPositionalEncoding``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nemotrt.bundle import EncoderSpec
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.weights import FloatArray, Weights

_WAVELENGTH = 10000.0


def position_table(max_frames: int, d_model: int) -> FloatArray:
    """Sinusoids of positions ``max_frames`` down to ``-max_frames``, float32 [2 max_frames + 1, d_model]."""
    return sinusoids(np.arange(max_frames, -max_frames - 1, -1), d_model)


def sinusoids(positions: NDArray[np.int64], d_model: int) -> FloatArray:
    """Sines in the even columns, cosines in the odd ones, float32 [len(positions), d_model].

    Angles are rounded to float32 as NeMo rounds them; sine and cosine are then exact to the last bit.
    """
    exponent = np.arange(0, d_model, 2, dtype=np.float32) * np.float32(-(np.log(_WAVELENGTH) / d_model))
    angles = (positions.astype(np.float32)[:, None] * np.exp(exponent.astype(np.float64)).astype(np.float32)).astype(
        np.float64
    )
    table = np.empty((len(positions), d_model), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table


def absolute_positions(g: GraphBuilder, spec: EncoderSpec, x: ir.Value, *, frames: ir.Value) -> ir.Value:
    """``x`` [B,T,D] plus the sinusoids of positions 0, 1, ..., T-1 (NeMo ``PositionalEncoding``)."""
    rows = (spec.max_encoder_frames, spec.d_model)
    table = g.weight("table", rows, lambda: sinusoids(np.arange(spec.max_encoder_frames), spec.d_model))
    return g.op("Add", x, g.slice(table, axis=0, end=frames))


def projected_positions(
    g: GraphBuilder, weights: Weights, spec: EncoderSpec, *, frames: ir.Value
) -> Sequence[ir.Value]:
    """The projected positions of each layer, [1, H, d_k, 2T+1]; ``frames`` is T, int64 [1]."""
    layers, heads, d = spec.layers, spec.heads, spec.d_model
    loads = [weights.expect(f"encoder.layers.{i}.self_attn.linear_pos.weight", (d, d)) for i in range(layers)]
    longest = spec.max_encoder_frames
    table = g.weight("table", (2 * longest + 1, d), lambda: position_table(longest, d))
    first, end = g.op("Sub", g.constant([longest]), frames), g.op("Add", g.constant([longest + 1]), frames)
    rows = g.slice(table, axis=0, start=first, end=end)
    matrix = g.weight("projection.weight", (d, layers * d), lambda: np.concatenate([load() for load in loads]).T)
    by_head = g.op("Reshape", g.op("MatMul", rows, matrix), g.constant([1, -1, layers * heads, d // heads]))
    columns = g.op("Transpose", by_head, perm=[0, 2, 3, 1])
    return [columns] if layers == 1 else g.multi("Split", columns, outputs=layers, axis=1, num_outputs=layers)

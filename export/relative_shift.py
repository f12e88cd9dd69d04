"""Scores by relative position to scores by key, without Pad: reshapes and slices of rows with a few columns to spare.

Query i of T is frame S-T+i of S keys, so the score of (i, j) is that of position S-T+i-j.

    all frames at once (S = T)   rows hold 2T+1 columns, of positions T, T-1, ..., -T. Read as one row, (i, j) stands at
                                 i (2T+1) + T - (i - j) = (2i+1) T + j : cut into rows of T, every other one is wanted
    a chunk behind a cache       rows hold S+T columns, of positions S, S-1, ..., -(T-1). Read as one row, (i, j) stands
                                 at i (S+T-1) + T + j : drop the first T, cut into rows of S+T-1, keep S columns

Source: Transformer-XL (arXiv 1901.02860), NeMo ``RelPositionMultiHeadAttention.rel_shift``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from nemotrt.export.graph import GraphBuilder


class RelativeShift(Protocol):
    """[B,H,T,positions] -> [B,H,T,S]."""

    def __call__(self, g: GraphBuilder, scores: ir.Value) -> ir.Value:
        """Write the nodes."""
        ...


@dataclass(frozen=True)
class WholeShift:
    """All frames at once. ``folded`` is the shape [0, 0, 2T+1, T], computed once for all layers."""

    folded: ir.Value

    @classmethod
    def of(cls, g: GraphBuilder, frames: ir.Value) -> WholeShift:
        """For T = ``frames``, int64 [1]."""
        columns = g.op("Add", g.op("Mul", frames, g.constant([2])), g.constant([1]))
        return cls(g.op("Concat", g.constant([0, 0]), columns, frames, axis=0))

    def __call__(self, g: GraphBuilder, scores: ir.Value) -> ir.Value:
        """[B,H,T,2T+1] -> [B,H,T,T]."""
        return g.slice(g.op("Reshape", scores, self.folded), axis=2, start=1, step=2)


@dataclass(frozen=True)
class ChunkShift:
    """A chunk of ``queries`` frames that sees ``keys``."""

    queries: int
    keys: int

    def __call__(self, g: GraphBuilder, scores: ir.Value) -> ir.Value:
        """[B,H,T,S+T] -> [B,H,T,S]."""
        rows = g.op("Reshape", scores, g.constant([0, 0, -1, self.queries]))
        shifted = g.op("Reshape", g.slice(rows, axis=2, start=1), g.constant([0, 0, self.queries, -1]))
        return g.slice(shifted, axis=3, end=g.constant([self.keys]))

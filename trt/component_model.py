"""One graph of a bundle in memory, its weights still on disk."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

from nemotrt.errors import GraphError


def load_component(graph: Path) -> ir.Model:
    """The model at ``graph``.

    Raises:
        GraphError: it cannot be read.
    """
    try:
        return ir.load(graph)
    except (OSError, ValueError, DecodeError) as exc:
        raise GraphError(
            "the graph cannot be read", where=graph, found=str(exc), fix="export the checkpoint again"
        ) from exc

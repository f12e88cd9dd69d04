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
        raise unreadable(graph, exc) from exc


def unreadable(graph: Path, exc: Exception) -> GraphError:
    """The error for a graph or weights that cannot be read; weights are read when something asks for them."""
    return GraphError(
        "the graph or its weights cannot be read", where=graph, found=str(exc), fix="export the checkpoint again"
    )

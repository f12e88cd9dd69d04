"""Passes over a graph in memory, round after round, until nothing changes.

file -> loaded, without the shapes of its values -> pass, pass, pass, ... -> again -> written: one graph, one data file
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from nemotrt.errors import GraphError
from nemotrt.trt.surgery.surgery_pass import PassOutcome, SurgeryPass

INLINE_BYTES = 4096
"""Constants up to this size stay inside the graph file, where shape inference reads them."""

_MOST_ROUNDS = 8

OnPass = Callable[[str], None]


def load_for_surgery(path: Path) -> ir.Model:
    """A model whose values have types and no shapes, but for inputs, outputs and constants. Weights stay in the file.

    Raises:
        GraphError: not a readable ONNX file, or one with graphs inside of nodes.
    """
    try:
        model = ir.load(path)
    except (OSError, ValueError, DecodeError) as exc:
        raise GraphError("this is not an ONNX file", where=path, found=str(exc)[:300], fix="export it again") from exc
    if not model.graph.outputs:
        raise GraphError("this is not an ONNX file", where=path, found="a graph without outputs", fix="export it again")
    _check_weights(model.graph, path)
    InlinePass()(model)
    for node in model.graph:
        if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
            raise GraphError(
                "the graph cannot be operated on",
                where=path,
                found=f"node {node.name} ({node.op_type}) holds a graph of its own",
                fix="export it without If, Loop and Scan",
            )
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return model


def _check_weights(graph: ir.Graph, path: Path) -> None:
    """Every data file is there, and in the folder of the graph: a name may point anywhere."""
    folder = path.absolute().parent.resolve()
    tensors = (value.const_value for value in graph.initializers.values())
    for file in sorted({Path(one.path) for one in tensors if isinstance(one, ir.ExternalTensor)}):
        if not file.resolve().is_relative_to(folder) or not file.is_file():
            raise GraphError(
                "a weight of the graph is not in a file beside it",
                where=path,
                found=f"{file}: {'outside of the folder' if file.exists() else 'no such file'}",
                fix="copy the graph with all of its data files, or export it again",
            )


def operate(
    model: ir.Model, passes: Sequence[SurgeryPass], *, steps: int | None = None, on_pass: OnPass | None = None
) -> list[PassOutcome]:
    """Run ``passes`` in rounds, in place, and say what each run did; no more than ``steps`` runs.

    Raises:
        GraphError: a pass left a wrong graph.
    """
    outcomes: list[PassOutcome] = []
    for _ in range(_MOST_ROUNDS):
        changed = 0
        for one in passes:
            if steps is not None and len(outcomes) >= steps:
                return outcomes
            if on_pass is not None:
                on_pass(one.name)
            outcomes.append(one(model.graph))
            changed += outcomes[-1].changes
        if not changed:
            break
    return outcomes


def write_model(model: ir.Model, path: Path) -> None:
    """The graph at ``path`` and all its weights in one file beside it, one tensor in memory at a time."""
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=INLINE_BYTES)

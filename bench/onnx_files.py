"""What an ONNX graph is made of: nodes, files, bytes. Weights are not read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, TensorProto


def count_nodes(graph: Path) -> int:
    """Nodes of the graph and of the graphs nested in them."""
    return sum(1 for _ in _nodes(onnx.load(str(graph), load_external_data=False).graph))


def files_of(graph: Path) -> tuple[Path, ...]:
    """The graph's file, then the data files that it names, each once."""
    model = onnx.load(str(graph), load_external_data=False)
    names = {
        entry.value
        for tensor in _tensors(model.graph)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return (graph, *(graph.parent / name for name in sorted(names)))


def _nodes(graph: GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Weights, and constants in nodes; those of nested graphs are small and stay in the file."""
    yield from graph.initializer
    for node in _nodes(graph):
        yield from (attribute.t for attribute in node.attribute if attribute.type == AttributeProto.TENSOR)

"""Shapes and the content of small integer tensors, learned without running the graph.

    input [batch, 80, frames] -> Conv -> [batch, 64, 40, floor((frames - 1)/2) + 1]
    Shape -> (batch, 64, 40, ...) -> Gather 0 -> batch -> Concat -> (batch, -1, 8, 64) -> Reshape ...

Nodes are visited once, in order. An operator that nobody described has outputs of unknown shape.
"""

from __future__ import annotations

import onnx_ir as ir

from nemotrt.trt.surgery.axis_size import Size
from nemotrt.trt.surgery.content_rules import content_of
from nemotrt.trt.surgery.facts import CONTENT_ELEMENTS, INTEGERS, Facts, constant_of
from nemotrt.trt.surgery.shape_rules import shapes_of


def learn_facts(graph: ir.Graph) -> Facts:
    """Everything that can be known, of a graph whose nodes are in order."""
    facts = Facts()
    for value in (*graph.inputs, *graph.initializers.values()):
        _learn_source(facts, value)
    for node in graph:
        shapes = shapes_of(node, facts)
        for value, shape in zip(node.outputs, shapes, strict=False):
            if shape is not None:
                facts.shapes[value] = shape
        if node.outputs and node.outputs[0].dtype in INTEGERS:
            content = content_of(node, facts)
            if content is not None and len(content) <= CONTENT_ELEMENTS:
                facts.contents[node.outputs[0]] = content
    return facts


def _learn_source(facts: Facts, value: ir.Value) -> None:
    if value.shape is not None:
        names = enumerate(value.shape)
        facts.shapes[value] = tuple(_axis(axis, fallback=f"{value.name}.{index}") for index, axis in names)
    array = constant_of(value, at_most=CONTENT_ELEMENTS) if value.dtype in INTEGERS else None
    if array is not None and array.ndim <= 1:
        facts.contents[value] = tuple(Size.of(int(number)) for number in array.reshape(-1))


def _axis(axis: int | ir.SymbolicDim, *, fallback: str) -> Size:
    return Size.of(axis) if isinstance(axis, int) else Size.named(axis.value or fallback)

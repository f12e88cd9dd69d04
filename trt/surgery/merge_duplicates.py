"""What is computed twice from the same values is computed once; equal small constants are one."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, DeduplicateInitializersPass

from nemotrt.trt.surgery.graph_edit import GraphEdit
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_CONSTANT_ELEMENTS = 256
"""Larger constants are weights: nobody stores one twice, and reading them all to find out takes long."""


class MergeDuplicates(SurgeryPass):
    """Common subexpressions, by onnx-ir."""

    name: ClassVar[str] = "merge-duplicates"
    does: ClassVar[str] = "computes once what is computed twice, the mask of every layer for one"

    def rewrite(self, edit: GraphEdit) -> None:
        """Constants first: nodes that read equal ones are then equal."""
        for node in edit.nodes("Unsqueeze"):
            _count_axes_from_the_front(edit, node)
        model, before = ir.Model(edit.graph, ir_version=10), len(edit.graph)
        constants = DeduplicateInitializersPass(size_limit=_CONSTANT_ELEMENTS)(model).modified
        declared = [(value.type, value.shape) for value in edit.graph.outputs]
        CommonSubexpressionEliminationPass()(model)
        for value, (kind, shape) in zip(edit.graph.outputs, declared, strict=True):
            value.type, value.shape = kind, shape  # an output may be another value by now
        edit.changes += before - len(edit.graph) + int(constants)


def _count_axes_from_the_front(edit: GraphEdit, node: ir.Node) -> None:
    """-1 and 1 are the same axis of two."""
    axes, shape = edit.facts.numbers(node.inputs[1]), edit.facts.shape(node.outputs[0])
    if axes is not None and shape is not None and min(axes, default=0) < 0:
        edit.set_input(node, 1, edit.constant(sorted(axis % len(shape) for axis in axes)))

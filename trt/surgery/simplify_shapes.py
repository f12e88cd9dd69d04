"""Shape arithmetic: what is a number becomes one, what is an axis is read from the tensor that has it, once.

Reshape(x, Concat(Unsqueeze(Gather(Shape(x), 0)), -1, 8, 64))  ->  Reshape(x, [0, -1, 8, 64])
Unsqueeze(Gather(Shape(x), 1))                                 ->  Shape(x, start=1, end=2)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.axis_size import Shape, Size
from nemotrt.trt.surgery.facts import INTEGERS, attribute
from nemotrt.trt.surgery.graph_edit import GraphEdit, small_constant
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_Kind = tuple[Shape, ir.DataType | None, int]


class SimplifyShapes(SurgeryPass):
    """Replaces integers whose content is known by the shortest way to them."""

    name: ClassVar[str] = "simplify-shapes"
    does: ClassVar[str] = "shortens shape arithmetic, and writes the shapes of reshapes as constants"
    opset: ClassVar[int] = 15

    def rewrite(self, edit: GraphEdit) -> None:
        """Nodes in order: what an earlier node has is not computed again."""
        first: dict[_Kind, ir.Value] = {}
        axes: dict[Size, tuple[ir.Value, int]] = {}
        for value in edit.graph.inputs:
            _note_axes(edit, value, axes)
        for node in edit.nodes():
            if node.op_type == "Reshape":
                _write_shape(edit, node)
            if node.outputs[0].dtype in INTEGERS[:2] and len(node.outputs) == 1:
                _shorten(edit, node, first, axes)
            for value in node.outputs:
                _note_axes(edit, value, axes)


def _shorten(
    edit: GraphEdit, node: ir.Node, first: dict[_Kind, ir.Value], axes: dict[Size, tuple[ir.Value, int]]
) -> None:
    value = node.outputs[0]
    content, shape = edit.facts.content(value), edit.facts.shape(value)
    if content is None or shape is None or value.is_graph_output() or not value.uses():
        return
    numbers = edit.facts.numbers(value)
    if numbers is not None:
        is_int64 = value.dtype == ir.DataType.INT64
        edit.replace(
            value, edit.constant(np.array(numbers if shape else numbers[0], np.int64 if is_int64 else np.int32))
        )
        return
    kind = (content, value.dtype, len(shape))
    if kind in first:
        edit.replace(value, first[kind])
        return
    if len(shape) == 1 and len(content) == 1 and node.op_type != "Shape" and value.dtype == ir.DataType.INT64:
        source = axes.get(content[0])
        if source is not None:
            tensor, axis = source
            new = edit.op("Shape", [tensor], before=node, like=value, start=axis, end=axis + 1)
            edit.replace(value, new)
            value = new
    first[kind] = value


def _write_shape(edit: GraphEdit, node: ir.Node) -> None:
    """Axes that stay are written as 0, and one other may be -1."""
    before, wanted = edit.facts.shape(node.inputs[0]), edit.facts.content(node.inputs[1])
    if before is None or wanted is None or small_constant(node.inputs[1]) is not None:
        return
    if attribute(node, "allowzero", 0):
        edit.refuse(node, "zero is a size here, not an axis that stays")
        return
    numbers = [0 if axis < len(before) and size == before[axis] else size.number for axis, size in enumerate(wanted)]
    if numbers.count(None) == 1 and -1 in numbers:
        return  # one size and one that is left to Reshape: it is as short as it can be
    if numbers.count(None) > 1:
        edit.refuse(node, f"{numbers.count(None)} axes that are neither numbers nor those of the input")
        return
    edit.set_input(node, 1, edit.constant([-1 if number is None else number for number in numbers]))


def _note_axes(edit: GraphEdit, value: ir.Value, axes: dict[Size, tuple[ir.Value, int]]) -> None:
    for axis, size in enumerate(edit.facts.shape(value) or ()):
        if size.number is None:
            axes.setdefault(size, (value, axis))

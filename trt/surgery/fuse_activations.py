"""Sigmoid and GLU that are spelled out, as the operators that runtimes know.

1 / (1 + exp(-x))                          ->  Sigmoid(x)                   (times x: Swish)
Slice(x, first half) * ... Slice(x, rest)  ->  Split(x), the halves of a GLU
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from nemotrt.trt.surgery.graph_edit import GraphEdit, producer_of, small_constant
from nemotrt.trt.surgery.shape_rules import LONGEST, axis_of
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_Half = tuple[ir.Node, int, int, int, int]  # Slice, axis, start, end, length of the axis


class FuseActivations(SurgeryPass):
    """Recognizes both by their constants."""

    name: ClassVar[str] = "fuse-activations"
    does: ClassVar[str] = "writes a spelled out sigmoid as Sigmoid, and the halves of a GLU as one Split"

    def rewrite(self, edit: GraphEdit) -> None:
        """Sigmoids first: a GLU is known by one."""
        for node in edit.nodes("Div", "Reciprocal"):
            x = _sigmoid_of(node)
            if x is not None:
                edit.replace(node.outputs[0], edit.op("Sigmoid", [x], before=node, like=x))
        halves: dict[tuple[ir.Value, int], list[_Half]] = {}
        for node in edit.nodes("Slice"):
            half = _half(edit, node)
            if half is not None and node.inputs[0] is not None:
                halves.setdefault((node.inputs[0], half[1]), []).append(half)
        for (x, axis), parts in halves.items():
            _split(edit, x, axis, parts)


def _sigmoid_of(node: ir.Node) -> ir.Value | None:
    if node.op_type == "Div" and not _is_one(node.inputs[0]):
        return None
    add = producer_of(node.inputs[-1], "Add")
    if add is None:
        return None
    for one, other in ((add.inputs[0], add.inputs[1]), (add.inputs[1], add.inputs[0])):
        exp = producer_of(other, "Exp")
        negative = None if exp is None else producer_of(exp.inputs[0], "Neg")
        if negative is not None and _is_one(one):
            return negative.inputs[0]
    return None


def _is_one(value: ir.Value | None) -> bool:
    array = small_constant(value)
    return array is not None and array.size == 1 and array.ndim == 0 and float(array.reshape(-1)[0]) == 1.0


def _half(edit: GraphEdit, node: ir.Node) -> _Half | None:
    """A Slice of one half of an axis whose length is a number."""
    shape, numbers = edit.facts.shape(node.inputs[0]), [edit.facts.numbers(value) for value in node.inputs[1:]]
    if shape is None or len(numbers) < 3 or any(one is None or len(one) != 1 for one in numbers):
        return None
    (start, end, axis, step) = [one[0] for one in numbers if one is not None][:4] + [1] * (4 - len(numbers))
    place = axis_of(axis, shape)
    length = shape[place].number
    if length is None or length % 2 or step != 1:
        return None
    start, end = (start + length if start < 0 else start), min(end + length if -LONGEST < end < 0 else end, length)
    return (node, place, start, end, length) if (start, end) in ((0, length // 2), (length // 2, length)) else None


def _split(edit: GraphEdit, x: ir.Value, axis: int, parts: list[_Half]) -> None:
    first = [node for node, _, start, _, _ in parts if start == 0]
    second = [node for node, _, start, _, _ in parts if start != 0]
    if not first or not second:
        edit.refuse(parts[0][0], "only one half of it is read")
        return
    if not any(reader.op_type == "Sigmoid" for node in second for reader, _ in node.outputs[0].uses()):
        edit.refuse(second[0], "the second half is no gate")
        return
    half = parts[0][4] // 2
    earliest = next(node for node in edit.graph if node in (*first, *second))
    sizes = edit.constant([half, half])
    values = edit.op("Split", [x, sizes], before=earliest, like=x, outputs=2, axis=axis).producer()
    for index, nodes in enumerate((first, second)):
        for node in nodes:
            if values is not None:
                edit.replace(node.outputs[0], values.outputs[index])

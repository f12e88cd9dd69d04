"""Nodes whose result is their input are removed: casts to the same type, reshapes to the same shape, x + 0, x * 1 ...

Two transpositions in a row are one; two reshapes in a row are the second.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.facts import integers
from nemotrt.trt.surgery.graph_edit import GraphEdit, producer_of, small_constant
from nemotrt.trt.surgery.shape_rules import broadcast
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "And": 1, "Or": 0}
_COMMUTES = frozenset({"Add", "Mul", "And", "Or"})
_MOVING = frozenset({"Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"})


class RemoveNoOps(SurgeryPass):
    """Reads round what changes nothing."""

    name: ClassVar[str] = "remove-no-ops"
    does: ClassVar[str] = "removes nodes whose result is their input: casts to the same type, x + 0, masks of ones"

    def rewrite(self, edit: GraphEdit) -> None:
        """One look at each node, in order, so that a chain of them goes at once."""
        for node in edit.nodes():
            same = _input_that_it_returns(edit, node)
            if same is not None and not (node.outputs[0].is_graph_output() and node.op_type == "Identity"):
                edit.replace(node.outputs[0], same)
            elif node.op_type in ("Reshape", "Transpose"):
                _join_with_previous(edit, node)


def _input_that_it_returns(edit: GraphEdit, node: ir.Node) -> ir.Value | None:
    if node.op_type in _NEUTRAL:
        return _other_operand(edit, node)
    first = node.inputs[0] if node.inputs else None
    return first if first is not None and _returns_first_input(edit, node, first) else None


def _returns_first_input(edit: GraphEdit, node: ir.Node, first: ir.Value) -> bool:
    facts, result = edit.facts, node.outputs[0]
    same_shape = facts.shape(first) is not None and facts.shape(first) == facts.shape(result)
    match node.op_type:
        case "Identity":
            same = True
        case "Cast":
            same = first.dtype is not None and first.dtype == result.dtype
        case "Reshape" | "Expand" | "Tile":
            same = same_shape
        case "Transpose":
            perm = integers(node, "perm", ())
            same = bool(perm) and list(perm) == sorted(perm)
        case "Slice":
            steps = facts.numbers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
            same = same_shape and steps is not None and set(steps) == {1}
        case "Pad":
            pads = facts.numbers(node.inputs[1]) if len(node.inputs) > 1 else None
            same = pads is not None and not any(pads)
        case _:
            same = node.op_type == "Concat" and len(node.inputs) == 1
    return same


def _other_operand(edit: GraphEdit, node: ir.Node) -> ir.Value | None:
    """The operand that comes out, where the other one is neutral and does not make the result larger."""
    neutral = _NEUTRAL[node.op_type]
    for index in (1, 0) if node.op_type in _COMMUTES else (1,):
        other, shape = node.inputs[1 - index], edit.facts.shape(node.inputs[1 - index])
        keeps_shape = shape is not None and broadcast([shape, edit.facts.shape(node.inputs[index])]) == shape
        if other is not None and keeps_shape and _filled_with(node.inputs[index]) == neutral:
            return other
    return None


def _filled_with(value: ir.Value | None) -> float | None:
    """The number that stands everywhere in ``value``; ``None``: not one number, or not known."""
    array = small_constant(value)
    if array is not None and array.size and array.dtype.kind in "fiub" and np.all(array == array.flat[0]):
        return float(array.flat[0])
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "ConstantOfShape":
        filler = node.attributes.get("value")
        return 0.0 if filler is None else float(filler.as_tensor().numpy().reshape(-1)[0])
    return _filled_with(node.inputs[0]) if node.op_type in _MOVING and node.op_type != "Cast" else _cast_fill(node)


def _cast_fill(node: ir.Node) -> float | None:
    filled = _filled_with(node.inputs[0]) if node.op_type == "Cast" else None
    return filled if filled in (0.0, 1.0) else None


def _join_with_previous(edit: GraphEdit, node: ir.Node) -> None:
    previous = producer_of(node.inputs[0], node.op_type)
    if previous is None or previous.inputs[0] is None:
        return
    if node.op_type == "Transpose":
        first, second = (integers(one, "perm", ()) for one in (previous, node))
        if not first or not second:
            return
        node.attributes["perm"] = ir.AttrInt64s("perm", [first[axis] for axis in second])
    else:
        # A zero copies an axis of the input that is not there any more.
        wanted = edit.facts.numbers(node.inputs[1])
        if wanted is None or 0 in wanted:
            return
    edit.set_input(node, 0, previous.inputs[0])

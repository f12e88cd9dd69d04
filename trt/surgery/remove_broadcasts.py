"""Expand and Tile in front of element-wise operators, which broadcast by themselves.

    Mul(x [B,C,T,F], Expand(mask [B,1,T,1], [B,C,T,F]))  ->  Mul(x, mask)

The smaller tensor is followed until an operator gives the shape that it gave before. Where one does not
broadcast, or the graph ends, the Expand stays.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from nemotrt.trt.surgery.axis_size import Shape
from nemotrt.trt.surgery.graph_edit import GraphEdit
from nemotrt.trt.surgery.shape_rules import BROADCASTING, ONE, shapes_from
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_ELEMENT_BY_ELEMENT = frozenset({"Cast", "Identity", "Neg", "Not", "Relu", "Sigmoid", "Tanh", "Transpose", "Unsqueeze"})


class RemoveBroadcasts(SurgeryPass):
    """Leaves broadcasting to the operators that do it anyway."""

    name: ClassVar[str] = "remove-broadcasts"
    does: ClassVar[str] = "removes Expand and Tile in front of operators that broadcast by themselves"

    def rewrite(self, edit: GraphEdit) -> None:
        """In order, so that what an earlier one leaves small stays small."""
        for node in edit.nodes("Expand", "Tile"):
            small, large = edit.facts.shape(node.inputs[0]), edit.facts.shape(node.outputs[0])
            if small is None or large is None or node.inputs[0] is None:
                edit.refuse(node, "its shapes are not known")
                continue
            if node.op_type == "Tile" and any(a not in (ONE, b) for a, b in zip(small, large, strict=True)):
                edit.refuse(node, "it repeats more than one element")
                continue
            changed, reason = _changed_shapes(edit, node.outputs[0], small)
            if reason:
                edit.refuse(node, reason)
                continue
            edit.replace(node.outputs[0], node.inputs[0])
            edit.facts.shapes.update(changed)


def _changed_shapes(edit: GraphEdit, value: ir.Value, shape: Shape) -> tuple[dict[ir.Value, Shape], str | None]:
    """What becomes smaller behind ``value`` if it has ``shape``, or the reason why it must not."""
    changed = {value: shape}
    for node in edit.graph:
        if changed.keys().isdisjoint(node.inputs):
            continue
        new, old = _new_shape(edit, node, changed), edit.facts.shape(node.outputs[0])
        if new is None or old is None:
            return {}, f"{node.op_type} {node.name} needs its shape"
        if new != old:
            changed[node.outputs[0]] = new
    if any(one.is_graph_output() for one in changed):
        return {}, "an output of the graph has its shape"
    return changed, None


def _new_shape(edit: GraphEdit, node: ir.Node, changed: dict[ir.Value, Shape]) -> Shape | None:
    if node.domain or node.op_type not in BROADCASTING | _ELEMENT_BY_ELEMENT:
        return None
    old = [edit.facts.shape(value) for value in node.inputs]
    new = [
        changed.get(value, shape) if value is not None else None for value, shape in zip(node.inputs, old, strict=True)
    ]
    keeps_rank = all(a is not None and b is not None and len(a) == len(b) for a, b in zip(old, new, strict=True))
    if node.op_type in BROADCASTING or keeps_rank:
        return shapes_from(node, new, edit.facts)[0]
    return None

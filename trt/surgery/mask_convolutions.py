"""Depthwise convolutions over frames must not see padding: else the text of a clip depends on its neighbours.

    glu [B,D,T] -> Where(frames < encoded_lengths, glu, 0) -> depthwise convolution

A mask that is missing is reported. It is added only where it is asked for, because that changes what padded rows give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.facts import attribute
from nemotrt.trt.surgery.graph_edit import GraphEdit, small_constant
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_BETWEEN = frozenset({"Pad", "Transpose", "Identity", "Cast", "Concat"})


@dataclass(frozen=True)
class MaskConvolutions(SurgeryPass):
    """Reports unmasked depthwise convolutions over frames; with ``add`` it masks them."""

    add: bool = False

    name: ClassVar[str] = "mask-convolutions"
    does: ClassVar[str] = (
        "reports convolutions over frames that see padding; masks them only if it is asked for by name"
    )
    opset: ClassVar[int] = 15

    @property
    def keeps_padding(self) -> bool:
        """Not where masks are added: that is what they are for."""
        return not self.add

    def rewrite(self, edit: GraphEdit) -> None:
        """The mask comes from the graph's own lengths, its only integer output [B]."""
        lengths = [
            value for value in edit.graph.outputs if value.dtype == ir.DataType.INT64 and len(value.shape or ()) == 1
        ]
        masks: dict[tuple[str, ...], ir.Value] = {}
        for node in edit.nodes("Conv"):
            if not _is_over_frames(edit, node) or _is_masked(node.inputs[0]):
                continue
            if not self.add:
                edit.refuse(node, f"it sees padding; to mask it: --pass {self.name}")
            elif len(lengths) != 1:
                edit.refuse(node, f"{len(lengths)} outputs could be the lengths")
            else:
                _mask(edit, node, lengths[0], masks)


def _is_over_frames(edit: GraphEdit, conv: ir.Node) -> bool:
    """A depthwise convolution of [B,D,T] that neither strides nor has one tap only."""
    kernel = edit.facts.shape(conv.inputs[1])
    if kernel is None or len(kernel) != 3 or kernel[2].number in (None, 1) or attribute(conv, "group", 1) == 1:
        return False
    return attribute(conv, "group", 1) == kernel[0].number


def _is_masked(value: ir.Value | None) -> bool:
    """Whether a selection or a product with truth values stands right before it."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _BETWEEN:
        value = node.inputs[-1] if node.op_type == "Concat" else node.inputs[0]
        node = None if value is None else value.producer()
    if node is None:
        return False
    if node.op_type == "Where":
        branches = (small_constant(one) for one in node.inputs[1:])
        return any(one is not None and not one.any() for one in branches)
    return node.op_type == "Mul" and any(_is_truth(one) for one in node.inputs)


def _is_truth(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("Unsqueeze", "Transpose"):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    source = None if node is None or node.op_type != "Cast" else node.inputs[0]
    return source is not None and source.dtype == ir.DataType.BOOL


def _mask(edit: GraphEdit, conv: ir.Node, lengths: ir.Value, masks: dict[tuple[str, ...], ir.Value]) -> None:
    x = conv.inputs[0]
    if x is None or not _is_made_before(edit, lengths, conv):
        edit.refuse(conv, "the lengths are made only later")
        return
    key = tuple(map(str, edit.facts.shape(x) or (str(x.name),)))
    if key not in masks:
        masks[key] = _valid(edit, x, lengths, before=conv)
    zero = edit.constant(np.zeros((), x.dtype.numpy() if x.dtype else np.float32))
    edit.set_input(conv, 0, edit.op("Where", [masks[key], x, zero], before=conv, like=x))


def _valid(edit: GraphEdit, x: ir.Value, lengths: ir.Value, *, before: ir.Node) -> ir.Value:
    """bool [B,1,T] of ``x`` [B,D,T]."""
    integer, one = ir.DataType.INT64, edit.constant(1)
    extent = edit.op("Shape", [x], before=before, like=integer, start=2, end=3)
    frames = edit.op("Squeeze", [extent, edit.constant([0])], before=before, like=integer)
    index = edit.op("Range", [edit.constant(0), frames, one], before=before, like=integer)
    column = edit.op("Unsqueeze", [lengths, edit.constant([1, 2])], before=before, like=integer)
    return edit.op("Less", [index, column], before=before, like=ir.DataType.BOOL)


def _is_made_before(edit: GraphEdit, value: ir.Value, node: ir.Node) -> bool:
    producer = value.producer()
    order = {one: index for index, one in enumerate(edit.graph)}
    return producer is None or order[producer] < order[node]

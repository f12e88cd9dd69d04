"""A mask is applied once where it counts, and the mask of the scores is one sum for all layers.

    Mul(Relu(Conv1x1(Mul(x, m))), m)                        ->  Mul(Relu(Conv1x1(x)), m)      position by position
    Where(m, 0, Softmax(Where(m, -10000, s))) @ v           ->  (Softmax(s + bias) @ v) * seen

``bias`` is -10000 where ``m`` forbids, else 0; exp() of it is zero, so forbidden keys have no weight. Only a row that
sees no key at all is different: its weights were zero, and ``seen`` makes its result zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.axis_size import Shape
from nemotrt.trt.surgery.facts import attribute, integers
from nemotrt.trt.surgery.graph_edit import GraphEdit, only_reader, producer_of, small_constant
from nemotrt.trt.surgery.shape_rules import ONE, broadcast
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_BY_POSITION = frozenset({"Relu", "Sigmoid", "Tanh", "Neg", "LeakyRelu", "Elu", "Gelu"})
_LEAST, _MOST = 1e4, 1e30
"""What is added to a forbidden score: enough for exp() to be zero beside any other score, and far from infinity."""

_LIMIT = "no two attention scores of a row are 9000 apart"


@dataclass(frozen=True)
class _Attention:
    """The nodes of ``Where(mask, 0, Softmax(Where(mask, fill, scores))) @ v``."""

    fill: ir.Node
    softmax: ir.Node
    zero: ir.Node
    product: ir.Node
    mask: ir.Value
    scores: ir.Value
    filler: ir.Value


class ShareMasks(SurgeryPass):
    """Leaves one of several equal masks on a path, and turns selections in the attention into sums."""

    name: ClassVar[str] = "share-masks"
    does: ClassVar[str] = "applies a mask once where it was applied again and again, and adds one mask to all scores"

    def rewrite(self, edit: GraphEdit) -> None:
        """Products from the front, then every attention; what they share is written once."""
        for node in edit.nodes("Mul"):
            for index in (1, 0):
                mask, x = node.inputs[index], node.inputs[1 - index]
                if mask is not None and x is not None and _is_zero_or_one(mask) and _masked_again(edit, node, mask):
                    edit.replace(node.outputs[0], x)
                    break
        shared: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]] = {}
        for node in edit.nodes("Softmax"):
            attention = _attention(edit, node)
            if attention is not None:
                _add_mask(edit, attention, shared)


def _is_zero_or_one(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in ("Unsqueeze", "Transpose", "Squeeze", "Reshape", "Slice"):
        value = node.inputs[0] or value
        node = value.producer()
    return node is not None and node.op_type == "Cast" and value.dtype is not None and _is_bool(node.inputs[0])


def _is_bool(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.BOOL


def _masked_again(edit: GraphEdit, node: ir.Node, mask: ir.Value) -> bool:
    """Whether all that reads the product works position by position and ends in a product with the same mask."""
    shape, value = edit.facts.shape(mask), node.outputs[0]
    if shape is None or edit.facts.shape(value) is None:
        return False
    keeps_shape = edit.facts.shape(node.inputs[0]) == edit.facts.shape(node.inputs[1]) or (
        edit.facts.shape(value) in [edit.facts.shape(one) for one in node.inputs if one is not mask]
    )
    while keeps_shape:
        reader = only_reader(value)
        if reader is None or reader.domain:
            return False
        if reader.op_type == "Mul" and reader.inputs[0] is not reader.inputs[1] and mask in reader.inputs:
            return True
        if reader.op_type not in _BY_POSITION and not _is_pointwise(edit, reader, shape):
            return False
        value = reader.outputs[0]
    return False


def _is_pointwise(edit: GraphEdit, node: ir.Node, mask: Shape) -> bool:
    """A convolution that mixes channels only, where the mask is the same for all of them."""
    kernel = edit.facts.shape(node.inputs[1]) if node.op_type == "Conv" else None
    if kernel is None or any(size != ONE for size in kernel[2:]):
        return False
    whole = not any(integers(node, "pads", ())) and set(integers(node, "strides", (1,))) == {1}
    channels = mask[-(len(kernel) - 1)] if len(mask) >= len(kernel) - 1 else ONE
    return whole and channels == ONE and "auto_pad" not in node.attributes


def _attention(edit: GraphEdit, softmax: ir.Node) -> _Attention | None:
    fill, zero = producer_of(softmax.inputs[0], "Where"), only_reader(softmax.outputs[0])
    if fill is None or zero is None or zero.op_type != "Where" or zero.inputs[2] is not softmax.outputs[0]:
        return None
    mask, filler, scores = fill.inputs
    nothing, number = small_constant(zero.inputs[1]), small_constant(filler)
    product = only_reader(zero.outputs[0])
    shape = edit.facts.shape(scores)
    same_mask = mask is zero.inputs[0] and nothing is not None and not nothing.any()
    if not same_mask or mask is None or filler is None or scores is None or number is None or number.size != 1:
        return None
    if attribute(softmax, "axis", -1) not in (-1, -1 if shape is None else len(shape) - 1):
        edit.refuse(softmax, "it is not over the last axis")
    elif only_reader(fill.outputs[0]) is not softmax:
        edit.refuse(fill, "somebody else reads the scores")
    elif not -_MOST < float(number.reshape(-1)[0]) <= -_LEAST:
        edit.refuse(fill, f"{float(number.reshape(-1)[0]):g} is no number that can be added to forbid a key")
    elif product is None or product.op_type != "MatMul" or product.inputs[0] is not zero.outputs[0]:
        edit.refuse(zero, "the weights are read by something else than the product with the values")
    elif shape is None or broadcast([shape, edit.facts.shape(mask)]) != shape:
        edit.refuse(fill, "the mask is larger than the scores, or their shapes are not known")
    else:
        return _Attention(fill, softmax, zero, product, mask, scores, filler)
    return None


def _add_mask(
    edit: GraphEdit, found: _Attention, shared: dict[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]
) -> None:
    like = found.scores
    edit.facts.limit(_LIMIT)
    if (found.mask, found.filler) not in shared:
        zero = edit.constant(np.zeros((), like.dtype.numpy() if like.dtype else np.float32))
        bias = edit.op("Where", [found.mask, found.filler, zero], before=found.fill, like=like)
        allowed = edit.op("Not", [found.mask], before=found.fill, like=ir.DataType.BOOL)
        numbers = edit.op("Cast", [allowed], before=found.fill, like=like, to=int(like.dtype or ir.DataType.FLOAT))
        shared[found.mask, found.filler] = bias, _largest_of_row(edit, numbers, before=found.fill)
    bias, seen = shared[found.mask, found.filler]
    edit.replace(found.fill.outputs[0], edit.op("Add", [found.scores, bias], before=found.fill, like=like))
    edit.replace(found.zero.outputs[0], found.softmax.outputs[0])
    after = ir.node("Mul", [found.product.outputs[0], seen], name=f"{found.product.name}.seen")
    after.outputs[0].name, after.outputs[0].type = (
        f"{found.product.outputs[0].name}.seen",
        found.product.outputs[0].type,
    )
    edit.graph.insert_after(found.product, after)
    edit.replace(found.product.outputs[0], after.outputs[0])
    after.replace_input_with(0, found.product.outputs[0])


def _largest_of_row(edit: GraphEdit, numbers: ir.Value, *, before: ir.Node) -> ir.Value:
    if edit.opset >= 18:
        return edit.op("ReduceMax", [numbers, edit.constant([-1])], before=before, like=numbers, keepdims=1)
    return edit.op("ReduceMax", [numbers], before=before, like=numbers, axes=[-1], keepdims=1)

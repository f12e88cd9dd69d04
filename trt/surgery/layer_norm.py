"""A layer norm that is spelled out becomes one operator.

d = x - mean(x);   d / sqrt(mean(d * d) + epsilon) * scale + bias        ->   LayerNormalization(x, scale, bias)
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from nemotrt.trt.surgery.facts import integers
from nemotrt.trt.surgery.graph_edit import GraphEdit, is_weight, only_reader, producer_of, small_constant
from nemotrt.trt.surgery.surgery_pass import SurgeryPass


class FuseLayerNorm(SurgeryPass):
    """Recognizes the mean, the variance, and what follows them."""

    name: ClassVar[str] = "fuse-layer-norm"
    does: ClassVar[str] = "writes a layer norm that is spelled out as LayerNormalization"
    opset: ClassVar[int] = 17

    def rewrite(self, edit: GraphEdit) -> None:
        """From the division backwards to x, then forward to scale and bias."""
        for node in edit.nodes("Div"):
            root = producer_of(node.inputs[1], "Sqrt")
            if root is None:
                continue
            epsilon, variance = _sum_with_constant(producer_of(root.inputs[0], "Add"))
            x = _normalized(edit, node, variance)
            if epsilon is None or x is None:
                edit.refuse(node, "not the last axis of one value, less its mean, by its own spread")
                continue
            _fuse(edit, node, x, epsilon)


def _sum_with_constant(add: ir.Node | None) -> tuple[float | None, ir.Value | None]:
    if add is None:
        return None, None
    for constant, other in ((add.inputs[1], add.inputs[0]), (add.inputs[0], add.inputs[1])):
        array = small_constant(constant)
        if array is not None and array.size == 1:
            return float(array.reshape(-1)[0]), other
    return None, None


def _normalized(edit: GraphEdit, division: ir.Node, variance: ir.Value | None) -> ir.Value | None:
    """x, if ``division`` divides x - mean(x), and ``variance`` is the mean of its square."""
    deviation = producer_of(division.inputs[0], "Sub")
    mean_of_square = producer_of(variance, "ReduceMean")
    if deviation is None or mean_of_square is None or not _over_last_axis(edit, mean_of_square):
        return None
    square = None if mean_of_square.inputs[0] is None else mean_of_square.inputs[0].producer()
    if square is None or not _is_square_of(square, deviation.outputs[0]):
        return None
    x, mean = deviation.inputs[0], producer_of(deviation.inputs[1], "ReduceMean")
    return x if mean is not None and mean.inputs[0] is x and _over_last_axis(edit, mean) else None


def _is_square_of(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is value and node.inputs[1] is value
    exponent = small_constant(node.inputs[1]) if node.op_type == "Pow" else None
    return (
        exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2 and node.inputs[0] is value
    )


def _over_last_axis(edit: GraphEdit, node: ir.Node) -> bool:
    keeps, shape = node.attributes.get("keepdims"), edit.facts.shape(node.inputs[0])
    axes = integers(node, "axes", ()) or (edit.facts.numbers(node.inputs[1]) if len(node.inputs) > 1 else None)
    last = {-1} if shape is None else {-1, len(shape) - 1}
    return axes is not None and len(axes) == 1 and axes[0] in last and (keeps is None or keeps.as_int() == 1)


def _fuse(edit: GraphEdit, division: ir.Node, x: ir.Value, epsilon: float) -> None:
    shape = edit.facts.shape(x)
    scaled, scale = _by_vector(edit, division, "Mul", width=None if shape is None else shape[-1].number)
    if scale is None:
        edit.refuse(division, "no scale of the width of the last axis follows it")
        return
    end, bias = _by_vector(edit, scaled, "Add", width=None if shape is None else shape[-1].number)
    inputs = [x, scale, bias] if bias is not None else [x, scale]
    norm = edit.op("LayerNormalization", inputs, before=end, like=x, axis=-1, epsilon=epsilon)
    edit.replace(end.outputs[0], norm)


def _by_vector(edit: GraphEdit, node: ir.Node, op_type: str, *, width: int | None) -> tuple[ir.Node, ir.Value | None]:
    """The next node and its other operand, if it is a vector of the last axis; else ``node`` itself."""
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != op_type or reader.domain:
        return node, None
    other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
    shape = edit.facts.shape(other)
    if other is None or not is_weight(other) or width is None or shape is None or len(shape) != 1:
        return node, None
    return (reader, other) if shape[0].number == width else (node, None)

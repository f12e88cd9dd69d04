"""Batch norm behind a convolution becomes part of its weights.

gamma (conv(x) - mean) / sqrt(variance + epsilon) + beta   =   (factor * W) x + (factor * (b - mean) + beta)
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.facts import attribute
from nemotrt.trt.surgery.graph_edit import Array, GraphEdit, is_weight, only_reader, producer_of
from nemotrt.trt.surgery.surgery_pass import SurgeryPass


class FoldBatchNorm(SurgeryPass):
    """Scales the kernel and moves the bias, one tensor at a time when the file is written."""

    name: ClassVar[str] = "fold-batch-norm"
    does: ClassVar[str] = "makes a batch norm part of the convolution in front of it"

    def rewrite(self, edit: GraphEdit) -> None:
        """Where nobody else reads the convolution."""
        for node in edit.nodes("BatchNormalization"):
            conv = producer_of(node.inputs[0], "Conv")
            if conv is None:
                continue
            reason = _why_not(node, conv)
            if reason is not None:
                edit.refuse(node, reason)
                continue
            _fold(edit, node, conv)


def _why_not(norm: ir.Node, conv: ir.Node) -> str | None:
    if only_reader(conv.outputs[0]) is not norm:
        return "somebody else reads the convolution"
    if attribute(norm, "training_mode", 0) or len(norm.outputs) > 1:
        return "it is in training"
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if not all(map(is_weight, (*norm.inputs[1:], conv.inputs[1]))) or (bias is not None and not is_weight(bias)):
        return "its statistics or the kernel are computed"
    return None


def _fold(edit: GraphEdit, norm: ir.Node, conv: ir.Node) -> None:
    gamma, beta, mean, variance = (value for value in norm.inputs[1:] if value is not None)
    kernel, found = conv.inputs[1], norm.attributes.get("epsilon")
    epsilon = 1e-5 if found is None else found.as_float()
    if kernel is None:
        return

    def factor(scale: Array, spread: Array) -> Array:
        return np.asarray(scale.astype(np.float64) / np.sqrt(spread.astype(np.float64) + epsilon))

    def scaled(weight: Array, scale: Array, spread: Array) -> Array:
        return weight * factor(scale, spread).reshape(-1, *[1] * (weight.ndim - 1))

    def moved(shift: Array, center: Array, scale: Array, spread: Array, bias: Array | float = 0.0) -> Array:
        return (bias - center) * factor(scale, spread) + shift

    old = [conv.inputs[2]] if len(conv.inputs) > 2 and conv.inputs[2] is not None else []
    weight = edit.computed_weight([kernel, gamma, variance], scaled)
    bias = edit.computed_weight([beta, mean, gamma, variance, *old], moved)
    attributes = dict(conv.attributes)
    new = ir.Node("", "Conv", [conv.inputs[0], weight, bias], list(attributes.values()), name=f"{conv.name}.normed")
    new.outputs[0].name, new.outputs[0].type = f"{conv.outputs[0].name}.normed", norm.outputs[0].type
    edit.graph.insert_before(norm, new)
    edit.replace(norm.outputs[0], new.outputs[0])

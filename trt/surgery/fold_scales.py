"""A constant factor is moved back along sums, products and reshapes until weights take it up.

(x W + b) * 0.5                              ->  x (W * 0.5) + (b * 0.5)
((q + u) k + shift((q + v) p)) / sqrt(d_k)   ->  the same with W_q, b_q, u and v divided
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.fold_pads import pads_with_zeros
from nemotrt.trt.surgery.graph_edit import Array, GraphEdit, is_weight, small_constant
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_MOVING = frozenset({"Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


class FoldScales(SurgeryPass):
    """Scales weights instead of activations."""

    name: ClassVar[str] = "fold-scales"
    does: ClassVar[str] = "moves constant factors, such as 1/sqrt(d_k) and the half of a feed-forward, into weights"

    def rewrite(self, edit: GraphEdit) -> None:
        """Every product with one number, from the front."""
        for node in edit.nodes("Mul", "Div"):
            found = _factor(node)
            if found is None:
                continue
            value, factor = found
            plan = _Plan(scaled={value})
            reason = plan.absorb(value) or plan.read_elsewhere(node)
            if reason is not None:
                edit.refuse(node, reason)
                continue
            for user, index in plan.weights:
                weight = user.inputs[index]
                if weight is not None:
                    edit.set_input(user, index, edit.computed_weight([weight], lambda array, by=factor: array * by))
            edit.replace(node.outputs[0], value)


def _factor(node: ir.Node) -> tuple[ir.Value, Array] | None:
    """The other operand and the factor, where one is a single floating-point number."""
    for index in (1, 0) if node.op_type == "Mul" else (1,):
        number, value = small_constant(node.inputs[index]), node.inputs[1 - index]
        if number is None or number.size != 1 or number.ndim > 1 or number.dtype.kind != "f" or value is None:
            continue
        factor = number.reshape(()).astype("float64")
        if not is_weight(value) and np.isfinite(factor) and factor != 0:
            return value, 1.0 / factor if node.op_type == "Div" else factor
    return None


@dataclass
class _Plan:
    """The inputs of nodes that are weights to scale, and all values that become scaled on the way."""

    scaled: set[ir.Value]
    weights: list[tuple[ir.Node, int]] = field(default_factory=list)
    visited: set[ir.Node] = field(default_factory=set)

    def absorb(self, value: ir.Value) -> str | None:
        """Find the weights behind ``value``; the reason why it cannot be done."""
        self.scaled.add(value)
        node = value.producer()
        if node in self.visited:
            return None
        if node is None or node.domain:
            return f"the factor would reach {value.name}"
        self.visited.add(node)
        if node.op_type in ("MatMul", "Mul", "Conv"):
            return self._one_factor(node)
        if node.op_type in ("Add", "Sub"):
            return self._input(node, 0) or self._input(node, 1)
        if node.op_type in _MOVING or (node.op_type == "Pad" and pads_with_zeros(node)):
            return self._input(node, 0)
        return f"the factor would have to pass {node.op_type} {node.name}"

    def read_elsewhere(self, end: ir.Node) -> str | None:
        """A scaled value that somebody reads unscaled."""
        for value in self.scaled:
            others = {user for user, _ in value.uses() if user.op_type != "Shape"} - self.visited - {end}
            if value.is_graph_output() or others:
                return f"{value.name} is read elsewhere"
        return None

    def _one_factor(self, node: ir.Node) -> str | None:
        constants = [index for index in (1, 0) if is_weight(node.inputs[index])]
        if node.op_type == "Conv":
            if 1 not in constants or (len(node.inputs) > 2 and not is_weight(node.inputs[2])):
                return "the convolution has computed weights"
            self.weights += [(node, index) for index in (1, 2)[: len(node.inputs) - 1]]
            return None
        if constants:
            self.weights.append((node, constants[0]))
            return None
        if node.op_type == "Mul" or node.inputs[0] is node.inputs[1]:
            return f"the factor would have to pass {node.op_type} {node.name}"
        return self._input(node, 0)

    def _input(self, node: ir.Node, index: int) -> str | None:
        value = node.inputs[index]
        if value is None:
            return f"{node.op_type} {node.name} lacks an input"
        if is_weight(value):
            if (node, index) not in self.weights:
                self.weights.append((node, index))
            return None
        return self.absorb(value)

"""What distinguishes two nodes that should be one: operator, attributes, weights.

Weights are read one at a time and released. A weight that differs only by the rounding of its type is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from nemotrt.trt.half_types import release

ROUNDING = 2.0**-8
"""Largest difference, in units of the largest element, that storing a weight in another type explains: bfloat16 keeps
8 bits."""


def node_differences(reference: ir.Node, candidate: ir.Node) -> tuple[str, ...]:
    """What ``candidate`` has otherwise, in words; empty where both are the same node."""
    if reference.op_type != candidate.op_type:
        return (f"the operator is {candidate.op_type}, {reference.op_type} in the reference",)
    return (*_attribute_differences(reference, candidate), *_weight_differences(reference, candidate))


def _attribute_differences(reference: ir.Node, candidate: ir.Node) -> Iterator[str]:
    left, right = (
        {name: attribute.value for name, attribute in node.attributes.items()} for node in (reference, candidate)
    )
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            yield f"attribute {name} is {right.get(name, 'absent')}, {left.get(name, 'absent')} in the reference"


def _weight_differences(reference: ir.Node, candidate: ir.Node) -> Iterator[str]:
    for left, right in zip(reference.inputs, candidate.inputs, strict=False):
        if left is None or right is None or left.const_value is None or right.const_value is None:
            continue
        yield from _tensor_difference(str(right.name), left.const_value, right.const_value)


def _tensor_difference(name: str, left: ir.TensorProtocol, right: ir.TensorProtocol) -> Iterator[str]:
    if tuple(left.shape.numpy()) != tuple(right.shape.numpy()):
        yield f"weight {name} is {right.shape}, {left.shape} in the reference"
        return
    a, b = (np.asarray(tensor.numpy(), np.float64) for tensor in (left, right))
    release(left)
    release(right)
    limit = 0.0 if left.dtype == right.dtype else ROUNDING * float(np.abs(a).max(initial=0.0))
    wrong = ~(np.abs(a - b) <= limit)
    if wrong.any():
        yield f"weight {name} differs in {int(wrong.sum()):,} of {wrong.size:,} elements"

"""Small questions about a graph that several rules ask."""

from __future__ import annotations

import onnx_ir as ir

MOVES = frozenset(
    {
        *("Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze"),
        *("Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operators that move values and do not compute with them."""


def producer(of: ir.Value | ir.Node | None, op_type: str) -> ir.Node | None:
    """The node that makes a value, or a node's first input, if it is of this type."""
    value = of.inputs[0] if isinstance(of, ir.Node) else of
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def is_float(value: ir.Value | None) -> bool:
    """Whether this is a tensor of floating-point numbers."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()

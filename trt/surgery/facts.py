"""What is known of the values of a graph: shapes, and the content of small integer tensors; and how to read a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nemotrt.trt.surgery.axis_size import Shape, Size

CONTENT_ELEMENTS = 128
"""Integer tensors up to here are followed by content: shapes, and what shapes are computed from."""

INTEGERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


@dataclass
class Facts:
    """``shapes`` by value; ``contents`` in row-major order, of vectors and scalars; booleans are 0 and 1.

    ``limits`` are in words: what has to hold for the facts to hold. ``meetings`` are different sizes that an
    element-wise operator takes for one.
    """

    shapes: dict[ir.Value, Shape] = field(default_factory=dict)
    contents: dict[ir.Value, Shape] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    meetings: list[tuple[Size, Size]] = field(default_factory=list)

    def shape(self, value: ir.Value | None) -> Shape | None:
        """``None``: nothing is known, not even the rank."""
        return None if value is None else self.shapes.get(value)

    def content(self, value: ir.Value | None) -> Shape | None:
        """``None``: not a small integer tensor, or an unknown one."""
        return None if value is None else self.contents.get(value)

    def numbers(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The content, where all of it is numbers."""
        found = self.content(value)
        numbers = None if found is None else [size.number for size in found]
        return None if numbers is None or None in numbers else tuple(n for n in numbers if n is not None)

    def limit(self, words: str) -> None:
        """Write down what was taken for granted."""
        if words not in self.limits:
            self.limits.append(words)


def constant_of(value: ir.Value | None, *, at_most: int) -> NDArray[np.generic] | None:
    """The array of a constant of no more than ``at_most`` elements. What an input may override is no constant."""
    tensor = None if value is None or value.is_graph_input() else value.const_value
    if tensor is None or tensor.size > at_most:
        return None
    return np.asarray(tensor.numpy())


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def integers(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An attribute that is a list of integers."""
    found = node.attributes.get(name)
    return tuple(default if found is None else found.as_ints())

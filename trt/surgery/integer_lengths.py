"""Lengths that are computed as floats are computed as integers, exact for every length.

    Cast(length) + 1 + 1 - 3 -> / 2 -> Floor -> + 1      ->      (length + 1) / 2

Float32 counts to 2^24 only, and half precision to 2048: there every second length is wrong. Integer division cuts
towards zero as a Cast does, and is a Floor where nothing is negative: a constant below zero is moved behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.graph_edit import GraphEdit, small_constant
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


@dataclass(frozen=True)
class _Whole:
    """``base + offset``; without a base the number ``offset``."""

    base: ir.Value | None
    offset: int


class IntegerLengths(SurgeryPass):
    """Finds floats that are whole numbers, and computes them as int64."""

    name: ClassVar[str] = "integer-lengths"
    does: ClassVar[str] = (
        "computes lengths as integers: float lengths are wrong where the graph is cast to half precision"
    )

    def rewrite(self, edit: GraphEdit) -> None:
        """At every place where floats become integers or truth values."""
        writer = _Writer(edit)
        for node in edit.nodes("Cast", *_COMPARISONS):
            value = node.inputs[0]
            if value is None or value.dtype not in _FLOATS:
                continue
            if node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.INT64:
                whole = writer.truncated(value, node)
                if whole is not None:
                    edit.replace(node.outputs[0], writer.written(whole, node))
            elif node.op_type in _COMPARISONS:
                _compare_integers(edit, writer, node)

    def missed(self, edit: GraphEdit) -> tuple[str, ...]:
        """No whole number is left that is cast from float."""
        writer = _Writer(edit)
        casts = [n for n in edit.nodes("Cast") if n.outputs[0].dtype == ir.DataType.INT64]
        return tuple(f"{n.name} counts in floats" for n in casts if n.inputs[0] and writer.is_whole(n.inputs[0]))


def _compare_integers(edit: GraphEdit, writer: _Writer, node: ir.Node) -> None:
    wholes = [writer.whole(value, node) for value in node.inputs]
    if any(whole is not None and whole.base is not None for whole in wholes):
        if None in wholes:
            edit.refuse(node, "it compares a length with a number that may have a fraction")
            return
        for index, whole in enumerate(wholes):
            if whole is not None:
                edit.set_input(node, index, writer.written(whole, node))


class _Writer:
    """Whole numbers of one graph, each written once."""

    def __init__(self, edit: GraphEdit) -> None:
        self._edit = edit
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def truncated(self, value: ir.Value, before: ir.Node) -> _Whole | None:
        """``value`` cut towards zero."""
        division = value.producer()
        if division is not None and division.op_type == "Div":
            quotient = self._operands(division, before)
            return None if quotient is None else self._divided(*quotient, before, floor=False)
        return self.whole(value, before)

    def is_whole(self, value: ir.Value) -> bool:
        """Whether :meth:`whole` would find something, without writing."""
        node = value.producer()
        if node is None or node.domain:
            return False
        if node.op_type == "Cast":
            return _is_count(node.inputs[0])
        if node.op_type in ("Add", "Sub"):
            return all(v is not None and (_number(v) is not None or self.is_whole(v)) for v in node.inputs)
        return False

    def whole(self, value: ir.Value | None, before: ir.Node) -> _Whole | None:
        """``value``, if it has no fraction for any length."""
        number, node = _number(value), None if value is None else value.producer()
        if number is not None:
            return _Whole(None, number)
        match node.op_type if node is not None and not node.domain else None, node:
            case "Cast", ir.Node(inputs=[source]):
                return _Whole(source, 0) if _is_count(source) else None
            case "Floor" | "Identity", ir.Node() as moved:
                return self._floored(moved, before)
            case "Add" | "Sub", ir.Node() as total:
                return self._sum(total, before)
            case _:
                return None

    def written(self, whole: _Whole, before: ir.Node) -> ir.Value:
        """The int64 value."""
        if whole.base is None:
            return self._edit.constant(whole.offset)
        if whole.offset == 0:
            return whole.base
        return self._op("Add", whole.base, whole.offset, before)

    def _floored(self, node: ir.Node, before: ir.Node) -> _Whole | None:
        value = node.inputs[0]
        division = None if value is None else value.producer()
        if node.op_type == "Floor" and division is not None and division.op_type == "Div":
            quotient = self._operands(division, before)
            return None if quotient is None else self._divided(*quotient, before, floor=True)
        return self.whole(value, before)

    def _sum(self, node: ir.Node, before: ir.Node) -> _Whole | None:
        a, b = (self.whole(value, before) for value in node.inputs)
        sign = 1 if node.op_type == "Add" else -1
        if a is None or b is None or b.base is not None:
            return None
        return _Whole(a.base, a.offset + sign * b.offset)

    def _operands(self, division: ir.Node, before: ir.Node) -> tuple[_Whole, int] | None:
        dividend, divisor = self.whole(division.inputs[0], before), _number(division.inputs[1])
        return (dividend, divisor) if dividend is not None and divisor is not None and divisor > 0 else None

    def _divided(self, dividend: _Whole, divisor: int, before: ir.Node, *, floor: bool) -> _Whole | None:
        if dividend.base is None:
            return None
        if floor and dividend.base not in self._made.values():
            self._edit.facts.limit(f"{dividend.base.name} >= 0")
        # base + offset = base + rest + divisor * moved, and base + rest is not negative.
        moved, rest = divmod(dividend.offset, divisor) if floor else (0, dividend.offset)
        inner = self.written(_Whole(dividend.base, rest), before)
        return _Whole(self._op("Div", inner, divisor, before), moved)

    def _op(self, op_type: str, value: ir.Value, number: int, before: ir.Node) -> ir.Value:
        key = (op_type, value, number)
        if key not in self._made:
            inputs = [value, self._edit.constant(number)]
            self._made[key] = self._edit.op(op_type, inputs, before=before, like=ir.DataType.INT64)
        return self._made[key]


def _is_count(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.INT64


def _number(value: ir.Value | None) -> int | None:
    array = small_constant(value)
    if array is None or array.ndim or array.dtype.kind != "f":
        return None
    number = float(array)
    return int(number) if np.isfinite(number) and number.is_integer() else None

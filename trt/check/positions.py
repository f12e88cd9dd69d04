"""The position table: how many frames it has rows for, read from the graph.

A table is a constant that is sliced by the number of frames T, from s(T) to e(T), both linear in T. So T is at most
where s(T) = 0 or e(T) = rows. A slice beyond the table is silently shorter, and the next addition fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import onnx_ir as ir

from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.patterns import is_float
from nemotrt.trt.check.provenance import Source
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject

_MOVES = ("Cast", "Gather", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_T = (1, 0)


class PositionsLimit(Rule):
    """Rows of the table against the longest input of the contract."""

    id = "positions-limit"
    severity = "error"
    reason = "audio beyond the position table fails with a broadcast error, 400 s into a recording"
    fix = "export with a longer table (nemotrt export --max-seconds), or lower the limit of the contract"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding; without a contract a note of the limit."""
        limits = {table: limit for node in subject.graph for table, limit in _limit(node, subject)}
        if not limits:
            return
        table = min(limits, key=lambda name: limits[name])
        what = f"the position table ends at {limits[table]} encoder frames"
        if subject.meta is None:
            yield self.found(subject, what, places=(table,), severity="note", fix="keep clips below it")
        elif limits[table] < (promised := subject.meta.encoder.max_encoder_frames):
            yield self.found(subject, f"{what}, the contract promises {promised}", places=(table,))


def _limit(node: ir.Node, subject: Subject) -> Iterator[tuple[str, int]]:
    """The table that the node slices by a number of frames, and the most frames it can give."""
    if node.op_type != "Slice" or not is_float(node.inputs[0]) or len(node.inputs) < 4:
        return
    table, start, end, axes = node.inputs[:4]
    if table is None or table.shape is None or subject.sources[table] != Source.CONSTANT:
        return
    axis, rows = _constant(axes), None
    if axis is not None and subject.sources[node.outputs[0]] == Source.SHAPE:
        rows = table.shape[axis]
    if isinstance(rows, int) and rows > 1:
        (falls, first), (rises, last) = _linear(start), _linear(end)
        limits = [first // -falls] if falls < 0 else []
        limits += [(rows - last) // rises] if rises > 0 else []
        if limits:
            yield table.name or "", min(limits)


def _linear(value: ir.Value | None) -> tuple[int, int]:
    """``a``, ``b`` of a T + b; what is neither constant nor made of sums and products is T itself."""
    number = _constant(value)
    if number is not None:
        return 0, number
    node = None if value is None else value.producer()
    if node is None or not node.inputs:
        return _T
    if node.op_type in _MOVES and node.inputs[0] is not None and node.inputs[0].producer() is not None:
        return _linear(node.inputs[0])
    if node.op_type not in ("Add", "Sub", "Mul"):
        return _T
    (a, b), (c, d) = (_linear(operand) for operand in node.inputs[:2])
    if node.op_type == "Mul":
        return (a * d, b * d) if c == 0 else (c * b, d * b)
    return (a + c, b + d) if node.op_type == "Add" else (a - c, b - d)


def _constant(value: ir.Value | None) -> int | None:
    """The value of an integer constant of one element."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or prod(tensor.shape.numpy()) != 1 or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return int(tensor.numpy().item())


RULES = (PositionsLimit(),)

"""Lengths that are computed as floating-point numbers.

Half precision has no odd numbers above 2048: where such a graph is cast, 1,941 of the lengths 1 to 6000 come out
wrong, the first at 2049 frames. Float32 is exact until 2^24.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.patterns import MOVES, is_float
from nemotrt.trt.check.provenance import Source
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject

_COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class LengthInFloat(Rule):
    """Arithmetic between an integer that became a float, and a count or a mask that is made of it."""

    id = "length-in-float"
    severity = "warning"
    reason = "half precision has no odd numbers above 2048: from 2049 frames on, lengths and masks are wrong"
    fix = "compute lengths in int64; or cast with nemotrt cast, which keeps this part in float32"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding; an error where the arithmetic is in half precision already."""
        ends = [value for node in subject.graph if _counts(node) for value in node.inputs if is_float(value)]
        arithmetic: dict[ir.Node, None] = {}
        for value in (*ends, *filter(is_float, subject.graph.outputs)):
            if value is not None and subject.sources[value] == Source.LENGTH:
                arithmetic |= dict.fromkeys(_arithmetic_before(value))
        if not arithmetic:
            return
        in_half = [node for node in arithmetic if any(value.dtype in _HALVES for value in node.outputs)]
        yield self.found(
            subject,
            f"lengths are computed in {'half precision' if in_half else 'floating point'}",
            places=(node.name for node in in_half or arithmetic),
            severity="error" if in_half else self.severity,
        )


def _counts(node: ir.Node) -> bool:
    """Whether the node makes an integer or a mask."""
    to_integer = node.op_type == "Cast" and not any(map(is_float, node.outputs))
    return to_integer or node.op_type in _COMPARISONS


def _arithmetic_before(value: ir.Value) -> list[ir.Node]:
    """Float arithmetic on the way back from ``value`` to a Cast from an integer; none if it does not come from one."""
    found: list[ir.Node] = []
    seen: set[ir.Node] = set()
    was_integer = False
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "Cast" and not is_float(node.inputs[0]):
            was_integer |= node.inputs[0] is not None and node.inputs[0].dtype != ir.DataType.BOOL
            continue
        if node.op_type not in MOVES and node.op_type not in ("Constant", "Where"):
            found.append(node)
        waiting.extend(one.producer() for one in node.inputs if is_float(one) and one is not None)
    return found[::-1] if was_integer else []


RULES = (LengthInFloat(),)

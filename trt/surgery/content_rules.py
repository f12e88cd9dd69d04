"""The content of a small integer tensor from those of the inputs: how shapes are taken apart and put together."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from nemotrt.trt.surgery.axis_size import Shape, Size
from nemotrt.trt.surgery.facts import CONTENT_ELEMENTS, INTEGERS, Facts
from nemotrt.trt.surgery.shape_rules import elements, shape_bounds

Rule = Callable[[ir.Node, Facts], Shape | None]


def content_of(node: ir.Node, facts: Facts) -> Shape | None:
    """The elements of the node's first output, a vector or a scalar; ``None`` where they cannot be told."""
    rule = None if node.domain else _RULES.get(node.op_type)
    shape = facts.shape(node.outputs[0])
    return None if rule is None or shape is None or len(shape) > 1 else rule(node, facts)


def _shape(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.shape(node.inputs[0])
    return None if shape is None else shape[slice(*shape_bounds(node, shape))]


def _same(node: ir.Node, facts: Facts) -> Shape | None:
    return facts.content(node.inputs[0])


def _cast(node: ir.Node, facts: Facts) -> Shape | None:
    source = node.inputs[0]
    is_integer = source is not None and source.dtype in INTEGERS
    narrows = node.outputs[0].dtype == ir.DataType.BOOL
    return facts.content(source) if is_integer and not narrows else None


def _gather(node: ir.Node, facts: Facts) -> Shape | None:
    data, indices = facts.content(node.inputs[0]), facts.numbers(node.inputs[1])
    if data is None or indices is None or len(facts.shape(node.inputs[0]) or ()) != 1:
        return None
    return tuple(data[index] for index in indices) if all(-len(data) <= i < len(data) for i in indices) else None


def _concat(node: ir.Node, facts: Facts) -> Shape | None:
    parts = [facts.content(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    return tuple(size for part in known for size in part) if len(known) == len(parts) else None


def _slice(node: ir.Node, facts: Facts) -> Shape | None:
    data = facts.content(node.inputs[0])
    start, end = (facts.numbers(value) for value in node.inputs[1:3])
    step = facts.numbers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    return data[start[0] : end[0] : step[0]] if data is not None and start and end and step else None


def _constant_of_shape(node: ir.Node, facts: Facts) -> Shape | None:
    count = elements(facts.content(node.inputs[0]) or (Size.unknown(),))
    filler = node.attributes.get("value")
    number = 0 if filler is None else int(filler.as_tensor().numpy().reshape(-1)[0])
    return None if count is None or count > CONTENT_ELEMENTS else (Size.of(number),) * count


def _binary(node: ir.Node, facts: Facts) -> Shape | None:
    pair = _aligned(node, facts)
    return None if pair is None else _all(tuple(_computed(node.op_type, *sizes) for sizes in zip(*pair, strict=True)))


def _where(node: ir.Node, facts: Facts) -> Shape | None:
    parts = _aligned(node, facts)
    if parts is None:
        return None
    chosen = (
        yes if yes == no or c.number else no if c.number == 0 else None for c, yes, no in zip(*parts, strict=True)
    )
    return _all(tuple(chosen))


def _aligned(node: ir.Node, facts: Facts) -> list[Shape] | None:
    parts = [facts.content(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    count = max(map(len, known), default=0)
    fits = len(known) == len(parts) and all(len(part) in (1, count) for part in known)
    return [part * count if len(part) == 1 else part for part in known] if fits else None


def _computed(op_type: str, a: Size, b: Size) -> Size | None:
    if op_type in ("Add", "Sub"):
        return a + b if op_type == "Add" else a - b
    if op_type == "Mul":
        return a * b
    if op_type == "Div":
        below, divisor = a.at_least, b.number
        # Division of integers cuts towards zero, which is down only for what is not negative.
        return a // divisor if divisor and divisor > 0 and below is not None and below >= 0 else None
    below, above = (a - b).at_least, (b - a).at_least
    if a == b:
        return Size.of(1)
    return Size.of(0) if (below or 0) > 0 or (above or 0) > 0 else None


def _all(sizes: tuple[Size | None, ...]) -> Shape | None:
    known = tuple(size for size in sizes if size is not None)
    return known if len(known) == len(sizes) else None


_RULES: dict[str, Rule] = {
    "Add": _binary,
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary,
    "Equal": _binary,
    "Gather": _gather,
    "Identity": _same,
    "Mul": _binary,
    "Reshape": _same,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _same,
    "Sub": _binary,
    "Unsqueeze": _same,
    "Where": _where,
}

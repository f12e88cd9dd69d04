"""The shapes of a node's outputs from those of its inputs, for the operators that encoders are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from nemotrt.trt.surgery.axis_size import Shape, Size, product
from nemotrt.trt.surgery.facts import Facts, attribute, integers

LONGEST = 2**31
"""Slices that end beyond it end where the axis does."""

ONE = Size.of(1)

SAME_SHAPE = frozenset(
    {
        *("Abs", "BatchNormalization", "Cast", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSwish"),
        *("Identity", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Neg", "Not", "Reciprocal", "Relu"),
        *("Round", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Tanh", "IsNaN", "Sign", "Cos", "Sin"),
    }
)
BROADCASTING = frozenset(
    {
        *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod"),
        *("Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor"),
    }
)
REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceL2"})


@dataclass(frozen=True)
class _At:
    """A node, and the shapes of its inputs."""

    node: ir.Node
    shapes: Sequence[Shape | None]
    facts: Facts

    @property
    def shape(self) -> Shape:
        """Of the first input, which is known where a rule is asked."""
        return self.shapes[0] or ()


Rule = Callable[[_At], Shape | None]


def shapes_of(node: ir.Node, facts: Facts) -> tuple[Shape | None, ...]:
    """The shape of every output, ``None`` where it cannot be told."""
    return shapes_from(node, [facts.shape(value) for value in node.inputs], facts)


def shapes_from(node: ir.Node, shapes: Sequence[Shape | None], facts: Facts) -> tuple[Shape | None, ...]:
    """The same if the inputs had ``shapes``; their contents are those of ``facts``."""
    if node.domain or not node.outputs or not shapes:
        return tuple(None for _ in node.outputs)
    if node.op_type == "Split" and shapes[0] is not None:
        return _split(node, shapes[0], facts)
    return (_first_shape(_At(node, shapes, facts)), *(None for _ in node.outputs[1:]))


def _first_shape(at: _At) -> Shape | None:
    op_type = at.node.op_type
    if op_type in BROADCASTING:
        return broadcast(at.shapes, at.facts)
    if op_type in _BY_CONTENT:
        return _BY_CONTENT[op_type](at)
    if at.shapes[0] is None or op_type in SAME_SHAPE:
        return at.shapes[0] if op_type in SAME_SHAPE else None
    rule = _reduce if op_type in REDUCTIONS else _RULES.get(op_type)
    return None if rule is None else rule(at)


def broadcast(shapes: Sequence[Shape | None], facts: Facts | None = None) -> Shape | None:
    """The shape of an element-wise operation."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        return None
    rank = max((len(shape) for shape in known), default=0)
    aligned = [(ONE,) * (rank - len(shape)) + shape for shape in known]
    return tuple(_meet(sizes, facts) for sizes in zip(*aligned, strict=True))


def axis_of(axis: int, shape: Shape) -> int:
    """An axis counted from the front."""
    return axis + len(shape) if axis < 0 else axis


def _meet(sizes: Sequence[Size], facts: Facts | None) -> Size:
    others = list(dict.fromkeys(size for size in sizes if size != ONE))
    if len(others) > 1:
        numbers = [size for size in others if size.number is not None]
        if len(numbers) == 1:
            return numbers[0]
        if facts is not None:
            facts.meetings.append((others[0], others[1]))
        return Size.unknown()
    return others[0] if others else ONE


def _range(at: _At) -> Shape | None:
    start, end, step = (at.facts.content(value) for value in at.node.inputs)
    if start is None or end is None or step is None or step[0].number != 1:
        return None
    return (end[0] - start[0],) if (end[0] - start[0]).at_least is not None else None


def _constant_of_shape(at: _At) -> Shape | None:
    return at.facts.content(at.node.inputs[0])


def _transpose(at: _At) -> Shape | None:
    shape = at.shape
    return tuple(shape[axis] for axis in integers(at.node, "perm", range(len(shape) - 1, -1, -1)))


def _unsqueeze(at: _At) -> Shape | None:
    shape, axes = at.shape, at.facts.numbers(at.node.inputs[1])
    if axes is None:
        return None
    rank = len(shape) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(shape)
    return tuple(ONE if axis in new else next(rest) for axis in range(rank))


def _squeeze(at: _At) -> Shape | None:
    shape, axes = at.shape, at.facts.numbers(at.node.inputs[1]) if len(at.node.inputs) > 1 else None
    if axes is None:
        return None
    gone = {axis_of(axis, shape) for axis in axes}
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def _matmul(at: _At) -> Shape | None:
    a, b = at.shapes[0], at.shapes[1]
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    batch = broadcast([a[:-2], b[:-2]], at.facts)
    return None if batch is None else (*batch, a[-2], b[-1])


def _conv(at: _At) -> Shape | None:
    x, weight = at.shapes[0], at.shapes[1]
    auto_pad = at.node.attributes.get("auto_pad")
    if x is None or weight is None or (auto_pad is not None and auto_pad.as_string() != "NOTSET"):
        return None
    axes = len(x) - 2
    kernel = [size.number for size in weight[2:]]
    pads = integers(at.node, "pads", [0] * 2 * axes)
    strides, dilations = (integers(at.node, name, [1] * axes) for name in ("strides", "dilations"))
    sizes = []
    for axis in range(axes):
        width = kernel[axis]
        if width is None:
            return None
        room = x[2 + axis] + pads[axis] + pads[axis + axes] - (dilations[axis] * (width - 1) + 1)
        sizes.append(room // strides[axis] + 1)
    return (x[0], weight[0], *sizes)


def _reshape(at: _At) -> Shape | None:
    shape, wanted = at.shape, at.facts.content(at.node.inputs[1])
    if wanted is None or attribute(at.node, "allowzero", 0):
        return None
    sizes = [shape[axis] if size.number == 0 and axis < len(shape) else size for axis, size in enumerate(wanted)]
    if -1 not in [size.number for size in sizes]:
        return tuple(sizes)
    free = [size.number for size in sizes].index(-1)
    given, have = [size for axis, size in enumerate(sizes) if axis != free], list(shape)
    for size in tuple(given):
        if size in have:
            have.remove(size)
            given.remove(size)
    sizes[free] = product(have).divided_exactly(product(given)) or Size.unknown()
    return tuple(sizes)


def _concat(at: _At) -> Shape | None:
    known = [shape for shape in at.shapes if shape is not None]
    if len(known) < len(at.shapes):
        return None
    axis, total = axis_of(attribute(at.node, "axis", 0), known[0]), Size.of(0)
    for shape in known:
        total = total + shape[axis]
    return (*known[0][:axis], total, *known[0][axis + 1 :])


def _slice(at: _At) -> Shape | None:
    shape = at.shape
    starts, ends, axes, steps = ([*map(at.facts.content, at.node.inputs[1:]), None, None])[:4]
    rank_known = starts or ends
    if rank_known is None:
        return None
    if len(at.node.inputs) < 4 or at.node.inputs[3] is None:
        axes = tuple(map(Size.of, range(len(rank_known))))
    if len(at.node.inputs) < 5 or at.node.inputs[4] is None:
        steps = (ONE,) * len(rank_known)
    numbers = None if axes is None else [size.number for size in axes]
    if numbers is None or None in numbers:
        return None
    sizes, unknown = list(shape), (None,) * len(numbers)
    for axis, start, end, step in zip(numbers, starts or unknown, ends or unknown, steps or unknown, strict=True):
        place = axis_of(axis or 0, shape)
        whole = sizes[place]
        sizes[place] = _sliced(whole, start, end, step) or Size.unknown()
        if whole.number is not None and sizes[place].number is None:
            # A table, and as much of it as there are frames: beyond its end the graph itself has no answer.
            at.facts.limit(f"{at.node.name} stays within its table")
    return tuple(sizes)


def _sliced(size: Size, start: Size | None, end: Size | None, step: Size | None) -> Size | None:
    by = None if step is None else step.number
    if start is None or end is None or by is None or by == 0:
        return None
    if size.number is not None and start.number is not None and end.number is not None:
        return Size.of(len(range(*slice(start.number, end.number, by).indices(size.number))))
    if by < 0:
        return None
    first, last = _bound(start, size), _bound(end, size)
    if first is None or last is None or (last - first).at_least is None:
        return None
    return (last - first + (by - 1)) // by if (last - first + (by - 1)).at_least is not None else None


def _bound(bound: Size, size: Size) -> Size | None:
    """Where a slice begins or ends: from the back if negative, not beyond the axis."""
    if bound.number is not None and bound.number >= LONGEST:
        return size
    if bound.number is not None and bound.number < 0:
        inside = size + bound.number
        below = inside.at_least
        return inside if below is not None and below >= 0 else None
    below, room = bound.at_least, (size - bound).at_least
    inside_it = below is not None and below >= 0 and room is not None and room >= 0
    return bound if inside_it or (bound.number is None and size.number is not None) else None


def _expand(at: _At) -> Shape | None:
    wanted = at.facts.content(at.node.inputs[1])
    return None if wanted is None else broadcast([at.shapes[0], wanted], at.facts)


def _tile(at: _At) -> Shape | None:
    shape, repeats = at.shape, at.facts.content(at.node.inputs[1])
    return None if repeats is None else tuple(a * b for a, b in zip(shape, repeats, strict=True))


def _pad(at: _At) -> Shape | None:
    shape, pads = at.shape, at.facts.content(at.node.inputs[1]) if len(at.node.inputs) > 1 else None
    if pads is None or len(pads) != 2 * len(shape):
        return None
    return tuple(size + pads[axis] + pads[axis + len(shape)] for axis, size in enumerate(shape))


def _gather(at: _At) -> Shape | None:
    shape, index = at.shape, at.shapes[1]
    if index is None:
        return None
    axis = axis_of(attribute(at.node, "axis", 0), shape)
    return (*shape[:axis], *index, *shape[axis + 1 :])


def _shape(at: _At) -> Shape | None:
    return (Size.of(len(range(*shape_bounds(at.node, at.shape)))),)


def shape_bounds(node: ir.Node, shape: Shape) -> tuple[int, int]:
    """Which axes a Shape node counts."""
    rank = len(shape)
    start, end, _ = slice(attribute(node, "start", 0), attribute(node, "end", rank)).indices(rank)
    return start, end


def _split(node: ir.Node, shape: Shape, facts: Facts) -> tuple[Shape | None, ...]:
    axis, count = axis_of(attribute(node, "axis", 0), shape), len(node.outputs)
    sizes: tuple[Size | None, ...]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        sizes = facts.content(node.inputs[1]) or (None,) * count
    else:
        whole = shape[axis].number
        even = None if whole is None or whole % count else Size.of(whole // count)
        sizes = (even,) * count
    return tuple(None if size is None else (*shape[:axis], size, *shape[axis + 1 :]) for size in sizes)


def _reduce(at: _At) -> Shape | None:
    shape = at.shape
    axes: Sequence[int] | None
    if "axes" in at.node.attributes:
        axes = integers(at.node, "axes", ())
    else:
        axes = at.facts.numbers(at.node.inputs[1]) if len(at.node.inputs) > 1 else None
    if not axes:
        return None
    gone = {axis_of(axis, shape) for axis in axes}
    if attribute(at.node, "keepdims", 1):
        return tuple(ONE if axis in gone else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


def elements(shape: Shape) -> int | None:
    """How many, where every axis is a number."""
    numbers = [size.number for size in shape]
    return None if None in numbers else prod(number for number in numbers if number is not None)


_RULES: dict[str, Rule] = {
    "Concat": _concat,
    "Conv": _conv,
    "Gather": _gather,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

_BY_CONTENT: dict[str, Rule] = {"ConstantOfShape": _constant_of_shape, "Expand": _expand, "Range": _range}
"""Rules that do without the shape of the first input."""

"""Random small ONNX graphs, valid for every batch and length: what encoders are made of, in orders that nobody wrote.

x float [B,T,8], length int64 [B] -> a dozen operators and motifs, each on values made before -> all loose ends
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH = 8
LONGEST = 12
OPSET = 18
Axis = int | str
Draw = st.DrawFn


@dataclass(frozen=True)
class Tensor:
    """A float value; axes are numbers, ``B`` or ``T``."""

    name: str
    shape: tuple[Axis, ...]


@dataclass
class Writer:
    draw: Draw
    values: list[Tensor] = field(default_factory=lambda: [Tensor("x", ("B", "T", WIDTH))])
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def pick(self, accept: Callable[[Tensor], bool] = lambda _: True) -> Tensor | None:
        fitting = [value for value in self.values if accept(value)]
        return self.draw(st.sampled_from(fitting)) if fitting else None

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=f"n{len(self.nodes)}", **attributes))
        return names[0]

    def add(self, name: str, *shape: Axis) -> None:
        self.values.append(Tensor(name, shape))

    def number(self, value: object, dtype: type = np.int64) -> str:
        return self.weight(np.asarray(value, dtype))

    def weight(self, array: NDArray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def noise(self, *shape: int) -> str:
        seed = self.draw(st.integers(0, 50))
        return self.weight(np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 2)

    def size(self, value: Tensor, axis: int) -> str:
        """int64 [1], in one of the ways people write it."""
        way = self.draw(st.integers(0, 2))
        if way == 0:
            return self.op("Shape", value.name, start=axis, end=axis + 1)
        shape = self.op("Shape", value.name)
        if way == 1:
            return self.op("Slice", shape, self.number([axis]), self.number([axis + 1]), self.number([0]))
        return self.op("Unsqueeze", self.op("Gather", shape, self.number(axis), axis=0), self.number([0]))

    def mask(self) -> str:
        """bool [B,T]."""
        x = Tensor("x", ("B", "T", WIDTH))
        frames = self.op("Squeeze", self.size(x, 1), self.number([0]))
        index = self.op("Range", self.number(0), frames, self.number(1))
        if self.draw(st.booleans()):
            shape = self.op("Concat", self.size(x, 0), self.size(x, 1), axis=0)
            index = self.op("Expand", index, shape)
        return self.op(
            "Less", index, self.op("Unsqueeze", self.length(), self.number([self.draw(st.sampled_from([1, -1]))]))
        )

    def length(self) -> str:
        """int64 [B], the length itself or computed in floats and back."""
        way = self.draw(st.integers(0, 3))
        if way == 0:
            return "length"
        value = self.op("Cast", "length", to=TensorProto.FLOAT)
        for _ in range(way - 1):
            value = self.op(
                self.draw(st.sampled_from(["Add", "Sub"])), value, self.number(self.draw(st.integers(0, 3)), np.float32)
            )
        if way == 3:
            value = self.op("Div", value, self.number(self.draw(st.sampled_from([2, 3, 0.5])), np.float32))
            if self.draw(st.booleans()):
                value = self.op("Floor", value)
        return self.op("Cast", value, to=TensorProto.INT64)


def _has_width(value: Tensor) -> bool:
    return isinstance(value.shape[-1], int)


def _is_sequence(value: Tensor) -> bool:
    return value.shape == ("B", "T", WIDTH)


def linear(w: Writer) -> None:
    x = w.pick(_has_width)
    wide = w.draw(st.sampled_from([1, 4, WIDTH, 16]))
    y = w.op("MatMul", x.name, w.noise(x.shape[-1], wide))
    if w.draw(st.booleans()):
        y = w.op("Add", *w.draw(st.permutations([y, w.noise(wide)])))
    w.add(y, *x.shape[:-1], wide)


def scaled(w: Writer) -> None:
    x = w.pick()
    factor = w.number(w.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0])), np.float32)
    op_type = w.draw(st.sampled_from(["Add", "Sub", "Mul"]))
    w.add(w.op(op_type, x.name, factor), *x.shape)


def divided(w: Writer) -> None:
    x = w.pick()
    w.add(w.op("Div", x.name, w.number(w.draw(st.sampled_from([1.0, 2.0, 2.83])), np.float32)), *x.shape)


def joined(w: Writer) -> None:
    x = w.pick()
    y = w.pick(lambda other: other.shape == x.shape)
    op_type = w.draw(st.sampled_from(["Add", "Mul", "Sub", "Concat"]))
    if op_type == "Concat":
        width = x.shape[-1]
        if isinstance(width, int):
            w.add(w.op("Concat", x.name, y.name, axis=-1), *x.shape[:-1], 2 * width)
    else:
        w.add(w.op(op_type, x.name, y.name), *x.shape)


def unary(w: Writer) -> None:
    x = w.pick()
    w.add(w.op(w.draw(st.sampled_from(["Sigmoid", "Relu", "Identity", "Neg", "Tanh"])), x.name), *x.shape)


def transposed(w: Writer) -> None:
    x = w.pick()
    perm = w.draw(st.permutations(range(len(x.shape))))
    w.add(w.op("Transpose", x.name, perm=list(perm)), *(x.shape[axis] for axis in perm))


def to_heads(w: Writer) -> None:
    x = w.pick(lambda value: len(value.shape) == 3 and value.shape[:2] == ("B", "T") and value.shape[2] in (WIDTH, 16))
    if x is None:
        return
    width = x.shape[2]
    rest = w.number([2, width // 2])
    if w.draw(st.booleans()):
        shape = w.number([0, w.draw(st.sampled_from([0, -1])), 2, width // 2])
    else:
        shape = w.op("Concat", w.size(x, 0), w.draw(st.sampled_from([w.number([-1]), w.size(x, 1)])), rest, axis=0)
    w.add(w.op("Reshape", x.name, shape), "B", "T", 2, width // 2)


def from_heads(w: Writer) -> None:
    x = w.pick(lambda value: len(value.shape) == 4 and value.shape[:2] == ("B", "T") and _has_width(value))
    if x is not None and isinstance(x.shape[2], int):
        w.add(w.op("Reshape", x.name, w.number([0, 0, -1])), "B", "T", x.shape[2] * x.shape[3])


def sliced(w: Writer) -> None:
    x = w.pick(lambda value: _has_width(value) and value.shape[-1] > 1)
    if x is None:
        return
    width, (start, end) = x.shape[-1], sorted(w.draw(st.tuples(st.integers(0, 3), st.integers(4, 20))))
    step = w.draw(st.sampled_from([1, 1, 2, -1]))
    bounds = (start, end, step) if step > 0 else (end, start, step)
    kept = len(range(*slice(*bounds).indices(width)))
    if kept:
        names = [w.number([number]) for number in (*bounds[:2], -1, step)]
        w.add(w.op("Slice", x.name, *names), *x.shape[:-1], kept)


def halves(w: Writer) -> None:
    """A GLU, as a Split or as two slices."""
    x = w.pick(lambda value: _has_width(value) and value.shape[-1] in (WIDTH, 16))
    if x is None:
        return
    half = x.shape[-1] // 2
    if w.draw(st.booleans()):
        first = w.op("Split", x.name, w.number([half, half]), outputs=2, axis=-1)
        second = first[:-1] + "1"
    else:
        parts = ([0, half], [half, w.draw(st.sampled_from([2 * half, 2**62]))])
        first, second = (
            w.op("Slice", x.name, w.number([a]), w.number([b]), w.number([len(x.shape) - 1])) for a, b in parts
        )
    w.add(w.op("Mul", first, w.op("Sigmoid", second)), *x.shape[:-1], half)


def normalized(w: Writer) -> None:
    """A layer norm, as an operator or spelled out."""
    x = w.pick(lambda value: value.shape[-1] in (4, WIDTH, 16))
    if x is None:
        return
    scale, bias = w.noise(x.shape[-1]), w.noise(x.shape[-1])
    if w.draw(st.booleans()):
        w.add(w.op("LayerNormalization", x.name, scale, bias, axis=-1), *x.shape)
        return
    axis = w.number([w.draw(st.sampled_from([-1, -1, 0]))])
    deviation = w.op("Sub", x.name, w.op("ReduceMean", x.name, axis))
    square = (
        w.op("Mul", deviation, deviation) if w.draw(st.booleans()) else w.op("Pow", deviation, w.number(2, np.float32))
    )
    spread = w.op("Sqrt", w.op("Add", w.op("ReduceMean", square, axis), w.number(1e-5, np.float32)))
    y = w.op("Mul", w.op("Div", deviation, spread), scale)
    w.add(w.op("Add", y, bias) if w.draw(st.booleans()) else y, *x.shape)


def sigmoid_in_words(w: Writer) -> None:
    x, one = w.pick(), w.number(w.draw(st.sampled_from([1.0, 1.0, 2.0])), np.float32)
    w.add(w.op("Div", one, w.op("Add", one, w.op("Exp", w.op("Neg", w.op("Tanh", x.name))))), *x.shape)


def convolution(w: Writer) -> None:
    """Over frames, padded inside or in front, with a batch norm or without."""
    x = w.pick(lambda value: _is_sequence(value))
    y, taps = w.op("Transpose", x.name, perm=[0, 2, 1]), w.draw(st.sampled_from([1, 3]))
    if w.draw(st.booleans()):
        mask = w.op("Unsqueeze", w.mask(), w.number([1]))
        zero = w.number(0, np.float32)
        y = w.op("Where", mask, y, zero) if w.draw(st.booleans()) else w.op("Mul", y, w.op("Cast", mask, to=1))
    pads = [taps // 2, taps // 2]
    if taps > 1 and w.draw(st.booleans()):
        widths, filler = [0, 0, 1, 0, 0, 1], w.number(w.draw(st.sampled_from([0.0, 0.0, 1.0])), np.float32)
        y, pads = w.op("Pad", y, w.number(widths), filler), [0, 0]
    groups = w.draw(st.sampled_from([1, WIDTH]))
    bias = [w.noise(WIDTH)] if w.draw(st.booleans()) else []
    y = w.op("Conv", y, w.noise(WIDTH, WIDTH // groups, taps), *bias, pads=pads, group=groups)
    if w.draw(st.booleans()):
        spread = w.weight(np.linspace(0.5, 2, WIDTH, dtype=np.float32))
        y = w.op("BatchNormalization", y, w.noise(WIDTH), w.noise(WIDTH), w.noise(WIDTH), spread)
    w.add(w.op("Transpose", y, perm=[0, 2, 1]), "B", "T", WIDTH)


def masked(w: Writer) -> None:
    """A mask, once or around something that works position by position."""
    x = w.pick(_is_sequence)
    mask = w.op("Cast", w.op("Unsqueeze", w.mask(), w.number([2])), to=TensorProto.FLOAT)
    y = w.op("Mul", x.name, mask)
    if w.draw(st.booleans()):
        middle = w.draw(st.sampled_from(["Relu", "Sigmoid", "Softmax"]))
        y = w.op("Mul", w.op(middle, y), mask)
    w.add(y, "B", "T", WIDTH)


def attention(w: Writer) -> None:
    """Heads of three projections, with a mask, a scale, and position biases, or without."""
    x = w.pick(_is_sequence)
    heads = []
    for _ in range(3):
        y = w.op("MatMul", x.name, w.noise(WIDTH, WIDTH))
        heads.append(w.op("Reshape", y, w.number([0, 0, 2, WIDTH // 2])))
    q = w.op("Add", heads[0], w.noise(2, WIDTH // 2)) if w.draw(st.booleans()) else heads[0]
    q, v = (w.op("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, heads[2]))
    scores = w.op("MatMul", q, w.op("Transpose", heads[1], perm=[0, 2, 3, 1]))
    if w.draw(st.booleans()):
        scores = w.op("Div", scores, w.number(2.0, np.float32))
    kind = w.draw(st.integers(0, 2))
    if kind:
        mask = w.op("Unsqueeze", w.op("Not", w.mask()), w.number([1, 2]))
        fill = w.draw(st.sampled_from([-10000.0, -10000.0, -1.0, float("-inf")]))
        scores = w.op("Where", mask, w.number(fill, np.float32), scores)
    weights = w.op("Softmax", scores, axis=-1)
    if kind == 2:
        weights = w.op("Where", mask, w.number(0.0, np.float32), weights)
    mixed = w.op("Transpose", w.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    w.add(w.op("Reshape", mixed, w.number([0, 0, WIDTH])), "B", "T", WIDTH)


def summed(w: Writer) -> None:
    x = w.pick(lambda value: len(value.shape) > 2)
    axis = w.draw(st.integers(0, len(x.shape) - 1))
    y = w.op("ReduceSum", x.name, w.number([axis]), keepdims=1)
    w.add(w.op("Mul", x.name, y), *x.shape)


def spread(w: Writer) -> None:
    """A vector expanded by hand."""
    x = w.pick(_is_sequence)
    shape = w.op("Concat", w.size(x, 0), w.size(x, 1), w.number([WIDTH]), axis=0)
    wide = w.op("Expand", w.noise(WIDTH), shape)
    w.add(w.op("Add", x.name, wide) if w.draw(st.booleans()) else wide, "B", "T", WIDTH)


def casted(w: Writer) -> None:
    x = w.pick()
    middle = w.draw(st.sampled_from([TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.FLOAT16]))
    y = w.op("Cast", w.op("Cast", w.op("Tanh", x.name), to=middle), to=TensorProto.FLOAT)
    w.add(y, *x.shape)


def counted(w: Writer) -> None:
    column = w.op("Unsqueeze", w.op("Cast", w.length(), to=TensorProto.FLOAT), w.number([1, 2]))
    x = w.pick(_is_sequence)
    w.add(w.op("Add", x.name, column), "B", "T", WIDTH)


def widths_in_words(w: Writer) -> None:
    """A Pad whose widths are computed from constants, as tracing writes them."""
    x = w.pick(lambda value: len(value.shape) == 3 and _has_width(value))
    zeros = w.op("ConstantOfShape", w.number([4]), value=helper.make_tensor("v", TensorProto.INT64, [1], [0]))
    pairs = w.op("Reshape", w.op("Concat", w.number([1, 2]), zeros, axis=0), w.number([-1, 2]))
    bounds = [w.number([number]) for number in (-1, -(2**62), 0, -1)]
    flat = w.op("Reshape", w.op("Transpose", w.op("Slice", pairs, *bounds), perm=[1, 0]), w.number([-1]))
    if x is not None:
        w.add(w.op("Pad", x.name, flat), *x.shape[:2], x.shape[2] + 3)


def relative(w: Writer) -> None:
    """Scores by relative position of one layer or two, shifted as NeMo does it, or almost."""
    x, heads = w.pick(_is_sequence), w.number([0, 0, 2, WIDTH // 2])
    frames, one = w.size(x, 1), w.number([1])
    longest = w.number([LONGEST])
    ends = w.op("Sub", longest, frames), w.op("Sub", w.op("Add", longest, frames), one)
    rows = w.op("Slice", w.noise(1, 2 * LONGEST - 1, WIDTH), *ends, one, one)
    columns = w.op("Sub", w.op("Add", frames, frames), one)
    fold = w.op("Concat", w.size(x, 0), w.number([2, -1]), frames, axis=0)
    unfold = w.op("Concat", w.size(x, 0), w.number([2]), frames, columns, axis=0)
    kept = []
    for _ in range(w.draw(st.integers(1, 2))):
        q, p = (w.op("Reshape", w.op("MatMul", y, w.noise(WIDTH, WIDTH)), heads) for y in (x.name, rows))
        q, p = w.op("Transpose", q, perm=[0, 2, 1, 3]), w.op("Transpose", p, perm=[0, 2, 3, 1])
        front = w.draw(st.sampled_from([1, 1, 0]))
        padded = w.op("Pad", w.op("MatMul", q, p), w.number([0, 0, 0, front, 0, 0, 0, 1 - front]))
        folded = w.op("Slice", w.op("Reshape", padded, fold), one, w.number([2**62]), w.number([2]), one)
        kept.append(w.op("Slice", w.op("Reshape", folded, unfold), w.number([0]), frames, w.number([3]), one))
        if w.draw(st.booleans()):
            kept[-1] = w.op("Mul", kept[-1], w.number(0.5, np.float32))
    scores = w.op("Sum", *kept)
    v = w.op("Unsqueeze", x.name, w.number([1]))
    mixed = w.op("ReduceSum", w.op("MatMul", w.op("Softmax", scores, axis=-1), v), w.number([1]), keepdims=0)
    w.add(mixed, "B", "T", WIDTH)


STEPS = (
    *(linear, scaled, divided, joined, unary, transposed, to_heads, from_heads, sliced, halves, normalized),
    *(sigmoid_in_words, convolution, masked, attention, summed, spread, casted, counted),
    *(widths_in_words, relative),
)


@st.composite
def graphs(draw: Draw) -> onnx.ModelProto:
    """One graph: every value that nobody reads is an output, in the shape that it has."""
    w = Writer(draw)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)):
        step(w)
    read = {name for node in w.nodes for name in node.input}
    outputs = [value for value in w.values[1:] if value.name not in read] or w.values[-1:]
    names = {"B": "batch", "T": "frames"}
    if any(value.name == "x" for value in outputs):
        w.values = [Tensor(w.op("Identity", "x"), w.values[0].shape)]
        outputs = w.values
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "frames", WIDTH]),
        helper.make_tensor_value_info("length", TensorProto.INT64, [draw(st.sampled_from(["batch", "rows"]))]),
    ]
    results = [
        helper.make_tensor_value_info(one.name, TensorProto.FLOAT, [names.get(axis, axis) for axis in one.shape])
        for one in outputs
    ]
    graph = helper.make_graph(w.nodes, "random", inputs, results, w.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)

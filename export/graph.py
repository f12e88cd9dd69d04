"""A thin builder over onnx-ir: the graph is written node by node, with names that a profiler can show.

    g = GraphBuilder("encoder")
    x = g.input("audio_signal", "float32", ("batch", 80, "frames"))
    with g.scope("layers.0"):
        y = g.op("MatMul", x, g.weight("linear.weight", (80, 256), load))

Weights stay functions until the model is saved, one at a time. Integer and small float constants are shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nemotrt.bundle import DType, TensorSpec
from nemotrt.export.options import OPSETS

# The operators written here mean the same in all of these. By each the format version that came with it, but for 18 one
# that more can read.
_IR_VERSIONS = dict(zip(OPSETS, (9, 9, 9, 10, 10, 11), strict=True))
_STRIP_COLUMNS = 32

Attribute = int | float | str | Sequence[int]
_DTYPES = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64, "int32": ir.DataType.INT32}


class GraphBuilder:
    """Collects inputs, weights, nodes and outputs of one component.

    ``axes`` are sizes of dynamic axes by name: those axes are fixed.
    """

    def __init__(self, name: str, *, opset: int = OPSETS[0], axes: Mapping[str, int] = MappingProxyType({})) -> None:
        self.name = name
        self.parameters = 0
        self.largest_weight_bytes = 0
        self._opset, self._axes = opset, axes
        self._graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name)
        self._scopes: list[str] = []
        self._names: Counter[str] = Counter()
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._specs: tuple[list[TensorSpec], list[TensorSpec]] = ([], [])

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of the nodes and weights made inside."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def input(self, name: str, dtype: DType, shape: tuple[int | str, ...]) -> ir.Value:
        """Declare a graph input; names in ``shape`` are dynamic axes."""
        shape = self._sized(shape)
        value = _typed_value(name, dtype, shape)
        self._graph.inputs.append(value)
        self._specs[0].append(TensorSpec(name=name, dtype=dtype, shape=shape))
        return value

    def output(self, value: ir.Value, name: str, dtype: DType, shape: tuple[int | str, ...]) -> None:
        """Declare ``value`` a graph output under ``name``."""
        value.name, shape = name, self._sized(shape)
        value.type, value.shape = ir.TensorType(_DTYPES[dtype]), ir.Shape(shape)
        self._graph.outputs.append(value)
        self._specs[1].append(TensorSpec(name=name, dtype=dtype, shape=shape))

    def weight(self, name: str, shape: tuple[int, ...], load: Callable[[], NDArray[np.float32]]) -> ir.Value:
        """A float32 initializer that is loaded when the model is saved; ``load`` must return ``shape``."""
        full_name = self._scoped(name)

        def tensor() -> ir.TensorProtocol:
            array = load()
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{full_name}: loaded {array.dtype}{array.shape}, declared float32{shape}")
            return ir.Tensor(_contiguous(array), name=full_name)

        self.parameters += prod(shape)
        self.largest_weight_bytes = max(self.largest_weight_bytes, 4 * prod(shape))
        return self._initializer(ir.LazyTensor(tensor, ir.DataType.FLOAT, ir.Shape(shape), name=full_name))

    def constant(self, values: NDArray[np.generic] | Sequence[int] | int | float) -> ir.Value:
        """A small constant: integers become int64, floats float32. Equal constants are one initializer."""
        array = np.asarray(values)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._initializer(ir.Tensor(array, name=name))
        return self._constants[key]

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Append a node with one output and return it."""
        return self.multi(op_type, *inputs, outputs=1, **attributes)[0]

    def multi(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, **attributes: Attribute
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs and return them."""
        name = self._unique(self._scoped(op_type))
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}.{index}"
        self._graph.append(node)
        return node.outputs

    def inline(self, graph: ir.Graph, inputs: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """Move the nodes and weights of ``graph`` here, fed with ``inputs`` by name, and return its outputs by name.

        ``graph`` is empty afterwards. What it holds gets its name in front: both number their own from zero.
        """
        outputs = {str(value.name): value for value in graph.outputs}
        for value in graph.inputs:
            ir.convenience.replace_all_uses_with(value, inputs[str(value.name)])
        weights, nodes = list(graph.initializers.values()), list(graph)
        graph.outputs.clear()
        graph.initializers.clear()
        graph.remove(nodes)
        for weight in weights:
            weight.name = f"{graph.name}.{weight.name}"
            self._graph.register_initializer(weight)
        for node in nodes:
            node.name = f"{graph.name}.{node.name}"
            for value in node.outputs:
                value.name = f"{graph.name}.{value.name}"
        self._graph.extend(nodes)
        return outputs

    def model(self) -> ir.Model:
        """The finished model."""
        from nemotrt import __version__

        version = _IR_VERSIONS[self._opset]
        return ir.Model(self._graph, ir_version=version, producer_name="nemotrt", producer_version=__version__)

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The declared inputs, in order."""
        return tuple(self._specs[0])

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The declared outputs, in order."""
        return tuple(self._specs[1])

    # The few operators whose ONNX form is noisy.

    def slice(
        self, x: ir.Value, *, axis: int, start: ir.Value | int = 0, end: ir.Value | None = None, step: int = 1
    ) -> ir.Value:
        """``x[start:end:step]`` along ``axis``; to the end when ``end`` is left out."""
        first = start if isinstance(start, ir.Value) else self.constant([start])
        last = self.constant([np.iinfo(np.int64).max]) if end is None else end
        steps = () if step == 1 else (self.constant([step]),)
        return self.op("Slice", x, first, last, self.constant([axis]), *steps)

    def extent(self, x: ir.Value, axis: int) -> ir.Value:
        """The length of one axis, int64 [1]."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def scalar(self, x: ir.Value) -> ir.Value:
        """int64 [1] -> int64 []."""
        return self.op("Squeeze", x, self.constant([0]))

    def swish(self, x: ir.Value) -> ir.Value:
        """``x * sigmoid(x)``."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """``x @ weight + bias`` over the last axis."""
        y = self.op("MatMul", x, weight)
        return y if bias is None else self.op("Add", y, bias)

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self._graph.initializers[str(tensor.name)] = value
        return value

    def _sized(self, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        return tuple(self._axes.get(axis, axis) if isinstance(axis, str) else axis for axis in shape)

    def _scoped(self, name: str) -> str:
        return ".".join([*self._scopes, name])

    def _unique(self, name: str) -> str:
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"


def _contiguous(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The array in C order. A transposed matrix is copied in strips that stay in the cache: four times as fast."""
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.ascontiguousarray(array)
    copy = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[1], _STRIP_COLUMNS):
        strip = slice(start, start + _STRIP_COLUMNS)
        copy[:, strip] = array[:, strip]
    return copy


def _typed_value(name: str, dtype: DType, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(_DTYPES[dtype]), shape=ir.Shape(shape))

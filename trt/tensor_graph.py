"""One ONNX graph as a web of tensors, each of which can be made an output.

    GRAPH.onnx --> TensorGraph --ancestors, producer, depth--> which tensor to look at
                               --mark(names)--> a graph file of the same weights, whose outputs are these tensors

A marked graph holds nodes only: its weights stay in the data file of the original, in whose folder the runner looks
for them. A runtime that drops dead nodes does not compute what no marked tensor needs. A marked tensor cannot be fused
away, so what a fusion got wrong may be right in a marked graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types
from onnx_ir.passes.common import ShapeInferencePass

from nemotrt.bundle import DType
from nemotrt.errors import GraphError

PASSES_ON = frozenset({"Cast", "Identity"})
"""Operators that change the type of a tensor at most: what is wrong behind them was wrong before."""

_NUMPY_TYPES = {f"{name}" for name in get_args(DType)} - {"bfloat16"}
_DTYPE_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}


class TensorGraph:
    """The tensors that the nodes of ``path`` compute. Weights are not read.

    Raises:
        GraphError: the file is not an ONNX graph.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model = _loaded(path)
        nodes = list(self._model.graph)
        self._values = {str(value.name): value for node in nodes for value in node.outputs if value.name}
        self._depths = _depths(nodes)
        self._outputs = tuple(self._model.graph.outputs)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The graph's inputs."""
        return tuple(str(value.name) for value in self._model.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph's own outputs."""
        return tuple(str(value.name) for value in self._outputs)

    @property
    def computed(self) -> tuple[str, ...]:
        """Every tensor that a node computes, in topological order."""
        return tuple(self._values)

    def value(self, name: str) -> ir.Value:
        """The tensor called ``name``, one of ``computed``."""
        return self._values[name]

    def is_readable(self, name: str) -> bool:
        """Whether a runner can return the tensor: not a sequence, not of a type that NumPy lacks."""
        return dtype_name(self._values[name]) in _NUMPY_TYPES

    def depth(self, name: str) -> int:
        """Operators on the longest way from an input to the tensor, casts left out; at least 1."""
        return max(1, self._depths[self._values[name]])

    def frame_axis(self, name: str) -> int | None:
        """The axis along which time runs: the first one of unknown size behind the batch; ``None``: not known."""
        shape = self._values[name].shape
        if shape is None:
            return None
        free = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
        behind = [axis for axis in free if axis > 0]
        return behind[0] if behind else None

    def origin(self, name: str) -> ir.Node:
        """The node that computes the tensor; where that only casts, the one before."""
        node = self._values[name].producer()
        if node is None:
            raise GraphError("no node computes this tensor", where=self.path, found=name, fix="name another one")
        return _before_casts(node)

    def ancestors(self, name: str) -> frozenset[str]:
        """Every tensor that ``name`` is computed from, itself among them."""
        found: set[ir.Value] = set()
        waiting: list[ir.Value | None] = [self._values[name]]
        while waiting:
            value = waiting.pop()
            if value is None or value in found or value.producer() is None:
                continue
            found.add(value)
            waiting.extend(_read_by(value))
        return frozenset(str(value.name) for value in found)

    def nearest(self, name: str, among: frozenset[str]) -> tuple[str, ...]:
        """The tensors of ``among`` that ``name`` is computed from directly, or through tensors that are not in it."""
        found: dict[str, None] = {}
        seen: set[ir.Value | None] = set()
        waiting = list(_read_by(self._values[name]))[::-1]
        while waiting:
            value = waiting.pop()
            if value is None or value in seen:
                continue
            seen.add(value)
            if str(value.name) in among:
                found[str(value.name)] = None
            elif value.producer() is not None:
                waiting.extend(list(_read_by(value))[::-1])
        return tuple(found)

    def mark(self, names: tuple[str, ...], destination: Path) -> Path:
        """Write the graph with ``names`` as its outputs, in this order, to ``destination`` and return that."""
        graph = self._model.graph
        graph.outputs[:] = [self._values[name] for name in names]
        try:
            ir.save(self._model, destination)
        finally:
            graph.outputs[:] = list(self._outputs)
        return destination


def dtype_name(value: ir.Value) -> str | None:
    """``float32``, ``int64``, ...; ``None`` where it is not known."""
    if value.dtype is None:
        return None
    return _DTYPE_NAMES.get(value.dtype, value.dtype.name.lower())


def scope_of(node: ir.Node) -> str:
    """Where the node stands in the model: ``layers.3.conv`` of ``layers.3.conv.MatMul_2``; ``""`` at the top.

    A cast belongs to what it casts; that of a graph input is at the top.
    """
    node = _before_casts(node)
    if node.op_type in PASSES_ON:
        return ""
    name = (node.name or str(node.outputs[0].name)).strip("/").replace("/", ".")
    return name.rpartition(".")[0]


def _before_casts(node: ir.Node) -> ir.Node:
    while node.op_type in PASSES_ON:
        before = None if node.inputs[0] is None else node.inputs[0].producer()
        if before is None:
            break
        node = before
    return node


def _loaded(path: Path) -> ir.Model:
    try:
        model = ir.load(path)
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    except (OSError, ValueError, DecodeError) as exc:
        raise GraphError("this is not an ONNX graph", where=path, found=exc, fix="make the bundle again") from exc
    return model


def _read_by(value: ir.Value) -> Iterator[ir.Value | None]:
    """What the node that computes ``value`` reads."""
    node = value.producer()
    return iter(() if node is None else node.inputs)


def _depths(nodes: list[ir.Node]) -> dict[ir.Value, int]:
    depths: dict[ir.Value, int] = {}
    for node in nodes:
        before = max((depths.get(value, 0) for value in node.inputs if value is not None), default=0)
        for value in node.outputs:
            depths[value] = before + (node.op_type not in PASSES_ON)
    return depths

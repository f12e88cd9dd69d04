"""One ONNX file as facts: interface, operators, weights and their types, limits. No weight is read.

GRAPH.onnx --> inputs, outputs, opsets, metadata | operators, blocks | weights by type, the largest, files | positions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

from nemotrt.errors import GraphError
from nemotrt.trt.inspection.scopes import Scope, scopes_of
from nemotrt.trt.inspection.weight_audit import ProductCount, count_products
from nemotrt.trt.tensor_graph import dtype_name

LARGEST = 10
"""Weights that are listed one by one."""

_SMALLEST_TABLE = 16  # rows; what is sliced and smaller is no table of positions


@dataclass(frozen=True)
class TensorFacts:
    """An input or output. Axes are numbers, names, or ``None`` where the file does not say."""

    name: str
    dtype: str | None
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class WeightFacts:
    """An initializer; ``file`` is ``None`` where it is inside of the graph's own file."""

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    size_bytes: int
    file: str | None


@dataclass(frozen=True)
class DtypeShare:
    """The initializers of one type."""

    dtype: str | None
    tensors: int
    elements: int
    size_bytes: int


@dataclass(frozen=True)
class DataFile:
    """An external data file: its size, ``None`` if it is missing, and the bytes of it that the graph refers to."""

    name: str
    size_bytes: int | None
    used_bytes: int


@dataclass(frozen=True)
class PositionTable:
    """A table of positions that is cut to the length of the input, and the longest input, in encoder frames."""

    name: str
    rows: int
    max_frames: int


@dataclass(frozen=True)
class GraphFacts:
    """What an ONNX file holds. Sizes are in bytes; ``parameters`` counts the elements of floating and quantized weights
    with more than one axis or element, integers of 64 bits left out."""

    path: Path
    file_bytes: int
    ir_version: int | None
    producer: str
    opsets: dict[str, int]
    metadata: dict[str, str]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    nodes: int
    ops: dict[str, int]
    domains: dict[str, int]
    parameters: int
    weight_bytes: int
    dtypes: tuple[DtypeShare, ...]
    products: tuple[ProductCount, ...]
    largest: tuple[WeightFacts, ...]
    data_files: tuple[DataFile, ...]
    positions: PositionTable | None
    scopes: Scope


def inspect_graph(path: Path, *, largest: int = LARGEST) -> GraphFacts:
    """The facts of the file at ``path``; ``largest`` weights are listed.

    Raises:
        GraphError: not an ONNX graph.
    """
    try:
        model = ir.load(path)
    except (OSError, ValueError, DecodeError) as exc:
        raise GraphError("this is not an ONNX graph", where=path, found=exc, fix="give an .onnx file") from exc
    graph, nodes = model.graph, list(model.graph.all_nodes())
    if not graph.outputs:
        raise GraphError("this is not an ONNX graph", where=path, found="a graph without outputs", fix="give another")
    weights = sorted(map(_weight, _initializers(graph)), key=lambda weight: (-weight.size_bytes, weight.name))
    return GraphFacts(
        path=path,
        file_bytes=path.stat().st_size,
        ir_version=model.ir_version,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        opsets=dict(model.opset_imports),
        metadata=dict(model.metadata_props),
        inputs=tuple(map(_tensor, graph.inputs)),
        outputs=tuple(map(_tensor, graph.outputs)),
        nodes=len(nodes),
        ops=dict(Counter(node.op_type for node in nodes).most_common()),
        domains=dict(Counter(node.domain for node in nodes).most_common()),
        parameters=sum(prod(weight.shape) for weight in weights if _is_parameter(weight)),
        weight_bytes=sum(weight.size_bytes for weight in weights),
        dtypes=_shares(weights),
        products=count_products(nodes),
        largest=tuple(weights[:largest]),
        data_files=_data_files(path.parent, weights),
        positions=_position_table(nodes),
        scopes=scopes_of(nodes),
    )


def _initializers(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    for inner in graph.subgraphs():
        yield from inner.initializers.values()


def _tensor(value: ir.Value) -> TensorFacts:
    shape = None
    if value.shape is not None:
        shape = tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape)
    return TensorFacts(str(value.name), dtype_name(value), shape)


def _weight(value: ir.Value) -> WeightFacts:
    tensor = value.const_value
    if tensor is None:
        raise GraphError("an initializer has no value", found=value.name, fix="make the file again")
    file = str(tensor.location) if isinstance(tensor, ir.ExternalTensor) else None
    return WeightFacts(str(value.name), dtype_name(value), tuple(tensor.shape.numpy()), tensor.nbytes, file)


def _is_parameter(weight: WeightFacts) -> bool:
    """Constants of shapes and axes are 64-bit integers."""
    return weight.dtype not in ("int64", "bool") and prod(weight.shape) > 1


def _shares(weights: list[WeightFacts]) -> tuple[DtypeShare, ...]:
    by_dtype: dict[str | None, list[WeightFacts]] = {}
    for weight in weights:
        by_dtype.setdefault(weight.dtype, []).append(weight)
    shares = (
        DtypeShare(dtype, len(some), sum(prod(w.shape) for w in some), sum(w.size_bytes for w in some))
        for dtype, some in by_dtype.items()
    )
    return tuple(sorted(shares, key=lambda share: -share.size_bytes))


def _data_files(folder: Path, weights: list[WeightFacts]) -> tuple[DataFile, ...]:
    used: Counter[str] = Counter()
    for weight in weights:
        if weight.file is not None:
            used[weight.file] += weight.size_bytes
    paths = {name: folder / name for name in used}
    return tuple(
        DataFile(name, path.stat().st_size if path.is_file() else None, used[name]) for name, path in paths.items()
    )


def _position_table(nodes: list[ir.Node]) -> PositionTable | None:
    """The largest initializer that is sliced by computed bounds.

    Relative positions of T frames begin in row ``limit - T``, where ``limit`` is a constant and the longest input;
    absolute ones begin in row 0, and every row is a frame.
    """
    found = None
    for node in nodes:
        table = node.inputs[0] if node.op_type == "Slice" else None
        if table is None or table.const_value is None or not any(map(_is_computed, node.inputs[1:3])):
            continue
        rows = max(tuple(table.const_value.shape.numpy())[:-1], default=0)
        if rows >= _SMALLEST_TABLE and (found is None or rows > found.rows):
            found = PositionTable(str(table.name), rows, _minuend(node.inputs[1]) or rows)
    return found


def _minuend(start: ir.Value | None) -> int | None:
    """The constant from which the start of a slice is counted back."""
    node = None if start is None else start.producer()
    while node is not None and node.op_type in ("Cast", "Unsqueeze", "Reshape") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Sub" or node.inputs[0] is None:
        return None
    constant = ir.convenience.get_const_tensor(node.inputs[0])
    return int(constant.numpy().item()) if constant is not None and constant.size == 1 else None


def _is_computed(value: ir.Value | None) -> bool:
    return value is not None and ir.convenience.get_const_tensor(value) is None

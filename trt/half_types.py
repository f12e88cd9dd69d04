"""Which nodes of a graph compute in half precision: a type inference that needs the fewest Casts.

    half       products of matrices and convolutions: there the time goes
    float32    norms, softmax, reductions, all that is not known to be harmless; sums and selections of masks;
               what an integer or a boolean is computed from; weights beyond the range of the half type;
               what the caller says
    either     element-wise and data-moving operators: whatever gives the fewest Casts, half on a tie

The half type is float16, or bfloat16, which has the range of float32 and 8 bits instead of 11.

Integers and booleans are not looked at, so lengths and masks stay what they are. A Cast is needed where a
value is made in one type and read in the other, one for all such readers: choosing the types is a minimum cut
between the nodes that must be half and those that must be float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nemotrt.errors import GraphError
from nemotrt.trt.minimum_cut import UNBOUNDED, CutGraph

FLOAT16, BFLOAT16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
MASK_MAGNITUDE = 1e3
"""From here on a constant is a mask, not a factor: sums with it stay in float32."""

_HALF = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU"})
_EITHER = frozenset(
    {
        *(
            "Abs",
            "Add",
            "Clip",
            "Div",
            "LeakyRelu",
            "Max",
            "Min",
            "Mul",
            "Neg",
            "Relu",
            "Sigmoid",
            "Sub",
            "Tanh",
        ),
        *("Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    }
)
_SHAPE_ONLY = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class HalfTypes:
    """The nodes to run in the half type, how many Casts that takes, and the weights that it cannot hold."""

    half: frozenset[ir.Node]
    casts: int
    beyond_half: tuple[str, ...]


@dataclass(frozen=True)
class _Constant:
    magnitude: float  # of its largest element
    elements: int
    fits_half: bool


def infer_half_types(graph: ir.Graph, half: ir.DataType, *, keep: Set[ir.Node] = frozenset()) -> HalfTypes:
    """Choose the type of every node of a float32 graph; those of ``keep`` stay float32. Reads one weight at a time.

    Raises:
        GraphError: values of unknown type or of half precision already, or nested graphs.
    """
    _refuse_unsupported(graph)
    constants = {value: _constant(value, half) for value in graph.initializers.values() if is_float32(value)}
    casts, float32 = _fewest_casts(graph, _pinned_to_float32(graph, constants) | keep)
    nodes = frozenset(node for node in graph if is_float_node(node) and node not in float32)
    beyond = (value for value, c in constants.items() if not c.fits_half and c.elements > 1)
    return HalfTypes(nodes, casts, tuple(sorted(str(value.name) for value in beyond)))


def is_float32(value: ir.Value | None) -> bool:
    """Whether this is a float32 tensor: the only kind that may change its type."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def is_float_node(node: ir.Node) -> bool:
    """Whether the node computes with float32 values, and not only with the shape of some."""
    reads = node.op_type not in _SHAPE_ONLY and any(map(is_float32, node.inputs))
    return reads or any(map(is_float32, node.outputs))


def computes_in_half(node: ir.Node) -> bool:
    """Whether a node of a typed graph makes half values, and not only by conversion."""
    return node.op_type != "Cast" and any(value.dtype in (FLOAT16, BFLOAT16) for value in node.outputs)


def _pinned_to_float32(graph: ir.Graph, constants: Mapping[ir.Value, _Constant]) -> set[ir.Node]:
    pinned = {
        node
        for node in graph
        if is_float_node(node) and (not (_is_half(node) or _is_either(node)) or not _weights_fit_half(node, constants))
    }
    return pinned | _reached_by_large_values(graph, constants) | _counted_from(graph)


def _reached_by_large_values(graph: ir.Graph, constants: Mapping[ir.Value, _Constant]) -> set[ir.Node]:
    """Element-wise nodes that a mask's constant, or the result of a weight beyond half precision, reaches: forward
    from it to the next norm or product."""
    large: set[ir.Value | None] = {value for value, c in constants.items() if c.magnitude >= MASK_MAGNITUDE}
    reached: set[ir.Node] = set()
    for node in graph:
        if _is_either(node) and not large.isdisjoint(node.inputs):
            reached.add(node)
            large.update(node.outputs)
        elif not _weights_fit_half(node, constants):
            large.update(node.outputs)
    return reached


def _counted_from(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that an integer or a boolean is computed from: backward from it to the next product."""
    reached: set[ir.Node] = set()
    waiting = [n for n in graph if is_float_node(n) and not any(map(is_float32, n.outputs))]
    while waiting:
        node = waiting.pop()
        if node in reached or _is_half(node):
            continue
        reached.add(node)
        producers = (value.producer() for value in node.inputs if value is not None and is_float32(value))
        waiting.extend(producer for producer in producers if producer is not None)
    return reached


def _fewest_casts(graph: ir.Graph, pinned: set[ir.Node]) -> tuple[int, frozenset[ir.Node]]:
    """The number of Casts, and the nodes in float32: the sink side of a minimum cut.

    For a value made by p and read by r1, r2, ...: two edges of capacity 1, cut when p is half and a
    reader is not, or the reverse. Graph inputs and outputs are float32. Weights are stored as they are read.
    """
    cut = CutGraph()
    number = {node: cut.add_node() for node in graph if is_float_node(node)}
    for node, place in number.items():
        if node in pinned:
            cut.add_edge(place, cut.sink, UNBOUNDED)
        elif _is_half(node):
            cut.add_edge(cut.source, place, UNBOUNDED)
    for value in (*graph.inputs, *(output for node in number for output in node.outputs)):
        if not is_float32(value):
            continue
        readers = {number[node] for node, _ in value.uses() if node in number and node.op_type not in _SHAPE_ONLY}
        if value.is_graph_output():
            readers.add(cut.sink)
        producer = value.producer()
        maker = cut.sink if producer is None else number[producer]
        to_float32, to_half = cut.add_node(), cut.add_node()
        cut.add_edge(maker, to_float32, 1)
        cut.add_edge(to_half, maker, 1)
        for reader in readers:
            cut.add_edge(to_float32, reader, UNBOUNDED)
            cut.add_edge(reader, to_half, UNBOUNDED)
    casts, float32 = cut.cut()
    return casts, frozenset(node for node in number if number[node] in float32)


def _is_half(node: ir.Node) -> bool:
    return not node.domain and node.op_type in _HALF and any(map(is_float32, node.outputs))


def _is_either(node: ir.Node) -> bool:
    makes_float = any(map(is_float32, node.outputs))
    from_boolean = node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.BOOL
    return not node.domain and makes_float and (node.op_type in _EITHER or from_boolean)


def _weights_fit_half(node: ir.Node, constants: Mapping[ir.Value, _Constant]) -> bool:
    return all(constants[v].fits_half for v in node.inputs if v is not None and v in constants)


def _constant(value: ir.Value, half: ir.DataType) -> _Constant:
    if value.const_value is None:
        return _Constant(0.0, 0, True)
    magnitude, elements = _largest(value.const_value.numpy()), value.const_value.size
    release(value.const_value)
    fits = magnitude <= float(half.max)  # false for NaN
    if elements == 1:
        # A scalar, such as an epsilon, must survive: an element of a matrix may round to zero.
        fits = fits and (magnitude == 0.0 or float(half.numpy().type(magnitude)) > 0.0)
    return _Constant(magnitude, elements, fits)


def _largest(array: NDArray[np.float32]) -> float:
    return float(max(array.max(), -array.min())) if array.size else 0.0


def release(tensor: ir.TensorProtocol) -> None:
    """Unmap the file behind a weight that is not needed for now."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()


def _refuse_unsupported(graph: ir.Graph) -> None:
    for node in graph:
        if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()):
            raise _unsupported(f"node {node.name} ({node.op_type}) holds a graph of its own")
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name and value.dtype is None:
                raise _unsupported(f"value {value.name} of node {node.name} ({node.op_type}) has no known type")
            if value is not None and value.dtype in (FLOAT16, BFLOAT16):
                raise _unsupported(f"value {value.name} is {value.dtype} already")


def _unsupported(found: str) -> GraphError:
    return GraphError(
        "the graph cannot be typed for half precision",
        found=found,
        fix="start from a float32 graph without If, Loop or Scan",
    )

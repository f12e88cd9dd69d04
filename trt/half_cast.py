"""Rewrite a float32 graph with a Cast wherever nodes of the half type and of float32 meet.

inputs (float32) -> Cast -> half nodes -> Cast -> norm, softmax (float32) -> Cast -> ... -> Cast -> outputs
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from nemotrt.errors import GraphError
from nemotrt.trt.half_types import BFLOAT16, FLOAT16, HalfTypes, infer_half_types, is_float32, is_float_node, release
from nemotrt.trt.keep_list import is_named

SINGLE = ir.DataType.FLOAT
_BFLOAT16_OPSET, _BFLOAT16_IR_VERSION = 22, 10
"""From here on Conv and LSTM take bfloat16; what these graphs hold means the same from opset 18 on."""


@dataclass(frozen=True)
class CastReport:
    """What a component became. ``kept_float32`` names the weights beyond the range of the half type."""

    casts: int
    half_nodes: int
    float32_nodes: int
    kept_float32: tuple[str, ...]


def cast_to_half(model: ir.Model, half: ir.DataType = FLOAT16, *, keep: Collection[str] = ()) -> CastReport:
    """Type ``model`` in place for half precision, float16 or bfloat16. Inputs, outputs and all integers stay as they
    are, and so do the nodes that ``keep`` names, by their own names or by those of scopes.

    Weights are converted when the model is saved, one at a time.

    Raises:
        GraphError: the graph has nested graphs, values of unknown type, or is in half precision already.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    kept = frozenset(node for node in model.graph if is_named(node, keep))
    types = infer_half_types(model.graph, half, keep=kept)
    float_nodes = [node for node in model.graph if is_float_node(node)]
    _Rewriter(model.graph, types, half).rewrite(float_nodes)
    if half == BFLOAT16:
        model.graph.opset_imports[""] = max(_BFLOAT16_OPSET, model.graph.opset_imports[""])
        model.ir_version = max(_BFLOAT16_IR_VERSION, model.ir_version)
    return CastReport(
        casts=types.casts,
        half_nodes=len(types.half),
        float32_nodes=len(float_nodes) - len(types.half),
        kept_float32=types.beyond_half,
    )


class _Rewriter:
    """Connects every float node to its inputs in its own type. Each value is cast at most once."""

    def __init__(self, graph: ir.Graph, types: HalfTypes, half: ir.DataType) -> None:
        self._graph = graph
        self._nodes, self._half = types.half, half
        self._first = next(iter(graph), None)
        self._other: dict[ir.Value, ir.Value] = {}

    def rewrite(self, float_nodes: list[ir.Node]) -> None:
        # Read every edge before the first type changes.
        edges = [
            (node, index, value)
            for node in float_nodes
            for index, value in enumerate(node.inputs)
            if value is not None and is_float32(value)
        ]
        outputs = [index for index, value in enumerate(self._graph.outputs) if is_float32(value)]
        for node in float_nodes:
            if node in self._nodes:
                self._make_half(node)
        for node, index, value in edges:
            wanted = self._half if node in self._nodes else SINGLE
            node.replace_input_with(index, self._in_type(value, wanted))
        for index in outputs:
            self._keep_output(index)
        self._drop_unused_weights()

    def _make_half(self, node: ir.Node) -> None:
        for value in node.outputs:
            if is_float32(value):
                value.dtype = self._half
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", self._half)

    def _in_type(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        if value.dtype == wanted:
            return value
        if value not in self._other:
            self._other[value] = self._half_weight(value) if value.is_initializer() else self._cast(value, wanted)
        return self._other[value]

    def _half_weight(self, value: ir.Value) -> ir.Value:
        tensor, name = value.const_value, f"{value.name}.{self._half.name.lower()}"
        if tensor is None:
            raise GraphError("an initializer has no value", found=value.name, fix="make the bundle again")
        shape = ir.Shape(tensor.shape.numpy())
        half = ir.LazyTensor(_converted(tensor, self._half, name), self._half, shape, name=name)
        weight = ir.Value(name=name, type=ir.TensorType(self._half), shape=shape, const_value=half)
        self._graph.register_initializer(weight)
        return weight

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        name = f"{value.name}.{'float32' if wanted == SINGLE else wanted.name.lower()}"
        cast = ir.node("Cast", [value], {"to": wanted}, name=f"Cast_{name}")
        result = cast.outputs[0]
        result.name, result.dtype, result.shape = name, wanted, value.shape
        producer = value.producer()
        if producer is not None:
            self._graph.insert_after(producer, cast)
        elif self._first is not None:
            self._graph.insert_before(self._first, cast)
        return result

    def _keep_output(self, index: int) -> None:
        """The output keeps its name and type; a half value behind it is renamed."""
        value = self._graph.outputs[index]
        if value.dtype != self._half:
            return
        if value not in self._other:
            self._other[value] = self._cast(value, SINGLE)
        result, name = self._other[value], value.name
        value.name, result.name = f"{name}.{self._half.name.lower()}", name
        self._graph.outputs[index] = result

    def _drop_unused_weights(self) -> None:
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]


def _converted(tensor: ir.TensorProtocol, half: ir.DataType, name: str) -> Callable[[], ir.TensorProtocol]:
    def converted() -> ir.TensorProtocol:
        array = np.ascontiguousarray(tensor.numpy()).astype(half.numpy())
        release(tensor)
        return ir.Tensor(array, name=name)

    return converted

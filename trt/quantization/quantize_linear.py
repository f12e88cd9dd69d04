"""Write QuantizeLinear and DequantizeLinear around the chosen MatMuls of a float32 graph.

    x --> QuantizeLinear --> DequantizeLinear --+
          one scale for the tensor              +--> MatMul --> float32 as before
    q [K,N] stored in 8 bits --> DequantizeLinear, a scale for each of the N columns

Without a scale for ``x`` only the weights are quantized. A value that several MatMuls read is quantized once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nemotrt.errors import GraphError
from nemotrt.trt.half_types import release
from nemotrt.trt.quantization.number_formats import NumberFormat


def quantize_products(
    model: ir.Model, products: Sequence[ir.Node], *, number_format: NumberFormat, bounds: Mapping[str, float] | None
) -> None:
    """Quantize ``products`` in place. Weights are converted when the model is saved, one at a time.

    ``bounds`` holds the largest magnitude of each activation by name; ``None``: only weights are quantized.

    Raises:
        GraphError: an activation without a bound, or a weight that is not finite.
    """
    # From 18 to 19 the operators of these graphs gained types and attributes, and kept their meaning.
    model.graph.opset_imports[""] = max(model.graph.opset_imports[""], number_format.opset)
    rewriter = _Rewriter(model.graph, number_format)
    for node in products:
        rewriter.quantize_weight(node)
        if bounds is not None:
            rewriter.quantize_activation(node, bounds)
    rewriter.drop_unused_weights()


class _Rewriter:
    def __init__(self, graph: ir.Graph, number_format: NumberFormat) -> None:
        self._graph, self._format = graph, number_format
        self._dequantized: dict[ir.Value, ir.Value] = {}

    def quantize_activation(self, node: ir.Node, bounds: Mapping[str, float]) -> None:
        value = _input(node, 0)
        if value not in self._dequantized:
            bound = bounds.get(str(value.name), 0.0)
            if not 0 < bound < np.inf:
                raise GraphError(
                    "an activation has no amplitude",
                    where=node.name,
                    found=f"{value.name}: {bound}",
                    fix="calibrate on audio that reaches this product",
                )
            scale = self._constant(f"{value.name}.scale", self._format.scale_of(np.asarray(bound, np.float32)))
            zero = self._constant(f"{value.name}.zero_point", np.zeros((), self._format.dtype.numpy()))
            quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{value.name}.quantize")
            quantized = _named(quantize, f"{value.name}.quantized", self._format.dtype, value)
            restore = ir.node("DequantizeLinear", [quantized, scale, zero], name=f"{value.name}.dequantize")
            self._dequantized[value] = _named(restore, f"{value.name}.dequantized", ir.DataType.FLOAT, value)
            self._graph.insert_before(node, (quantize, restore))
        node.replace_input_with(0, self._dequantized[value])

    def quantize_weight(self, node: ir.Node) -> None:
        value = _input(node, 1)
        if value not in self._dequantized:
            tensor = value.const_value
            if tensor is None:
                raise GraphError("a weight has no value", found=value.name, fix="make the bundle again")
            scale = self._format.scale_of(_column_amplitudes(tensor))
            stored = self._stored_weight(f"{value.name}.{self._format.name}", tensor, scale)
            inputs = [stored, self._constant(f"{value.name}.scale", scale)]
            restore = ir.node("DequantizeLinear", inputs, {"axis": 1}, name=f"{value.name}.dequantize")
            self._dequantized[value] = _named(restore, f"{value.name}.dequantized", ir.DataType.FLOAT, value)
            self._graph.insert_before(node, restore)
        node.replace_input_with(1, self._dequantized[value])

    def drop_unused_weights(self) -> None:
        for name, value in list(self._graph.initializers.items()):
            if value in self._dequantized and not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]

    def _stored_weight(self, name: str, tensor: ir.TensorProtocol, scale: NDArray[np.float32]) -> ir.Value:
        shape = ir.Shape(tensor.shape.numpy())
        lazy = ir.LazyTensor(_quantized(tensor, scale, self._format, name), self._format.dtype, shape, name=name)
        return self._registered(name, lazy, self._format.dtype, shape)

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        tensor = ir.Tensor(array, name=name)
        return self._registered(name, tensor, tensor.dtype, ir.Shape(array.shape))

    def _registered(self, name: str, tensor: ir.TensorProtocol, dtype: ir.DataType, shape: ir.Shape) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value


def _column_amplitudes(tensor: ir.TensorProtocol) -> NDArray[np.float32]:
    """The largest magnitude of every column."""
    amplitudes: NDArray[np.float32] = np.abs(tensor.numpy()).max(axis=0).astype(np.float32)
    release(tensor)
    if not np.isfinite(amplitudes).all():
        raise GraphError(
            "a weight is not finite, so no scale fits it", found=tensor.name, fix="keep this product in float32"
        )
    return amplitudes


def _quantized(
    tensor: ir.TensorProtocol, scale: NDArray[np.float32], number_format: NumberFormat, name: str
) -> Callable[[], ir.TensorProtocol]:
    def converted() -> ir.TensorProtocol:
        stored = number_format.stored(np.asarray(tensor.numpy() / scale, np.float32))
        release(tensor)
        return ir.Tensor(stored, name=name)

    return converted


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise GraphError("a product lacks an input", where=node.name, fix="make the bundle again")
    return value


def _named(node: ir.Node, name: str, dtype: ir.DataType, like: ir.Value) -> ir.Value:
    result = node.outputs[0]
    result.name, result.dtype, result.shape = name, dtype, like.shape
    return result

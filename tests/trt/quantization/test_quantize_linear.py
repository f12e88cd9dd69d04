"""Q/DQ in a graph of two products. Oracle: the float32 graph, and onnx's reference evaluator for the numbers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from quantizable_graphs import HIDDEN, WIDTH, chain_of_products, in_memory, rows, two_products, uneven_weights

from nemotrt.bundle import Bundle
from nemotrt.errors import GraphError
from nemotrt.trt.quantization.number_formats import FORMATS
from nemotrt.trt.quantization.quantize_linear import quantize_products
from nemotrt.trt.quantization.quantized_bundle import QuantizationOrder, quantize_bundle

BOUNDS = {"x": 4.0, "squashed": 1.0}


def quantized(to: str = "int8", bounds: dict[str, float] | None = BOUNDS) -> onnx.ModelProto:
    model = in_memory(uneven_weights())
    products = [node for node in model.graph if node.op_type == "MatMul"]
    quantize_products(model, products, number_format=FORMATS[to], bounds=bounds)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def outputs(model: onnx.ModelProto) -> NDArray[np.float32]:
    return ReferenceEvaluator(model).run(None, {"x": rows()})[0]


def error(model: onnx.ModelProto) -> float:
    """The largest relative error of a column: each counts, however small it is."""
    wanted, found = outputs(two_products(uneven_weights())), outputs(model)
    return float((np.linalg.norm(found - wanted, axis=0) / np.linalg.norm(wanted, axis=0)).max())


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(one for one in model.graph.initializer if one.name == name)


def replaced(model: onnx.ModelProto, name: str, array: NDArray[np.generic]) -> onnx.ModelProto:
    initializer(model, name).CopyFrom(onnx.numpy_helper.from_array(array, name))
    return model


def scale_of(model: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    return onnx.numpy_helper.to_array(initializer(model, name))


@pytest.mark.parametrize(("to", "bound"), [("int8", 0.1), ("fp8", 0.25)])
def test_the_products_stay_what_they_were(to: str, bound: float) -> None:
    assert 0 < error(quantized(to, bounds=None)) < error(quantized(to)) < bound


def test_weights_are_stored_in_eight_bits_with_a_scale_for_every_column() -> None:
    model = quantized()
    stored = initializer(model, "up.weight.int8")
    assert stored.data_type == onnx.TensorProto.INT8
    assert len(stored.raw_data) == WIDTH * HIDDEN
    assert scale_of(model, "up.weight.scale").shape == (HIDDEN,)
    assert scale_of(model, "x.scale").shape == ()
    assert "up.weight" not in {one.name for one in model.graph.initializer}
    weights = onnx.numpy_helper.to_array(stored).astype(np.float32) * scale_of(model, "up.weight.scale")
    wanted = uneven_weights()["up.weight"]
    assert (np.abs(weights - wanted) <= np.abs(wanted).max(axis=0) / 254 * 1.0001).all()


def test_onnx_runtime_and_the_reference_evaluator_agree() -> None:
    model = quantized()
    found = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": rows()})
    # A value on the edge of two integers may be rounded either way.
    assert np.linalg.norm(found[0] - outputs(model)) / np.linalg.norm(outputs(model)) < 5e-3


def test_one_scale_for_a_whole_weight_is_worse(figure: Callable[[str], None]) -> None:
    model = quantized(bounds=None)
    for name, array in uneven_weights().items():
        scale = FORMATS["int8"].scale_of(np.abs(array).max())
        replaced(model, f"{name}.{'int8'}", FORMATS["int8"].stored(array / scale))
        replaced(model, f"{name}.scale", np.full(array.shape[1], scale))
    per_column = error(quantized(bounds=None))
    figure(f"int8 weights of uneven columns: worst column {per_column:.1e}, with one scale a tensor {error(model):.1e}")
    assert error(model) > 10 * per_column


def test_scales_of_two_swapped_columns_are_seen() -> None:
    model = quantized()
    scale = scale_of(model, "down.weight.scale").copy()
    scale[[0, -1]] = scale[[-1, 0]]
    assert error(replaced(model, "down.weight.scale", scale)) > 0.5


@pytest.mark.parametrize("factor", [0.1, 100.0])
def test_an_activation_scale_that_is_too_small_or_too_large_is_seen(factor: float) -> None:
    assert error(quantized(bounds={**BOUNDS, "x": factor * BOUNDS["x"]})) > 5 * error(quantized())


def test_an_activation_that_several_products_read_is_quantized_once() -> None:
    model = in_memory(uneven_weights())
    first, _, second = list(model.graph)
    second.replace_input_with(0, first.inputs[0])
    second.replace_input_with(1, first.inputs[1])
    quantize_products(model, [first, second], number_format=FORMATS["int8"], bounds={"x": 4.0})
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 1
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == 2


@pytest.mark.parametrize("bounds", [{"x": 4.0}, {**BOUNDS, "squashed": 0.0}, {**BOUNDS, "squashed": np.inf}])
def test_an_activation_without_an_amplitude_is_refused_by_name(bounds: dict[str, float]) -> None:
    with pytest.raises(GraphError, match="no amplitude") as caught:
        quantized(bounds=bounds)
    assert "squashed" in str(caught.value.found)


def test_a_weight_that_is_not_finite_is_refused_by_name() -> None:
    weights = uneven_weights()
    weights["down.weight"][3, 5] = np.nan
    model = in_memory(weights)
    with pytest.raises(GraphError, match="not finite") as caught:
        quantize_products(model, list(model.graph)[::2], number_format=FORMATS["int8"], bounds=None)
    assert caught.value.found == "down.weight"


@pytest.mark.parametrize(("to", "opset"), [("int8", 18), ("fp8", 19)])
def test_the_opset_rises_only_where_the_format_needs_it(to: str, opset: int) -> None:
    model = in_memory(uneven_weights(), opset=18)
    quantize_products(model, list(model.graph)[::2], number_format=FORMATS[to], bounds=BOUNDS)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert model.graph.opset_imports[""] == opset


def test_weights_are_converted_one_at_a_time(tdt_bundle: Bundle, tmp_path: Path) -> None:
    count, side = 16, 512
    folder = tmp_path / "large"
    folder.mkdir()
    spec = chain_of_products(folder, count=count, side=side)
    meta = tdt_bundle.meta.model_copy(update={"components": {"joint": spec}, "files": {}})
    tracemalloc.start()
    try:
        made = quantize_bundle(Bundle(folder, meta), tmp_path / "out", QuantizationOrder(weight_only=True))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (made.path / "joint.onnx.data").stat().st_size == pytest.approx(count * side * side, rel=0.1)
    assert peak_bytes < 5 * 4 * side * side

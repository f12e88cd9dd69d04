"""The audit of dtypes: bytes are counted from the file, so a graph that only pretends is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from quantizable_graphs import HIDDEN, WIDTH, in_memory, on_disk, rows, two_products, uneven_weights

from nemotrt.bundle import Bundle
from nemotrt.errors import GraphError
from nemotrt.trt.quantization.audit import audit_dtypes, check_quantized
from nemotrt.trt.quantization.number_formats import FORMATS
from nemotrt.trt.quantization.quantize_linear import quantize_products

ELEMENTS = WIDTH * HIDDEN


def test_a_float32_graph_has_float32_weights(tmp_path: Path) -> None:
    audit = audit_dtypes(on_disk(in_memory(uneven_weights()), tmp_path / "two.onnx"))
    assert audit.weight_bytes == {"float32": 2 * 4 * ELEMENTS}
    assert audit.products == {"float32": 2}
    assert audit.quantized_activations == 0


def test_a_constant_in_a_node_is_counted_like_a_weight(tmp_path: Path) -> None:
    model = two_products(uneven_weights())
    model.graph.node.insert(0, helper.make_node("Constant", [], ["table"], value=numpy_helper.from_array(rows(5))))
    onnx.save(model, tmp_path / "two.onnx")
    assert audit_dtypes(tmp_path / "two.onnx").weight_bytes == {"float32": 4 * (2 * ELEMENTS + 5 * WIDTH)}


def test_one_quantized_product_of_two_is_counted_as_one(tmp_path: Path) -> None:
    model = in_memory(uneven_weights())
    quantize_products(model, [next(iter(model.graph))], number_format=FORMATS["int8"], bounds={"x": 4.0})
    audit = audit_dtypes(on_disk(model, tmp_path / "two.onnx"))
    assert audit.products == {"int8": 1, "float32": 1}
    assert audit.quantized_activations == 1
    assert audit.weight_bytes == {"int8": ELEMENTS + 1, "float32": 4 * (ELEMENTS + HIDDEN + 1)}
    assert audit.share("int8") == pytest.approx(0.2, abs=0.01)


def pretending(path: Path) -> Path:
    """Float32 weights behind QuantizeLinear: the numbers of int8, the bytes of float32."""
    model = two_products(uneven_weights())
    scale = helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [0.1])
    model.graph.initializer.extend([scale, helper.make_tensor("zero", onnx.TensorProto.INT8, [], [0])])
    for number, node in enumerate([one for one in model.graph.node if one.op_type == "MatMul"]):
        quantize = helper.make_node("QuantizeLinear", [node.input[1], "scale", "zero"], [f"q{number}"])
        restore = helper.make_node("DequantizeLinear", [f"q{number}", "scale", "zero"], [f"d{number}"])
        node.input[1] = f"d{number}"
        at = list(model.graph.node).index(node)
        model.graph.node.insert(at, restore)
        model.graph.node.insert(at, quantize)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def test_float32_weights_behind_quantize_linear_are_not_int8(tmp_path: Path) -> None:
    audit = audit_dtypes(pretending(tmp_path / "two.onnx"))
    assert audit.products == {"float32": 2}
    assert audit.share("int8") < 1e-4


def test_a_bundle_that_calls_itself_quantized_and_is_not_is_refused(tdt_bundle: Bundle) -> None:
    for precision in ("int8", "fp8"):
        liar = replace(tdt_bundle, meta=tdt_bundle.meta.model_copy(update={"precision": precision}))
        with pytest.raises(GraphError, match=f"called {precision} and no product has such a weight"):
            check_quantized(liar)
    assert check_quantized(tdt_bundle).products == {"float32": 37}


def test_int8_is_not_taken_for_fp8(tdt_bundle: Bundle, quantized: Callable[..., Bundle], tmp_path: Path) -> None:
    made = quantized(tdt_bundle)
    assert check_quantized(made).products["int8"] == 36
    folder = shutil.copytree(made.path, tmp_path / "copy")
    with pytest.raises(GraphError, match="called fp8"):
        check_quantized(Bundle(folder, made.meta.model_copy(update={"precision": "fp8"})))


def test_a_file_that_is_not_a_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(np.full(100, 255, np.uint8).tobytes())
    with pytest.raises(GraphError, match=r"cannot be read"):
        audit_dtypes(tmp_path / "broken.onnx")

"""Eight-bit numbers. Oracle: their definition, and onnx's reference evaluator for the rounding of float8."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from nemotrt.trt.quantization.number_formats import FORMATS


@pytest.mark.parametrize(("name", "relative"), [("int8", None), ("fp8", 1 / 16)])
def test_what_is_stored_is_the_nearest_number_of_the_format(name: str, relative: float | None) -> None:
    numbers = FORMATS[name]
    values = np.linspace(-3, 3, 10001, dtype=np.float32)
    scale = numbers.scale_of(np.asarray(3, np.float32))
    back = numbers.stored(values / scale).astype(np.float32) * scale
    # int8 is evenly spaced; float8 has three bits of mantissa, and below 2**-6 steps of 2**-9.
    allowed = scale / 2 if relative is None else np.maximum(np.abs(values) * relative, scale * 2**-10)
    assert (np.abs(back - values) <= allowed * 1.0001).all()
    assert back.min() == pytest.approx(-3)
    assert back.max() == pytest.approx(3)


@pytest.mark.parametrize(("name", "largest"), [("int8", 127), ("fp8", 448)])
def test_what_is_too_large_saturates_on_both_sides_alike(name: str, largest: float) -> None:
    stored = FORMATS[name].stored(np.asarray([-1e6, -largest, 0, largest, 1e6], np.float32))
    assert stored.astype(np.float32).tolist() == [-largest, -largest, 0, largest, largest]


def test_int8_rounds_ties_to_even_as_quantize_linear_does() -> None:
    assert FORMATS["int8"].stored(np.asarray([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize(("name", "kind"), [("int8", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN)])
def test_weights_are_rounded_as_quantize_linear_rounds_activations(name: str, kind: int) -> None:
    numbers = FORMATS[name]
    values, scale = np.random.default_rng(0).normal(0, 2, 5000).astype(np.float32), np.asarray(0.01, np.float32)
    zero = helper.make_tensor("zero", kind, [], np.zeros((), numbers.dtype.numpy()).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])],
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", kind, [None])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]), zero],
    )
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]))
    expected = evaluator.run(None, {"x": values})[0].astype(np.float32)
    found = numbers.stored(values / scale).astype(np.float32)
    assert np.mean(found == np.clip(expected, -numbers.largest, numbers.largest)) > 0.999  # but for x / scale itself


def test_a_column_of_zeros_has_a_scale_that_can_be_divided_by() -> None:
    assert FORMATS["int8"].scale_of(np.zeros(3, np.float32)).tolist() == [1, 1, 1]

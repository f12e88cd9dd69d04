"""Rounded twins of typed graphs. Oracles: onnx's reference evaluator, which rounds after every operator, and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import small_graphs
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from small_graphs import Nodes, component, saved

from nemotrt.bundle import TensorSpec
from nemotrt.trt.half_cast import cast_to_half
from nemotrt.trt.half_types import BFLOAT16, FLOAT16
from nemotrt.trt.rounded_graph import round_stored_values

ROW = component(
    "row",
    (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
)
Feeds = dict[str, NDArray]


def typed_and_rounded(graph: Path, half: ir.DataType) -> tuple[Path, Path]:
    folder = graph.parent
    for name in ("typed", "rounded"):
        model = ir.load(graph)
        cast_to_half(model, half)
        if name == "rounded":
            round_stored_values(model)
        ir.save(model, folder / f"{name}.onnx", external_data=f"{name}.onnx.data")
        onnx.checker.check_model(str(folder / f"{name}.onnx"), full_check=True)
    return folder / "typed.onnx", folder / "rounded.onnx"


def run(graph: Path, feeds: Feeds) -> list[NDArray]:
    return ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"]).run(None, feeds)


def scaled_there_and_back(folder: Path, scale: float) -> Path:
    """``y = 1/scale * (scale * x)``, through a value that is as large as ``scale``."""
    g = Nodes()
    g.add("MatMul", g.add("Relu", g.add("MatMul", "x", "up")), "down", out="y")
    there, back = (factor * np.eye(4, dtype=np.float32) for factor in (scale, 1 / scale))
    return saved(folder, ROW, list(g), {"up": there, "down": back})


def test_a_value_that_overflows_is_seen_where_onnx_runtime_does_not_see_it(tmp_path: Path) -> None:
    typed, rounded = typed_and_rounded(scaled_there_and_back(tmp_path, 60000.0), FLOAT16)
    x = np.array([[1.0, 1.5, 0.5, 2.0]], np.float32)  # 1.5 * 60000 is beyond 65504
    overflows = np.array([[False, True, False, True]])
    with np.errstate(over="ignore", invalid="ignore"):
        evaluated = ReferenceEvaluator(str(typed)).run(None, {"x": x})[0]
    found = run(rounded, {"x": x})[0]
    assert (np.isfinite(found) == np.isfinite(evaluated)).all()
    assert not np.isfinite(found[overflows]).any()
    assert np.isfinite(run(typed, {"x": x})[0]).all()


def test_bfloat16_does_not_overflow_there(tmp_path: Path) -> None:
    _, rounded = typed_and_rounded(scaled_there_and_back(tmp_path, 60000.0), BFLOAT16)
    x = np.array([[1.0, 1.5, 0.5, 2.0]], np.float32)
    np.testing.assert_allclose(run(rounded, {"x": x})[0], x, rtol=1e-2)


@pytest.mark.parametrize("half", [FLOAT16, BFLOAT16], ids=str)
def test_a_value_is_rounded_as_numpy_rounds_it(tmp_path: Path, half: ir.DataType) -> None:
    _, rounded = typed_and_rounded(scaled_there_and_back(tmp_path, 1.0), half)
    x = np.random.default_rng(0).uniform(0, 100, (64, 4)).astype(np.float32)
    assert (run(rounded, {"x": x})[0] == x.astype(half.numpy()).astype(np.float32)).all()


@pytest.mark.parametrize(("half", "bound"), [(FLOAT16, 2e-3), (BFLOAT16, 1.6e-2)], ids=str)
def test_a_conformer_block_is_as_far_from_float32_as_the_reference_evaluator_finds(
    tmp_path: Path, half: ir.DataType, bound: float
) -> None:
    graph = small_graphs.encoder(tmp_path)
    typed, rounded = typed_and_rounded(graph, half)
    signal = np.random.default_rng(1).standard_normal((4, small_graphs.WIDTH, 61)).astype(np.float32)
    feeds = {"audio_signal": signal, "length": np.array([61, 30, 1, 0])}
    wanted, lengths = run(graph, feeds)
    evaluated, found = ReferenceEvaluator(str(typed)).run(None, feeds), run(rounded, feeds)
    errors = [np.linalg.norm(result[0] - wanted) / np.linalg.norm(wanted) for result in (evaluated, found)]
    assert min(errors) > 0
    assert max(errors) < bound
    assert max(errors) < 2 * min(errors)
    assert (found[1] == lengths).all()
    assert (evaluated[1] == lengths).all()

"""The ONNX Runtime runner over small graphs made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from nemotrt.bundle import ComponentSpec, TensorSpec
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Runner
from nemotrt.errors import GraphError, InputError, MachineError, ProfileError

SPEC = ComponentSpec(
    graph="scale.onnx",
    data=None,
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=("batch", 3, "frames")),
        TensorSpec(name="length", dtype="int64", shape=("batch",)),
    ),
    outputs=(
        TensorSpec(name="y", dtype="float32", shape=("batch", 3, "frames")),
        TensorSpec(name="length_out", dtype="int64", shape=("batch",)),
    ),
    parameters=0,
)


def save_graph(path: Path, *nodes: onnx.NodeProto, axes: tuple[object, ...] = ("batch", 3, "frames")) -> Path:
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Add", ["x", "x"], ["y"])],
        "scale",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, axes),
            helper.make_tensor_value_info("length", TensorProto.INT64, ["batch"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, axes),
            helper.make_tensor_value_info("length_out", TensorProto.INT64, ["batch"]),
        ],
    )
    graph.node.append(helper.make_node("Identity", ["length"], ["length_out"]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def test_data_of_a_graph_is_found_in_another_folder_only_if_that_is_named(tmp_path: Path) -> None:
    weights, marked = tmp_path / "bundle", tmp_path / "marked" / "scale.onnx"
    weights.mkdir()
    marked.parent.mkdir()
    graph = save_graph(weights / "scale.onnx", helper.make_node("Mul", ["x", "three"], ["y"]))
    model = onnx.load(graph)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, 3, np.float32), "three"))
    onnx.save(model, graph, save_as_external_data=True, location="scale.data", size_threshold=0)
    graph.rename(marked)
    feeds = {"x": np.ones((1, 3, 4), np.float32), "length": np.array([4])}
    outputs = OnnxRuntimeRunner(marked, threads=1, data_folder=weights).run(feeds)
    assert (outputs["y"] == 3).all()
    with pytest.raises(GraphError, match="cannot load"):
        OnnxRuntimeRunner(marked, threads=1)
    with pytest.raises(GraphError, match="not there"):
        OnnxRuntimeRunner(tmp_path / "gone.onnx", threads=1, data_folder=weights)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return save_graph(tmp_path / "scale.onnx")


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    return {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "length": np.array([4, 2])}


def test_every_output_comes_back_by_name(graph: Path, feeds: dict[str, np.ndarray]):
    runner = OnnxRuntimeRunner(graph, spec=SPEC, threads=1)
    outputs = runner.run(feeds)
    assert outputs.keys() == {"y", "length_out"}
    np.testing.assert_array_equal(outputs["y"], 2 * feeds["x"])
    np.testing.assert_array_equal(outputs["length_out"], [4, 2])
    assert isinstance(runner, Runner)
    assert runner.label == f"onnxruntime {onnxruntime.__version__} CPU"


def test_without_a_contract_the_graph_speaks_for_itself(graph: Path):
    runner = OnnxRuntimeRunner(graph)
    assert (runner.inputs, runner.outputs) == (SPEC.inputs, SPEC.outputs)


def test_axes_without_a_name_get_one(tmp_path: Path):
    runner = OnnxRuntimeRunner(save_graph(tmp_path / "scale.onnx", axes=(None, 3, None)))
    assert runner.inputs[0].shape == ("x_axis_0", 3, "x_axis_2")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"x": None}, InputError, "found: length"),
        ({"z": np.zeros(1)}, InputError, "feed exactly: length, x"),
        ({"x": np.zeros((2, 3, 4))}, InputError, "float64, float32 expected"),
        ({"length": np.zeros(2, np.int32)}, InputError, "int32, int64 expected"),
        ({"x": np.zeros((2, 3), np.float32)}, ProfileError, "[2, 3], [batch, 3, frames] expected"),
        ({"x": np.zeros((2, 4, 4), np.float32)}, ProfileError, "[2, 4, 4], [batch=2, 3, frames] expected"),
        ({"x": np.zeros((2, 3, 0), np.float32)}, ProfileError, "[2, 3, 0]"),
        ({"length": np.zeros(3, np.int64)}, ProfileError, "[3], [batch=2] expected"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_before_onnxruntime_sees_them(
    graph: Path,
    feeds: dict[str, np.ndarray],
    changes: dict[str, np.ndarray | None],
    error: type[Exception],
    said: str,
):
    changed = {name: array for name, array in (feeds | changes).items() if array is not None}
    with pytest.raises(error) as caught:
        OnnxRuntimeRunner(graph, spec=SPEC).run(changed)
    assert said in str(caught.value)
    assert str(graph) in str(caught.value)


def test_a_graph_that_is_not_the_contracts_is_refused(tmp_path: Path):
    graph = save_graph(tmp_path / "scale.onnx", axes=("batch", 3))
    with pytest.raises(GraphError, match="metadata describes"):
        OnnxRuntimeRunner(graph, spec=SPEC)


@pytest.mark.parametrize("content", [None, b"", b"no graph" * 100])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes | None):
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphError) as caught:
        OnnxRuntimeRunner(path)
    assert caught.value.where == str(path)


def test_a_failure_while_running_names_the_graph_and_the_shapes(tmp_path: Path, feeds: dict[str, np.ndarray]):
    nodes = (
        helper.make_node(
            "Constant", [], ["shape"], value=helper.make_tensor("shape", TensorProto.INT64, [3], [2, 3, 5])
        ),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    )
    graph = save_graph(tmp_path / "reshape.onnx", *nodes)
    with pytest.raises(GraphError, match="failed to run") as caught:
        OnnxRuntimeRunner(graph).run(feeds)
    assert f"{graph} with x [2, 3, 4], length [2]" in str(caught.value.where)


def test_a_provider_that_is_not_there_is_named_with_those_that_are(graph: Path):
    with pytest.raises(MachineError, match="no NoSuchExecutionProvider") as caught:
        OnnxRuntimeRunner(graph, providers=["NoSuchExecutionProvider"])
    assert "CPUExecutionProvider" in str(caught.value.found)


def test_a_session_without_threads_is_refused(graph: Path):
    with pytest.raises(InputError, match="thread"):
        OnnxRuntimeRunner(graph, threads=0)


def test_closing_twice_is_fine_and_running_afterwards_is_not(graph: Path, feeds: dict[str, np.ndarray]):
    runner = OnnxRuntimeRunner(graph)
    runner.close()
    runner.close()
    with pytest.raises(InputError, match="closed"):
        runner.run(feeds)

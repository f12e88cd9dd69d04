"""What an inspection says of a graph is what the graph holds. Oracle: onnx's own reading of the file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nemotrt.bundle import Bundle
from nemotrt.errors import GraphError
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint
from nemotrt.trt.inspection import GraphFacts, inspect_graph
from nemotrt.trt.inspection.scopes import Scope
from nemotrt.trt.precision import cast_bundle


@pytest.fixture(scope="module")
def facts(tdt_bundle: Bundle) -> GraphFacts:
    return inspect_graph(tdt_bundle.graph_path("encoder"))


@pytest.fixture(scope="module")
def model(tdt_bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(tdt_bundle.graph_path("encoder"))


@pytest.fixture(scope="module")
def half(tdt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return cast_bundle(tdt_bundle, tmp_path_factory.mktemp("half") / "tdt")


def test_nodes_operators_and_interface_are_those_of_the_file(facts: GraphFacts, model: onnx.ModelProto) -> None:
    assert facts.nodes == len(model.graph.node)
    assert Counter(facts.ops) == Counter(node.op_type for node in model.graph.node)
    assert facts.opsets == {opset.domain: opset.version for opset in model.opset_import}
    assert [tensor.name for tensor in facts.inputs] == [value.name for value in model.graph.input]
    assert facts.outputs[0].shape == ("batch", 128, "encoder_frames")
    assert facts.metadata == {entry.key: entry.value for entry in model.metadata_props}


def test_weights_are_weighed_without_being_read(facts: GraphFacts, model: onnx.ModelProto, tdt_bundle: Bundle) -> None:
    arrays = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert facts.weight_bytes == sum(array.nbytes for array in arrays)
    assert {share.dtype: share.size_bytes for share in facts.dtypes} == {
        name: sum(array.nbytes for array in arrays if array.dtype.name == name) for name in ("float32", "int64")
    }
    assert facts.largest[0].size_bytes == max(array.nbytes for array in arrays)
    assert facts.parameters == tdt_bundle.component("encoder").parameters


def test_the_data_file_is_named_with_its_size_and_is_used_whole(facts: GraphFacts, tdt_bundle: Bundle) -> None:
    (file,) = facts.data_files
    assert file.name == "encoder.onnx.data"
    assert file.size_bytes == tdt_bundle.meta.files[file.name].size_bytes
    assert file.used_bytes <= file.size_bytes


def test_a_data_file_that_is_missing_is_reported_as_missing(tdt_bundle: Bundle, tmp_path: Path) -> None:
    lonely = tmp_path / "encoder.onnx"
    lonely.write_bytes(tdt_bundle.graph_path("encoder").read_bytes())
    assert [file.size_bytes for file in inspect_graph(lonely).data_files] == [None]


def test_the_position_limit_of_the_graph_is_that_of_the_contract(facts: GraphFacts, tdt_bundle: Bundle) -> None:
    assert facts.positions is not None
    assert facts.positions.max_frames == tdt_bundle.meta.encoder.max_encoder_frames


def test_a_shorter_table_is_seen_in_the_graph(tdt_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(components=("encoder",), choices=ModelChoices(max_seconds=20.0))
    short = export_checkpoint(tdt_checkpoint, tmp_path / "short", options=options)
    found = inspect_graph(short.graph_path("encoder")).positions
    assert found is not None
    assert found.max_frames == short.meta.encoder.max_encoder_frames < 5000


def test_a_graph_without_a_table_has_no_limit(tdt_bundle: Bundle) -> None:
    assert inspect_graph(tdt_bundle.graph_path("joint")).positions is None


def test_the_audit_tells_a_half_precision_graph_from_a_full_one(facts: GraphFacts, half: Bundle) -> None:
    typed = inspect_graph(half.graph_path("encoder"))
    kinds = [{row.weight_dtype for row in some.products} for some in (facts, typed)]
    assert kinds == [{"float32", None}, {"float16", None}]
    weighed = [sum(row.weight_bytes for row in some.products) for some in (facts, typed)]
    assert weighed[0] == 2 * weighed[1]
    assert sum(row.nodes for row in typed.products) == sum(row.nodes for row in facts.products)


def test_casts_do_not_make_blocks_of_their_own(facts: GraphFacts, half: Bundle) -> None:
    typed = inspect_graph(half.graph_path("encoder"))
    assert {scope.name for scope in typed.scopes.inner} == {scope.name for scope in facts.scopes.inner}


def test_blocks_add_up_to_the_whole_graph(facts: GraphFacts) -> None:
    assert (facts.scopes.nodes, facts.scopes.weight_bytes) == (facts.nodes, facts.weight_bytes)
    (layers,) = (scope for scope in facts.scopes.inner if scope.name == "layers")
    assert [scope.name for scope in layers.inner] == ["0", "1", "2", "3"]
    assert layers.nodes == sum(scope.nodes for scope in layers.inner)
    for scope in every(facts.scopes):
        assert scope.nodes == sum(scope.ops.values()) >= sum(inner.nodes for inner in scope.inner)


def every(scope: Scope) -> list[Scope]:
    return [scope, *(found for inner in scope.inner for found in every(inner))]


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """One product with a weight of eight bits, one with a weight that only looks like it."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["w.float"], name="q.dequantize"),
        helper.make_node("MatMul", ["x", "w.float"], ["y"], name="q.MatMul"),
        helper.make_node("MatMul", ["y", "v"], ["z"], name="f.MatMul"),
    ]
    weights = {
        "w": np.ones((8, 8), np.int8),
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "v": np.ones((8, 8), np.float32),
    }
    x, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 8]) for name in "xz")
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "quantized", [x], [z], initializer=tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "quantized.onnx")
    return tmp_path / "quantized.onnx"


def test_the_audit_looks_behind_dequantization(quantized: Path) -> None:
    found = {row.weight_dtype: (row.nodes, row.weight_bytes) for row in inspect_graph(quantized).products}
    assert found == {"int8": (1, 64), "float32": (1, 256)}


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"not a graph"])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.onnx").write_bytes(content)
    with pytest.raises(GraphError, match="not an ONNX graph"):
        inspect_graph(tmp_path / "notes.onnx")

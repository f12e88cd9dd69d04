"""Half precision written into graphs. Oracles: the float32 graph in ONNX Runtime, and all assignments of types.

Typed graphs run in ONNX Runtime too, but its CPU kernels compute most of float16 in float32 and drop Casts between
them: what float16 really costs is asked of onnx's reference evaluator, which rounds after every operator.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import small_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from small_graphs import ENCODER, Nodes, component, saved

from nemotrt.bundle import ComponentSpec, TensorSpec
from nemotrt.errors import GraphError
from nemotrt.profiles import AxisRange
from nemotrt.trt.build import BuildRequest, build_engine
from nemotrt.trt.half_cast import CastReport, cast_to_half
from nemotrt.trt.half_types import BFLOAT16, FLOAT16, infer_half_types, is_float_node

Arrays = dict[str, NDArray]


def converted(graph: Path, spec: ComponentSpec) -> tuple[Path, ir.Model, CastReport]:
    model = ir.load(graph)
    report = cast_to_half(model)
    folder = graph.parent / "float16"
    folder.mkdir()
    ir.save(model, folder / spec.graph, external_data=spec.data)
    onnx.checker.check_model(str(folder / spec.graph), full_check=True)
    return folder / spec.graph, model, report


def run(graph: Path, feeds: Arrays) -> list[NDArray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def evaluate(graph: Path, feeds: Arrays) -> list[NDArray]:
    with np.errstate(over="ignore"):
        return ReferenceEvaluator(str(graph)).run(None, feeds)


def speech(frames: int = 61) -> Arrays:
    signal = np.random.default_rng(1).standard_normal((4, small_graphs.WIDTH, frames)).astype(np.float32)
    return {"audio_signal": signal, "length": np.array([frames, frames // 2, 1, 0])}


def relative_error(found: NDArray, wanted: NDArray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def type_of_result(model: ir.Model, op_type: str) -> set[ir.DataType | None]:
    return {node.outputs[0].dtype for node in model.graph if node.op_type == op_type}


@pytest.mark.parametrize("runtime", [run, evaluate])
def test_a_conformer_block_agrees_with_float32_and_padded_rows_stay_finite(
    tmp_path: Path, runtime: Callable[[Path, Arrays], list[NDArray]]
) -> None:
    graph = small_graphs.encoder(tmp_path)
    half, _, _ = converted(graph, ENCODER)
    wanted, wanted_lengths = run(graph, speech())
    found, lengths = runtime(half, speech())
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert 0 < relative_error(found, wanted) < 2e-3  # half precision has 11 bits: 5e-4 an operation
    assert (lengths == wanted_lengths).all()


def test_a_typed_block_is_taken_by_tensorrt(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    half, _, report = converted(small_graphs.encoder(tmp_path), ENCODER)
    ranges = {"batch": AxisRange(1, 2, 4), "frames": AxisRange(2, 40, 200)}
    requests = [BuildRequest(g, ENCODER, (ranges,), "tensorrt-rtx") for g in (half, tmp_path / "encoder.onnx")]
    typed, plain = map(build_engine, requests)
    assert typed.layers == plain.layers + report.casts


def test_products_are_float16_and_norms_softmax_and_masks_float32(tmp_path: Path) -> None:
    _, model, _ = converted(small_graphs.encoder(tmp_path), ENCODER)
    assert type_of_result(model, "MatMul") == type_of_result(model, "Conv") == {FLOAT16}
    assert type_of_result(model, "LayerNormalization") == type_of_result(model, "Softmax") == {ir.DataType.FLOAT}
    masking = next(node for node in model.graph if node.op_type == "Where" and node.inputs[2].name == "masked")
    assert masking.outputs[0].dtype == ir.DataType.FLOAT


def test_a_block_needs_six_casts_none_of_them_after_another(tmp_path: Path) -> None:
    # input, norm in and out, softmax in and out, output
    _, model, report = converted(small_graphs.encoder(tmp_path), ENCODER)
    casts = [n for n in model.graph if n.op_type == "Cast" and n.inputs[0].dtype != ir.DataType.BOOL]
    assert len(casts) == report.casts == 6
    assert not any(cast.inputs[0].producer() in casts for cast in casts)
    assert len({cast.inputs[0] for cast in casts}) == len(casts)


def integer_part(model: onnx.ModelProto) -> dict[str, bytes]:
    """Every node that makes integers or booleans, as bytes, by name."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)}
    return {n.name: n.SerializeToString() for n in model.graph.node if not floats.intersection(n.output)}


def test_nodes_that_make_integers_or_booleans_are_the_same_bytes_as_before(tmp_path: Path) -> None:
    graph = small_graphs.encoder(tmp_path)
    half, _, _ = converted(graph, ENCODER)
    before, after = (integer_part(onnx.load(path, load_external_data=False)) for path in (graph, half))
    assert len(before) >= 8
    assert before == after


LENGTHS = component(
    "lengths",
    (
        TensorSpec(name="length", dtype="int64", shape=("batch",)),
        TensorSpec(name="x", dtype="float32", shape=("batch", 4)),
    ),
    (
        TensorSpec(name="encoded_lengths", dtype="int64", shape=("batch",)),
        TensorSpec(name="y", dtype="float32", shape=("batch", 4)),
    ),
)


def float_length_graph(folder: Path) -> Path:
    """NeMo's own arithmetic in float, (n - 1) / 2 + 1 three times, each step of it read by a half product too.

    Counting Casts alone would choose half precision for the lengths: one Cast in and one out.
    """
    g = Nodes()
    n = g.add("Cast", "length", to=TensorProto.FLOAT)
    y = g.add("MatMul", "x", "w")
    for _ in range(3):
        for op_type, constant in (("Add", "minus_one"), ("Div", "two"), ("Add", "one")):
            n = g.add(op_type, n, constant)
            y = g.add("MatMul", g.add("Mul", y, g.add("Unsqueeze", g.add("Min", n, "one"), "axis")), "w")
        n = g.add("Floor", n)
    g.add("Cast", n, to=TensorProto.INT64, out="encoded_lengths")
    g.add("MatMul", y, "w", out="y")
    weights = {
        "minus_one": np.array(-1, np.float32),
        "two": np.array(2, np.float32),
        "one": np.array(1, np.float32),
        "axis": np.array([1], np.int64),
        "w": np.eye(4, dtype=np.float32),
    }
    return saved(folder, LENGTHS, list(g), weights)


EVERY_LENGTH = np.arange(1, 6001)
ENCODED = (((EVERY_LENGTH + 1) // 2 + 1) // 2 + 1) // 2


def test_lengths_computed_in_float_are_exact_for_every_length_up_to_6000(tmp_path: Path) -> None:
    half, model, _ = converted(float_length_graph(tmp_path), LENGTHS)
    feeds = {"length": EVERY_LENGTH, "x": np.ones((len(EVERY_LENGTH), 4), np.float32)}
    assert (run(half, feeds)[0] == ENCODED).all()
    assert (evaluate(half, feeds)[0] == ENCODED).all()
    assert type_of_result(model, "MatMul") == {FLOAT16}


def test_lengths_in_a_conformer_block_are_exact_for_every_length_up_to_6000(tmp_path: Path) -> None:
    half, _, _ = converted(small_graphs.encoder(tmp_path), ENCODER)
    feeds = {"audio_signal": np.zeros((6000, small_graphs.WIDTH, 1), np.float32), "length": EVERY_LENGTH}
    assert (run(half, feeds)[1] == (EVERY_LENGTH + 1) // 2).all()


def test_the_same_lengths_in_half_precision_would_be_wrong() -> None:
    n = EVERY_LENGTH.astype(np.float16)
    for _ in range(3):
        n = np.floor((n - np.float16(1)) / np.float16(2) + np.float16(1))
    wrong = EVERY_LENGTH[n.astype(np.int64) != ENCODED]
    assert len(wrong) > 100
    assert wrong[0] > 2048


SCORES = component(
    "scores",
    (
        TensorSpec(name="x", dtype="float32", shape=("batch", 4)),
        TensorSpec(name="allowed", dtype="float32", shape=("batch", 4)),
    ),
    (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
)


@pytest.mark.parametrize("forbidden", [-1e4, -65504.0, float(np.finfo(np.float32).min)])
def test_an_additive_mask_of_any_size_stays_finite(tmp_path: Path, forbidden: float) -> None:
    g = Nodes()
    bias = g.add("Mul", g.add("Sub", "one", "allowed"), "forbidden")
    scores = g.add("Add", g.add("MatMul", "x", "w"), bias)
    g.add("MatMul", g.add("Softmax", scores, axis=-1), "w", out="y")
    weights = {
        "one": np.array(1, np.float32),
        "forbidden": np.array(forbidden, np.float32),
        "w": np.eye(4, dtype=np.float32),
    }
    graph = saved(tmp_path, SCORES, list(g), weights)
    half, model, _ = converted(graph, SCORES)
    allowed = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], np.float32)
    feeds = {"x": np.array([[1, 2, 3, 4]] * 3, np.float32), "allowed": allowed}
    found, wanted = evaluate(half, feeds)[0], run(graph, feeds)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    masked_sum = next(node for node in model.graph if node.op_type == "Add")
    assert masked_sum.outputs[0].dtype == ir.DataType.FLOAT


ROW = component(
    "row",
    (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
)


def test_a_weight_beyond_half_precision_stays_float32_with_what_it_makes_and_is_named(tmp_path: Path) -> None:
    g = Nodes()
    large = g.add("Add", g.add("MatMul", "x", "huge"), g.add("MatMul", "x", "w"))
    g.add("LayerNormalization", large, "scale", axis=-1, out="y")
    random = np.random.default_rng(0).standard_normal
    weights = {
        "huge": 1e6 * random((4, 4)).astype(np.float32),
        "w": random((4, 4)).astype(np.float32),
        "scale": np.ones(4, np.float32),
    }
    graph = saved(tmp_path, ROW, list(g), weights)
    half, model, report = converted(graph, ROW)
    assert report.kept_float32 == ("huge",)
    assert set(model.graph.initializers) == {"huge", "w.float16", "scale"}
    feeds = {"x": random((3, 4)).astype(np.float32)}
    np.testing.assert_allclose(evaluate(half, feeds)[0], run(graph, feeds)[0], atol=2e-3)


def test_a_weight_beyond_float16_is_within_bfloat16(tmp_path: Path) -> None:
    weights = {"huge": np.full((4, 4), 1e6, np.float32), "most": np.full((4, 4), np.finfo(np.float32).max, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "huge"], ["middle"], name="huge_product"),
        helper.make_node("MatMul", ["middle", "most"], ["y"], name="largest_product"),
    ]
    model = ir.load(saved(tmp_path, ROW, nodes, weights))
    assert cast_to_half(model, BFLOAT16).kept_float32 == ("most",)  # rounded to bfloat16 it would be infinite
    assert type_of_result(model, "MatMul") == {BFLOAT16, ir.DataType.FLOAT}


def test_bfloat16_graphs_are_of_an_opset_whose_convolutions_take_it(tmp_path: Path) -> None:
    opsets = {}
    for half in (FLOAT16, BFLOAT16):
        model = ir.load(small_graphs.encoder(tmp_path))
        cast_to_half(model, half)
        opsets[half] = model.graph.opset_imports[""]
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert opsets == {FLOAT16: small_graphs.OPSET, BFLOAT16: 22}


def test_what_is_named_stays_float32_and_the_casts_are_those_of_the_fewest(tmp_path: Path) -> None:
    model = ir.load(small_graphs.encoder(tmp_path))
    products = [node.name for node in model.graph if node.op_type in ("MatMul", "Conv") and node.name]
    report = cast_to_half(model, keep=products[:1])
    types = {node.name: node.outputs[0].dtype for node in model.graph}
    assert [types[name] for name in products] == [ir.DataType.FLOAT, *[FLOAT16] * (len(products) - 1)]
    assert sum(node.op_type == "Cast" and node.inputs[0].dtype != ir.DataType.BOOL for node in model.graph) == (
        report.casts
    )


def test_a_scalar_that_half_precision_would_round_to_zero_stays_float32(tmp_path: Path) -> None:
    g = Nodes()
    zero = g.add("MatMul", "x", "nothing")
    g.add("MatMul", g.add("Div", g.add("Add", zero, "epsilon"), "epsilon"), "w", out="y")
    weights = {
        "nothing": np.zeros((4, 4), np.float32),
        "w": np.eye(4, dtype=np.float32),
        "epsilon": np.array(1e-12, np.float32),
    }
    half, _, _ = converted(saved(tmp_path, ROW, list(g), weights), ROW)
    assert (evaluate(half, {"x": np.ones((1, 4), np.float32)})[0] == 1).all()


def test_a_weight_read_in_both_types_is_stored_in_both(tmp_path: Path) -> None:
    g = Nodes()
    g.add("LayerNormalization", g.add("Add", g.add("MatMul", "x", "w"), "b"), "b", axis=-1, out="y")
    weights = {"w": np.eye(4, dtype=np.float32), "b": np.array([1, 2, 3, 4], np.float32)}
    graph = saved(tmp_path, ROW, list(g), weights)
    half, model, _ = converted(graph, ROW)
    assert set(model.graph.initializers) == {"w.float16", "b", "b.float16"}
    feeds = {"x": np.array([[4, 1, 3, 2]], np.float32)}
    np.testing.assert_allclose(evaluate(half, feeds)[0], run(graph, feeds)[0], atol=2e-3)


def test_a_value_that_is_an_output_and_read_again_keeps_its_name(tmp_path: Path) -> None:
    spec = component("row", ROW.inputs, (TensorSpec(name="middle", dtype="float32", shape=("batch", 4)), *ROW.outputs))
    g = Nodes()
    g.add("MatMul", g.add("MatMul", "x", "w", out="middle"), "w", out="y")
    half, _, report = converted(saved(tmp_path, spec, list(g), {"w": 2 * np.eye(4, dtype=np.float32)}), spec)
    middle, y = run(half, {"x": np.ones((1, 4), np.float32)})
    assert (middle == 2).all()
    assert (y == 4).all()
    assert report.casts == 3


def test_constant_nodes_are_typed_as_weights_are(tmp_path: Path) -> None:
    matrix = helper.make_tensor("m", TensorProto.FLOAT, (4, 4), np.eye(4, dtype=np.float32).ravel())
    nodes = [
        helper.make_node("Constant", [], ["w"], name="constant", value=matrix),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    _, model, report = converted(saved(tmp_path, ROW, nodes, {}), ROW)
    assert set(model.graph.initializers) == {"w.float16"}
    assert report.casts == 2


def test_a_graph_without_products_is_left_alone(tmp_path: Path) -> None:
    _, model, report = converted(saved(tmp_path, ROW, [helper.make_node("Relu", ["x"], ["y"], name="r")], {}), ROW)
    assert (report.casts, report.half_nodes, report.float32_nodes) == (0, 0, 1)
    assert len(model.graph) == 1


def test_a_graph_in_half_precision_already_is_refused(tmp_path: Path) -> None:
    _, model, _ = converted(small_graphs.encoder(tmp_path), ENCODER)
    with pytest.raises(GraphError, match="FLOAT16 already"):
        cast_to_half(model)


def test_a_graph_with_a_branch_is_refused(tmp_path: Path) -> None:
    y = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 4])
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["b"])], "branch", [], [y])
    nodes = [helper.make_node("If", ["yes"], ["y"], name="either", then_branch=branch, else_branch=branch)]
    graph = saved(tmp_path, ROW, nodes, {"yes": np.array(True)})
    with pytest.raises(GraphError, match=r"either \(If\)"):
        cast_to_half(ir.load(graph))


# Random graphs: is the number of Casts really the smallest?

FREE = ("Relu", "Neg", "Add")
PINNED = {"MatMul": True, "Softmax": False}
steps = st.lists(
    st.tuples(st.sampled_from([*FREE, *PINNED]), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=7
)


def random_model(program: list[tuple[str, int, int]]) -> ir.Model:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([4, 4]))
    values = [x]
    nodes = []
    for index, (op_type, first, second) in enumerate(program):
        chosen = [values[first % len(values)], values[second % len(values)]]
        node = ir.node(op_type, chosen if op_type in ("Add", "MatMul") else chosen[:1], name=f"n{index}")
        node.outputs[0].name, node.outputs[0].shape = f"v{index}", ir.Shape([4, 4])
        node.outputs[0].dtype = ir.DataType.FLOAT
        values.append(node.outputs[0])
        nodes.append(node)
    outputs = [value for value in values[1:] if not value.uses()]
    return ir.Model(ir.Graph([x], outputs, nodes=nodes, opset_imports={"": 18}, name="random"), ir_version=9)


def casts_of(graph: ir.Graph, half: dict[ir.Node, bool]) -> int:
    """By counting: one Cast for each value that somebody reads in the other type."""
    total = 0
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        producer = value.producer()
        made_half = producer is not None and half[producer]
        read_half = [half[node] for node, _ in value.uses()] + [False] * value.is_graph_output()
        total += any(read != made_half for read in read_half)
    return total


@settings(max_examples=200)
@given(program=steps)
def test_no_assignment_of_types_needs_fewer_casts(program: list[tuple[str, int, int]]) -> None:
    model = random_model(program)
    nodes = list(model.graph)
    choices = [[PINNED[n.op_type]] if n.op_type in PINNED else [False, True] for n in nodes]
    fewest = min(casts_of(model.graph, dict(zip(nodes, half, strict=True))) for half in product(*choices))
    types = infer_half_types(model.graph, FLOAT16)
    assert types.casts == fewest
    assert casts_of(model.graph, {node: node in types.half for node in nodes}) == fewest


@settings(max_examples=100)
@given(program=steps)
def test_a_rewritten_graph_has_the_casts_it_reports_and_consistent_types(program: list[tuple[str, int, int]]) -> None:
    model = random_model(program)
    report = cast_to_half(model)
    assert sum(node.op_type == "Cast" for node in model.graph) == report.casts
    for node in model.graph:
        assert is_float_node(node) or {v.dtype for v in (*node.inputs, *node.outputs)} <= {FLOAT16, ir.DataType.FLOAT}
        if node.op_type != "Cast":
            assert len({value.dtype for value in (*node.inputs, *node.outputs)}) == 1
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)

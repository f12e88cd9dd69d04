"""Real engines by TensorRT-RTX on a machine that need not have a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_graphs
from onnx import helper
from small_graphs import ENCODER, LENGTH, component, saved

from nemotrt.bundle import Bundle, ComponentSpec, TensorSpec
from nemotrt.errors import GraphError, MachineError, ProfileError, UsageError
from nemotrt.graph_contract import check_graph
from nemotrt.profiles import AxisRange, Geometry, axis_ranges, load_profile
from nemotrt.tensorrt_api import Log, can_run
from nemotrt.trt.build import BuildRequest, build_engine
from nemotrt.trt.build_log import error_from_log
from nemotrt.trt.input_shapes import ShapeRange, shape_ranges

pytest.importorskip("tensorrt_rtx")

RANGES = {"batch": AxisRange(1, 2, 4), "frames": AxisRange(2, 40, 200)}
ROWS = component(
    "rows",
    (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_graphs.encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def request_for(encoder: Path) -> BuildRequest:
    return BuildRequest(graph=encoder, component=ENCODER, ranges=(RANGES,), runtime="tensorrt-rtx")


def rows(folder: Path, op_type: str = "Relu", *, opset: int = small_graphs.OPSET, **attributes: object) -> Path:
    return saved(folder, ROWS, [helper.make_node(op_type, ["x"], ["y"], name="only", **attributes)], {}, opset=opset)


def request_of(graph: Path, spec: ComponentSpec = ROWS) -> BuildRequest:
    return BuildRequest(graph=graph, component=spec, ranges=(RANGES,), runtime="tensorrt-rtx")


def test_an_engine_is_built_with_its_layers_counted(
    request_for: BuildRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    result = build_engine(request_for)
    nodes = len(onnx.load(request_for.graph, load_external_data=False).graph.node)
    assert result.layers >= nodes
    assert result.size_bytes == len(result.plan) > 1000
    assert (result.runtime, result.seconds > 0) == ("tensorrt-rtx", True)
    assert capfd.readouterr() == ("", "")


def test_external_weights_are_in_the_plan(tmp_path: Path) -> None:
    spec = component("rows", ROWS.inputs, ROWS.outputs, data=True)
    weights = {"w": np.random.default_rng(0).standard_normal((4, 200_000)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"], name="wide"),
        helper.make_node("Transpose", ["w"], ["w_t"], name="turned", perm=[1, 0]),
        helper.make_node("MatMul", ["wide", "w_t"], ["y"], name="narrow"),
    ]
    result = build_engine(request_of(saved(tmp_path, spec, nodes, weights), spec))
    assert result.size_bytes > weights["w"].nbytes


def test_several_profiles_and_named_gpus_build(request_for: BuildRequest) -> None:
    short = {**RANGES, "frames": AxisRange(2, 8, 16)}
    one = build_engine(replace(request_for, compute_capabilities=("8.9",)))
    two = build_engine(replace(request_for, ranges=(short, RANGES), compute_capabilities=("8.6", "12.0")))
    assert one.plan != two.plan


def test_a_graph_with_fixed_shapes_needs_no_range(tmp_path: Path) -> None:
    inputs, outputs = ((side[0].model_copy(update={"shape": (2, 4)}),) for side in (ROWS.inputs, ROWS.outputs))
    spec = component("rows", inputs, outputs)
    graph = saved(tmp_path, spec, [helper.make_node("Relu", ["x"], ["y"])], {})
    assert build_engine(replace(request_of(graph, spec), ranges=({},))).layers == 1


def test_progress_starts_at_nothing_ends_at_everything_and_never_falls(request_for: BuildRequest) -> None:
    seen: list[tuple[str, float]] = []
    build_engine(request_for, on_progress=lambda phase, fraction: seen.append((phase, fraction)))
    assert [phase for phase, _ in seen][:3] == ["parse", "parse", "build"]
    build = [fraction for phase, fraction in seen if phase == "build"]
    assert build == sorted(build)
    assert (build[0], build[-1]) == (0.0, 1.0)
    assert len(set(build)) > 5


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_listener_that_raises_cancels_the_build_and_its_exception_arrives(
    request_for: BuildRequest, kind: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    def cancel(phase: str, fraction: float) -> None:
        if fraction > 0.3:
            raise kind("enough")

    with pytest.raises(kind, match="enough"):
        build_engine(request_for, on_progress=lambda phase, f: cancel(phase, f) if phase == "build" else None)
    assert capfd.readouterr() == ("", "")
    assert build_engine(request_for).plan  # and the next build is not disturbed


def test_every_operator_that_tensorrt_lacks_is_named(tmp_path: Path) -> None:
    spec = component(
        "rows",
        (TensorSpec(name="x", dtype="float32", shape=("batch", 4, 4)),),
        (TensorSpec(name="y", dtype="float32", shape=("batch",)),),
    )
    nodes = [helper.make_node("Det", ["x"], [out], name=f"det_{out}") for out in ("a", "b")]
    nodes.append(helper.make_node("Add", ["a", "b"], ["y"], name="sum"))
    with pytest.raises(GraphError, match=r"det_a \(Det\)(.|\n)*det_b \(Det\)"):
        build_engine(request_of(saved(tmp_path, spec, nodes, {}), spec))


def test_a_mixture_of_types_is_refused_since_networks_are_strongly_typed(tmp_path: Path) -> None:
    half = np.ones((4, 4), np.float16)
    graph = saved(tmp_path, ROWS, [helper.make_node("MatMul", ["x", "w"], ["y"], name="mixed")], {"w": half})
    with pytest.raises(GraphError, match="mixed"):
        build_engine(request_of(graph))


def test_an_opset_from_the_future_is_refused(tmp_path: Path) -> None:
    newer = onnx.defs.onnx_opset_version() + 1
    with pytest.raises(GraphError, match=f"opset {newer}"):
        build_engine(request_of(rows(tmp_path, opset=newer)))


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"not valid(.|\n)*Foo"):
        build_engine(request_of(rows(tmp_path, "Foo")))


@pytest.mark.parametrize("content", [b"hello" * 100, b"", None])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rows.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphError, match="not an ONNX file"):
        build_engine(request_of(path))


def test_a_graph_without_its_weights_is_refused(tmp_path: Path) -> None:
    path = small_graphs.encoder(tmp_path)
    (tmp_path / "encoder.onnx.data").unlink()
    with pytest.raises(GraphError, match=r"encoder\.onnx\.data"):
        build_engine(request_of(path, ENCODER))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "z"}, "x is not in the contract; z is missing"),
        ({"dtype": "int64"}, r"x is float32\[batch, 4\], not int64"),
        ({"shape": ("batch", 5)}, r"x is float32\[batch, 4\], not float32\['batch', 5\]"),
        ({"shape": ("rows", 4)}, r"x is float32\[batch, 4\]"),
        ({"shape": ("batch",)}, r"x is float32\[batch, 4\]"),
    ],
)
def test_another_input_than_the_contract_says_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    graph = rows(tmp_path)
    check_graph(graph, ROWS)
    with pytest.raises(GraphError, match=message):
        check_graph(graph, ROWS.model_copy(update={"inputs": (ROWS.inputs[0].model_copy(update=change),)}))


def test_a_length_that_decides_a_shape_is_refused(tmp_path: Path) -> None:
    lengths = LENGTH.model_copy(update={"shape": (1,)})
    spec = component("range", (lengths,), (TensorSpec(name="y", dtype="int64", shape=("frames",)),))
    nodes = [
        helper.make_node("Squeeze", ["length"], ["n"], name="scalar"),
        helper.make_node("Range", ["zero", "n", "one"], ["y"], name="range"),
    ]
    weights = {"zero": np.array(0, np.int64), "one": np.array(1, np.int64)}
    with pytest.raises(GraphError, match=r"values of an input decide the shape(.|\n)*length"):
        build_engine(request_of(saved(tmp_path, spec, nodes, weights), spec))


def test_an_axis_without_a_range_is_named(request_for: BuildRequest) -> None:
    with pytest.raises(ProfileError, match=r"axis 'frames'(.|\n)*audio_signal"):
        build_engine(replace(request_for, ranges=({"batch": AxisRange(1, 1, 1)},)))


def test_a_profile_that_no_weight_fits_is_refused(tmp_path: Path) -> None:
    spec = component("rows", (ROWS.inputs[0].model_copy(update={"shape": ("batch", "frames")}),), ROWS.outputs)
    weight = np.ones((4, 4), np.float32)
    graph = saved(tmp_path, spec, [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": weight})
    impossible = {"batch": AxisRange(1, 1, 1), "frames": AxisRange(5, 5, 5)}
    with pytest.raises((GraphError, ProfileError)):
        build_engine(replace(request_of(graph, spec), ranges=(impossible,)))


def test_an_unknown_gpu_is_refused(request_for: BuildRequest) -> None:
    with pytest.raises(UsageError, match=r"9\.9"):
        build_engine(replace(request_for, compute_capabilities=("9.9",)))


@pytest.mark.skipif(bool(can_run()), reason="there is a GPU")
def test_building_for_the_present_gpu_needs_one(request_for: BuildRequest) -> None:
    with pytest.raises(MachineError, match="this machine has none"):
        build_engine(replace(request_for, compute_capabilities=("current",)))


def test_inputs_with_fixed_shapes_are_left_out_of_the_profile() -> None:
    state = TensorSpec(name="h", dtype="float32", shape=(2, "batch", 8))
    fixed = TensorSpec(name="table", dtype="float32", shape=(2, 8))
    shapes = shape_ranges(component("predictor", (state, fixed), ()), RANGES)
    assert shapes == {"h": ShapeRange((2, 1, 8), (2, 2, 8), (2, 4, 8))}


@pytest.mark.parametrize(
    ("message", "kind", "what"),
    [
        ("Could not find any implementation for node {ForeignNode[a...b]}", MachineError, "ran out of memory"),
        ("Error Code 2: OutOfMemory (Requested size was 8 bytes.)", MachineError, "ran out of memory"),
        ("Cuda Runtime (cudaError 35: driver version is insufficient)", MachineError, "needs a GPU"),
        ("Dimension mismatch for tensor x and profile 0.", ProfileError, "does not fit the graph"),
        ("Cannot compile operation 'mm' for Turing (SM75)", GraphError, "cannot build this graph"),
    ],
)
def test_a_failed_build_is_told_by_its_log(message: str, kind: type[Exception], what: str) -> None:
    error = error_from_log(Log(errors=["first", message]), graph=Path("a.onnx"), library="TensorRT")
    assert type(error) is kind
    assert what in str(error)
    assert message in str(error)


def test_a_build_that_fails_in_the_compiler_arrives_as_a_graph_error(tmp_path: Path) -> None:
    weight = np.ones((4, 4), np.float32)
    graph = saved(tmp_path, ROWS, [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": weight})
    with pytest.raises(GraphError, match="SM75"):  # Turing has no FP32 matrix product in TensorRT-RTX
        build_engine(replace(request_of(graph), compute_capabilities=("7.5",)))


@pytest.mark.parametrize("name", ["encoder", "predictor", "joint"])
def test_every_component_of_a_real_bundle_builds(tdt_bundle: Bundle, name: str, figure: Callable[[str], None]) -> None:
    mel, spec = tdt_bundle.meta.mel, tdt_bundle.meta.encoder
    geometry = Geometry(
        sample_rate=mel.sample_rate,
        hop_samples=mel.hop_samples,
        subsampling_factor=spec.subsampling_factor,
        causal_subsampling=spec.causal_subsampling,
        max_feature_frames=spec.max_feature_frames,
    )
    ranges = axis_ranges(load_profile("demo"), geometry)
    result = build_engine(
        BuildRequest(
            graph=tdt_bundle.graph_path(name),
            component=tdt_bundle.component(name),
            ranges=(ranges,),
            runtime="tensorrt-rtx",
        )
    )
    assert result.size_bytes > 0
    figure(f"TensorRT-RTX, demo TDT {name}: {result.layers} layers, {result.size_bytes / 1e6:.1f} MB")

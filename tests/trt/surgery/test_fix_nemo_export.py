"""NeMo's own export of the demo checkpoint and of a full-size one. Oracle: that export in ONNX Runtime."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from nemotrt.bench.encoder_race import Batches, Encoder, race_on_onnxruntime, spec_from_graph
from nemotrt.bench.exporters import export_with_nemo
from nemotrt.bench.onnx_files import files_of
from nemotrt.child_process import run_measured
from nemotrt.nemo_interpreter import find_nemo
from nemotrt.trt.surgery import FixReport, fix_graph
from nemotrt.trt.surgery.engine_cost import engine_cost
from nemotrt.trt.surgery.onnx_session import OnnxSession

HALF = 0.5
LARGEST_DIFFERENCE = 1e-4
FULL_SIZE_PROGRAM = Path(__file__).parents[2] / "export" / "full_size_checkpoint.py"

Figure = Callable[[str], None]


def nemo_encoder(checkpoint: Path, folder: Path) -> Path:
    return export_with_nemo(find_nemo(Path(sys.executable), folder=folder), checkpoint, folder)[1].graph


@pytest.fixture(scope="module")
def raw(tdt_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nemo_encoder(tdt_checkpoint, tmp_path_factory.mktemp("nemo"))


@pytest.fixture(scope="module")
def report(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> FixReport:
    return fix_graph(raw, tmp_path_factory.mktemp("fixed") / "out")


def test_fewer_than_half_of_the_nodes_are_left_and_nothing_is_different(report: FixReport, figure: Figure) -> None:
    share = report.nodes_after / report.nodes_before
    assert report.equality is not None
    difference = report.equality.max_difference
    figure(
        f"fix, NeMo's export of the demo TDT: {report.nodes_before} -> {report.nodes_after} nodes ({share:.2f}), "
        f"largest difference {difference:.1e}"
    )
    assert report.equality.problem is None
    assert 0 < difference < LARGEST_DIFFERENCE
    assert share < HALF


def test_tensorrt_sees_fewer_than_half_of_the_layers(raw: Path, report: FixReport, figure: Figure) -> None:
    before, after = (engine_cost(graph, runtime="tensorrt-rtx") for graph in (raw, report.graph))
    figure(
        f"fix, NeMo's export of the demo TDT, TensorRT-RTX: {before.layers} -> {after.layers} layers, "
        f"{before.seconds:.1f} -> {after.seconds:.1f} s, {before.plan_bytes} -> {after.plan_bytes} bytes"
    )
    assert after.layers < HALF * before.layers


def test_it_has_the_forms_of_an_encoder_that_was_written_for_engines(report: FixReport) -> None:
    nodes = Counter(node.op_type for node in onnx.load(report.graph, load_external_data=False).graph.node)
    layers = nodes["Softmax"]
    assert {op: nodes[op] for op in ("Pad", "Expand", "Tile", "ConstantOfShape", "Constant", "Identity", "Floor")} == {
        "Pad": 0, "Expand": 0, "Tile": 0, "ConstantOfShape": 0, "Constant": 0, "Identity": 0, "Floor": 0,
    }  # fmt: skip
    # Of each layer: scores by key and by position, values, queries-keys-values, output, four of feed-forwards; and two.
    assert nodes["MatMul"] == 9 * layers + 2
    assert nodes["Split"] == 2 * layers + 1
    assert nodes["Cast"] <= 5


def test_the_interface_and_the_types_of_lengths_are_those_that_were_given(raw: Path, report: FixReport) -> None:
    before, after = OnnxSession(raw), OnnxSession(report.graph)
    for a, b in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        assert [(one.name, one.type, len(one.shape)) for one in a] == [
            (one.name, one.type, len(one.shape)) for one in b
        ]
    assert "tensor(int64)" in [one.type for one in after.outputs]


def test_all_weights_are_in_one_file_beside_the_graph(report: FixReport) -> None:
    data = report.graph.with_name(f"{report.graph.name}.data")
    assert sorted(report.graph.parent.iterdir()) == sorted(files_of(report.graph)) == [report.graph, data]


def test_padding_of_any_length_gives_what_it_gave(raw: Path, report: FixReport) -> None:
    before, after = OnnxSession(raw), OnnxSession(report.graph)
    features = before.inputs[0].shape[1]
    x = np.random.default_rng(1).standard_normal((8, features, 97)).astype(np.float32)
    feeds = {"audio_signal": x, "length": np.array([97, 96, 89, 64, 33, 8, 1, 0])}
    (a, a_lengths), (b, b_lengths) = before.run(feeds), after.run(feeds)
    assert a_lengths.tolist() == b_lengths.tolist()
    assert np.abs(a - b).max() < LARGEST_DIFFERENCE


def test_a_fixed_graph_has_nothing_left_to_fix(report: FixReport, tmp_path: Path) -> None:
    again = fix_graph(report.graph, tmp_path / "again")
    assert not again.changed
    assert again.nodes_after == report.nodes_after


@pytest.mark.full_size
@pytest.mark.timeout(1800)
def test_a_full_size_encoder_of_seventeen_layers_is_leaner_and_faster(tmp_path: Path, figure: Figure) -> None:
    checkpoint = tmp_path / "large.nemo"
    command = [sys.executable, str(FULL_SIZE_PROGRAM), "fastconformer-large", str(checkpoint)]
    assert run_measured(command, folder=tmp_path, timeout_seconds=600).failure is None
    raw = nemo_encoder(checkpoint, tmp_path)
    report = fix_graph(raw, tmp_path / "fixed")
    assert report.equality is not None
    layers = [engine_cost(graph, runtime="tensorrt-rtx").layers for graph in (raw, report.graph)]
    encoders = [Encoder(graph, spec_from_graph(graph), 2) for graph in (report.graph, raw)]
    batches = Batches(80, ((1, 1000), (4, 500)), warmup=2, runs=10, threads=2)
    rows = race_on_onnxruntime(encoders[0], encoders[1], batches, on_shape=lambda *_: None)
    ratios = ", ".join(f"{row.batch_size} x {row.frames}: {row.ratio.p50:.2f}" for row in rows)
    figure(
        f"fix, NeMo's export, 17 layers of width 512: {report.nodes_before} -> {report.nodes_after} nodes, "
        f"{layers[0]} -> {layers[1]} TensorRT-RTX layers, "
        f"largest difference {report.equality.max_difference:.1e}; ONNX Runtime {ratios} of its time"
    )
    assert report.nodes_after < HALF * report.nodes_before
    assert layers[1] < HALF * layers[0]
    assert report.equality.max_difference < LARGEST_DIFFERENCE
    assert all(row.max_abs < LARGEST_DIFFERENCE and row.lengths_equal and row.ratio.p50 < 1 for row in rows)

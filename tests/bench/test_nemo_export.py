"""Our export against NeMo's: what is measured is what happened, and what could not be measured says so."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sample_results import sample_results

from nemotrt.bench.encoder_race import Batches, Encoder, race_on_onnxruntime, race_on_tensorrt, spec_from_graph
from nemotrt.bench.exporters import export_with_nemotrt
from nemotrt.bench.nemo_export import NemoExportPlan, compare_with_nemo_export
from nemotrt.bench.nemo_export_page import render_nemo_export_page, summary_sentence
from nemotrt.bench.nemo_export_results import (
    DOCUMENT,
    CheckpointExports,
    EncoderGraph,
    EncoderLatency,
    ExportCost,
    Exported,
    NemoExportResults,
    RatioPercentiles,
    read_nemo_export_results,
    write_nemo_export_results,
)
from nemotrt.bench.onnx_files import count_nodes, files_of
from nemotrt.bench.pages import write_page
from nemotrt.bench.results import Percentiles, Skipped, write_results
from nemotrt.bundle import Bundle
from nemotrt.child_process import run_measured
from nemotrt.errors import InputError, MachineError, UsageError
from nemotrt.nemo_interpreter import find_nemo
from nemotrt.profiles import axis_ranges, load_profile

MEBIBYTE = 1 << 20
HOSTILE = "</style><script>alert(1)</script>{{ 7*7 }}"


# --- processes


def python(folder: Path, code: str, *, timeout_seconds: float = 60.0):
    return run_measured([sys.executable, "-c", code], folder=folder, timeout_seconds=timeout_seconds)


def test_the_peak_of_a_process_is_its_own_and_not_that_of_the_process_that_started_it(tmp_path: Path) -> None:
    ballast = np.ones(300 * MEBIBYTE, np.uint8)
    small = python(tmp_path, "import time; time.sleep(0.1)")
    large = python(tmp_path, "import time; x = b'x' * (200 << 20); del x; time.sleep(0.1)")
    assert ballast.nbytes == 300 * MEBIBYTE
    assert 0 < small.peak_rss_bytes < 100 * MEBIBYTE
    assert 200 * MEBIBYTE < large.peak_rss_bytes < 300 * MEBIBYTE


def test_seconds_are_of_the_whole_process(tmp_path: Path) -> None:
    assert 0.5 < python(tmp_path, "import time; time.sleep(0.5)").seconds < 5


def test_a_process_that_fails_is_quoted(tmp_path: Path) -> None:
    assert python(tmp_path, "pass").failure is None
    assert "ValueError: seven" in python(tmp_path, "raise ValueError('seven')").failure
    killed = python(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)").failure
    assert killed == "ended by SIGKILL, as the kernel does when memory runs out"
    assert python(tmp_path, "raise SystemExit(7)").failure == "exit code 7: it said nothing"


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="takes too long"):
        python(tmp_path, "import time; time.sleep(60)", timeout_seconds=0.2)


# --- exporters


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_an_interpreter_without_nemo_is_a_matter_of_this_machine_with_advice(tmp_path: Path) -> None:
    bare = program(tmp_path / "bare", f'exec "{sys.executable}" -I -S "$@"')
    with pytest.raises(MachineError, match="NeMo is not installed") as caught:
        find_nemo(bare, folder=tmp_path)
    assert "--nemo-python" in caught.value.fix
    with pytest.raises(MachineError, match="does not start"):
        find_nemo(tmp_path / "no such python", folder=tmp_path)


def test_nemo_that_does_not_load_is_told_apart_from_nemo_that_is_not_there(tmp_path: Path) -> None:
    broken = program(tmp_path / "broken", "echo 'ImportError: libcuda' >&2; exit 1")
    with pytest.raises(MachineError, match="installed but does not load") as caught:
        find_nemo(broken, folder=tmp_path)
    assert "libcuda" in caught.value.found


def test_a_checkpoint_that_is_refused_is_refused_in_the_words_of_export(tmp_path: Path) -> None:
    (tmp_path / "text.nemo").write_text("not a tar")
    with pytest.raises(InputError, match="not a readable tar archive") as caught:
        export_with_nemotrt(tmp_path / "text.nemo", tmp_path)
    assert caught.value.where == str(tmp_path / "text.nemo")


# --- graphs


def small_graph(folder: Path) -> Path:
    """Two nodes and a nested one; a weight and a node's constant, each in a file of its own."""
    weights = {
        name: numpy_helper.from_array(np.arange(4, dtype=np.float32), name) for name in ("weight.bin", "constant.bin")
    }
    for name, tensor in weights.items():
        (folder / name).write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, name)
        tensor.ClearField("raw_data")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    then = helper.make_graph([helper.make_node("Add", ["c", "weight.bin"], ["y"])], "then", [], [output])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=weights["constant.bin"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=then),
    ]
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "graph", [flag], [output], [weights["weight.bin"]])
    path = folder / "graph.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_nested_nodes_and_every_kind_of_data_file_are_counted(tmp_path: Path) -> None:
    graph = small_graph(tmp_path)
    assert count_nodes(graph) == 2 + 1 + 1
    assert files_of(graph) == (graph, tmp_path / "constant.bin", tmp_path / "weight.bin")


@pytest.fixture(scope="module")
def ours(tdt_bundle: Bundle) -> Encoder:
    return Encoder(tdt_bundle.graph_path("encoder"), tdt_bundle.component("encoder"), 2)


def altered(encoder: Encoder, folder: Path, *, output: int, by: float) -> Encoder:
    """The same graph with other names, and ``by`` added to one output: as another exporter's might be."""
    model = onnx.load(str(encoder.graph))
    value = model.graph.output[output]
    dtype = np.float32 if output == 0 else np.int64
    model.graph.initializer.append(numpy_helper.from_array(np.array(by, dtype), "by"))
    model.graph.node.append(helper.make_node("Add", [value.name, "by"], ["other"]))
    value.name = "other"
    for tensor in (*model.graph.input, *model.graph.output):
        for index, axis in enumerate(tensor.type.tensor_type.shape.dim):
            if axis.dim_param:
                axis.dim_param = f"{tensor.name}_axis_{index}"
    path = folder / "altered.onnx"
    onnx.save(model, str(path))
    return Encoder(path, spec_from_graph(path), 2)


def test_graphs_that_agree_have_no_difference_and_graphs_that_do_not_are_found_out(
    ours: Encoder, tmp_path: Path
) -> None:
    batches = Batches(features=128, shapes=((1, 20), (3, 50)), warmup=0, runs=2, threads=1)
    seen = []

    def race(theirs: Encoder) -> tuple[EncoderLatency, ...]:
        return race_on_onnxruntime(ours, theirs, batches, on_shape=lambda *shape: seen.append(shape))

    same = race(altered(ours, tmp_path, output=0, by=0.0))
    assert [(row.batch_size, row.frames) for row in same] == seen == [(1, 20), (3, 50)]
    assert all(row.max_abs == 0 and row.lengths_equal and row.ratio.p50 > 0 for row in same)
    assert all(abs(row.max_abs - 0.5) < 1e-5 for row in race(altered(ours, tmp_path, output=0, by=0.5)))
    assert not any(row.lengths_equal for row in race(altered(ours, tmp_path, output=1, by=1)))


def test_graphs_with_axis_names_of_their_own_build_for_the_same_profile(
    ours: Encoder, tdt_bundle: Bundle, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    ranges = axis_ranges(load_profile("demo"), tdt_bundle.meta.geometry)
    theirs = altered(ours, tmp_path, output=0, by=0.5)
    first, second = race_on_tensorrt([ours, theirs], ranges, runtime="tensorrt-rtx", builds=1)
    assert 0 < first.layers < second.layers
    assert first.seconds > 0
    assert first.plan_bytes > 1000


# --- the whole


def test_nemos_own_export_of_the_demo_is_larger_and_says_the_same(
    tdt_checkpoint: Path, figure: Callable[[str], None]
) -> None:
    pytest.importorskip("nemo")
    pytest.importorskip("tensorrt_rtx")
    plan = NemoExportPlan(load_profile("demo"), shapes=((1, 97), (4, 300)), runs=3, warmup=1, builds=1)
    results = compare_with_nemo_export([tdt_checkpoint], plan)
    (exports,) = results.checkpoints
    assert exports.unmeasured == ()
    timed = {"TensorRT build seconds, ratio", "export seconds, ratio", "ONNX Runtime seconds, worst ratio"}
    for goal in exports.goals:
        figure(f"export of the tdt demo against NeMo {results.nemo_version}, {goal.name}: {goal.figure:.3g}")
        assert goal.met or goal.name in timed, goal
    assert results.tensorrt.startswith("TensorRT")


def test_a_checkpoint_that_nemo_cannot_export_is_measured_alone_and_the_reason_is_kept(
    tdt_checkpoint: Path, tmp_path: Path
) -> None:
    nemo = 'if [ "$1" = "-c" ]; then printf 9.9 > version.txt; else echo "RuntimeError: no such op" >&2; exit 1; fi'
    plan = NemoExportPlan(load_profile("demo"), nemo_python=program(tmp_path / "nemo", nemo), builds=0)
    (exports,) = compare_with_nemo_export([tdt_checkpoint], plan).checkpoints
    assert exports.nemo == Exported(cost=None, encoder=None)
    assert exports.nemotrt.encoder.nodes > 0
    assert "RuntimeError: no such op" in {s.what: s.reason for s in exports.unmeasured}["everything of NeMo's export"]
    unknown = {goal.name for goal in exports.goals if goal.met is None}
    assert {"TensorRT layers, ratio", "ONNX Runtime seconds, worst ratio"} <= unknown


def test_a_plan_that_measures_nothing_is_refused() -> None:
    plan = NemoExportPlan(load_profile("demo"))
    for nothing in ({"runs": 0}, {"shapes": ()}, {"builds": -1}, {"warmup": -1}):
        with pytest.raises(UsageError, match="measures nothing"):
            replace(plan, **nothing)
    with pytest.raises(UsageError, match="nothing to export"):
        compare_with_nemo_export([], plan)


# --- the document and its page


def sample(**changes: object) -> NemoExportResults:
    """Made-up figures: nothing was measured."""
    seconds = Percentiles(p5=0.9e-3, p50=1e-3, p95=1.3e-3, p99=1.6e-3)

    def exported(times: int) -> Exported:
        graph = EncoderGraph(
            nodes=230 * times,
            files=2,
            size_bytes=12_000_000,
            tensorrt_layers=800 * times,
            tensorrt_build_seconds=1.2 * times,
            tensorrt_plan_bytes=19_000_000,
        )
        cost = ExportCost(seconds=1.5 * times, peak_rss_bytes=150_000_000 * times, files=2, size_bytes=14_000_000)
        return Exported(cost=cost, encoder=graph)

    exports = CheckpointExports(
        checkpoint="demo.nemo",
        checkpoint_sha256="ab" * 32,
        family="fastconformer-tdt",
        component="encoder",
        layers=4,
        d_model=128,
        parameters=3_000_000,
        nemotrt=exported(1),
        nemo=exported(4),
        latency=(
            EncoderLatency(
                batch_size=8,
                frames=1000,
                nemotrt=seconds,
                nemo=seconds,
                ratio=RatioPercentiles(p5=0.4, p50=0.5, p95=1.2),
                max_abs=4e-6,
                lengths_equal=True,
            ),
        ),
        unmeasured=(),
    )
    return NemoExportResults(
        schema_version=1,
        document=DOCUMENT,
        created=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        commit=None,
        machine=sample_results().machine,
        nemo_version="3.0.0",
        nemo_exporter="torch.onnx.export, dynamo=False",
        nemo_startup_seconds=8.0,
        nemotrt_startup_seconds=0.6,
        tensorrt="TensorRT-RTX 1.7.1.116",
        profile="demo",
        builds=3,
        runs=20,
        warmup=2,
        threads=None,
        order="interleaved round-robin, first graph rotates",
        checkpoints=(exports.model_copy(update=changes),),
    )


def test_the_document_survives_the_file_and_another_shape_is_refused(tmp_path: Path) -> None:
    path = write_nemo_export_results(sample(), tmp_path / "results.json")
    assert read_nemo_export_results(path) == sample()
    document = json.loads(path.read_text())
    for change in ({"schema_version": 2}, {"surprise": 1}, {"checkpoints": []}, {"document": "other"}):
        path.write_text(json.dumps(document | change))
        with pytest.raises(InputError):
            read_nemo_export_results(path)


def test_goals_are_met_missed_or_not_measured() -> None:
    (exports,) = sample().checkpoints
    assert [goal.met for goal in exports.goals] == [True] * len(exports.goals)
    row = exports.latency[0]
    slow = row.model_copy(
        update={"ratio": RatioPercentiles(p5=1.0, p50=1.1, p95=1.2), "max_abs": 2e-5, "lengths_equal": False}
    )
    (missed,) = sample(latency=(row, slow)).checkpoints
    assert [goal.name for goal in missed.goals if not goal.met] == [
        "ONNX Runtime seconds, worst ratio",
        "largest difference on valid frames",
        "batches with other lengths",
    ]
    (alone,) = sample(nemo=Exported(cost=None, encoder=None), latency=()).checkpoints
    assert {goal.met for goal in alone.goals} == {True, None}


def test_the_page_shows_every_figure_and_the_verdict_first() -> None:
    html = render_nemo_export_page(sample())
    assert html.index("Every goal that was measured is met") < html.index("TensorRT layers")
    for text in ("demo.nemo", "3,200", "12.0 MB", "0.50 (0.40 to 1.20)", "4e-6", "torch.onnx.export", "ab" * 32):
        assert text in html
    slow = sample().checkpoints[0].latency[0].model_copy(update={"lengths_equal": False})
    missed = sample(latency=(slow,))
    assert "A goal is missed" in render_nemo_export_page(missed)
    assert summary_sentence(missed) == "8 of 9 goals met; missed: demo.nemo: batches with other lengths."


def test_the_page_escapes_what_comes_from_files_and_asks_for_nothing() -> None:
    skipped = (Skipped(what=HOSTILE, reason=HOSTILE),)
    html = render_nemo_export_page(sample(checkpoint=HOSTILE, family=HOSTILE, unmeasured=skipped))
    assert "<script" not in html
    assert html.count("{{ 7*7 }}") >= 3
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")


def test_either_kind_of_results_gets_its_own_page(tmp_path: Path) -> None:
    results = write_results(sample_results(), tmp_path / "results.json")
    exports = write_nemo_export_results(sample(), tmp_path / "exports.json")
    assert "Transcripts" in write_page(results, tmp_path / "a.html").read_text()
    assert "Export against NeMo's own" in write_page(exports, tmp_path / "b.html").read_text()
    (tmp_path / "text.json").write_text("[]")
    with pytest.raises(InputError, match="another schema version"):
        write_page(tmp_path / "text.json", tmp_path / "c.html")

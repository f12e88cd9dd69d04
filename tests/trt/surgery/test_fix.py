"""``fix_graph``, ``fix_bundle`` and ``nemotrt fix``: what is proved, what is published, who is blamed."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from small_surgery import noise, write_graph

from nemotrt.bundle import Bundle, load_bundle, verify_digests
from nemotrt.cli import main
from nemotrt.errors import GraphError, UsageError
from nemotrt.trt.surgery import PASSES, chosen_passes, fix_bundle, fix_graph
from nemotrt.trt.surgery.equivalence import compare_graphs
from nemotrt.trt.surgery.fold_scales import FoldScales
from nemotrt.trt.surgery.graph_edit import GraphEdit
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

TEXT = """g (float[batch, frames, 8] x) => (float[batch, frames, 8] y) {
    a = MatMul (x, weight) b = Mul (a, half) c = Identity (b) y = Relu (c)
}"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path, TEXT, weight=noise(8, 8), half=np.float32(0.5))


class ForgetHalf(SurgeryPass):
    """A wrong pass: a product with a number is taken for nothing."""

    name: ClassVar[str] = "forget-half"
    does: ClassVar[str] = "is wrong"

    def rewrite(self, edit: GraphEdit) -> None:
        for node in edit.nodes("Mul"):
            if node.inputs[0] is not None:
                edit.replace(node.outputs[0], node.inputs[0])


class BreakGraph(SurgeryPass):
    """A wrong pass: it leaves a graph whose output has another type."""

    name: ClassVar[str] = "break-graph"
    does: ClassVar[str] = "is wrong"

    def rewrite(self, edit: GraphEdit) -> None:
        edit.changes += 1
        edit.graph.outputs[0].name = "z"


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name != "before.onnx")


def test_a_pass_that_changes_results_is_found_among_the_others_and_nothing_is_written(graph: Path) -> None:
    passes = (*PASSES[:7], ForgetHalf(), *PASSES[7:])
    with pytest.raises(GraphError, match="pass forget-half changes what the graph computes") as caught:
        fix_graph(graph, graph.parent / "out", passes=passes)
    assert "--skip forget-half" in str(caught.value)
    assert leftovers(graph.parent) == []


def test_without_verification_nobody_would_have_noticed(graph: Path) -> None:
    report = fix_graph(graph, graph.parent / "out", passes=(ForgetHalf(),), verify=False)
    assert report.equality is None
    assert compare_graphs(graph, report.graph).problem is not None


def test_a_pass_that_leaves_a_wrong_graph_is_named_at_once(graph: Path) -> None:
    with pytest.raises(GraphError, match="pass break-graph left a wrong graph"):
        fix_graph(graph, graph.parent / "out", passes=(BreakGraph(),))
    assert leftovers(graph.parent) == []


def test_an_output_that_exists_and_the_name_of_a_file_are_refused(graph: Path) -> None:
    (graph.parent / "out").mkdir()
    with pytest.raises(UsageError, match="already there"):
        fix_graph(graph, graph.parent / "out")
    with pytest.raises(UsageError, match="give a folder"):
        fix_graph(graph, graph.parent / "fixed.onnx")


def test_what_is_no_graph_or_holds_graphs_is_refused(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.onnx"
    nonsense.write_bytes(b"nonsense")
    with pytest.raises(GraphError, match="not an ONNX file"):
        fix_graph(nonsense, tmp_path / "out")
    branch = "g (bool c, float[batch] x) => (float[batch] y) { y = If (c) <then_branch = a () => (float[batch] p) "
    text = branch + "{ p = Identity (x) }, else_branch = b () => (float[batch] q) { q = Relu (x) }> }"
    with pytest.raises(GraphError, match="cannot be operated on"):
        fix_graph(write_graph(tmp_path, text), tmp_path / "out")


@pytest.mark.parametrize("location", ["missing.data", "../secret.data"])
def test_weights_that_are_not_beside_the_graph_are_refused(graph: Path, location: str) -> None:
    (graph.parent / "in").mkdir()
    (graph.parent / "secret.data").write_bytes(bytes(4 * 64))
    path = graph.parent / "in" / "graph.onnx"
    model = onnx.load(graph)
    weight = next(one for one in model.graph.initializer if one.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    onnx.save(model, path)
    with pytest.raises(GraphError, match="not in a file beside it"):
        fix_graph(path, graph.parent / "out")


def test_weights_are_read_one_at_a_time(tmp_path: Path) -> None:
    width, count = 512, 12
    nodes = " ".join(f"a{i} = MatMul (a{i - 1}, w{i}) " for i in range(1, count + 1))
    text = (
        f"g (float[batch, {width}] a0) => (float[batch, {width}] y) {{ {nodes} b = Mul (a{count}, half) y = Relu (b) }}"
    )
    weights = {f"w{i}": noise(width, width, seed=i) / 20 for i in range(1, count + 1)}
    model = onnx.load(write_graph(tmp_path, text, half=np.float32(0.5), **weights))
    path = tmp_path / "large.onnx"
    onnx.save(model, path, save_as_external_data=True, location="large.data", size_threshold=1024)
    one = 4 * width * width
    del model, weights
    tracemalloc.start()
    fix_graph(path, tmp_path / "out", verify=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * one < count * one


@pytest.mark.parametrize("name", ["tdt", "hybrid"])
def test_our_own_bundles_are_left_as_they_are(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    given: Bundle = request.getfixturevalue(f"{name}_bundle")
    bundle, reports = fix_bundle(given, tmp_path / "fixed")
    assert [report.graph.name for report in reports if report.changed] == []
    assert bundle.meta == given.meta
    verify_digests(load_bundle(bundle.path))


def test_a_bundle_with_a_graph_to_fix_gets_a_new_one_and_a_contract_that_fits(
    tdt_bundle: Bundle, tmp_path: Path
) -> None:
    altered = altered_bundle(tdt_bundle, tmp_path / "altered")
    bundle, reports = fix_bundle(altered, tmp_path / "fixed")
    changed = {report.graph.name: report.nodes_before - report.nodes_after for report in reports if report.changed}
    assert changed == {"encoder.onnx": 2}
    assert "encoder_nomask" not in bundle.meta.components
    assert bundle.meta.tools["surgery"] == "encoder"
    verify_digests(load_bundle(bundle.path))
    assert bundle.graph_path("joint").read_bytes() == altered.graph_path("joint").read_bytes()


def altered_bundle(source: Bundle, folder: Path) -> Bundle:
    """A bundle whose encoder does two things for nothing."""
    from nemotrt.bundle import sha256_of_file

    shutil.copytree(source.path, folder)
    path = folder / "encoder.onnx"
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.output[0], name = "bare", node.output[0]
    at = list(model.graph.node).index(node) + 1
    model.graph.node.insert(at, onnx.helper.make_node("Identity", ["bare"], ["twice"], name="nothing"))
    model.graph.node.insert(at + 1, onnx.helper.make_node("Identity", ["twice"], [name], name="nothing_more"))
    onnx.save(model, path)
    meta = json.loads((folder / "model_meta.json").read_text())
    meta["files"]["encoder.onnx"] = {"size_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (folder / "model_meta.json").write_text(json.dumps(meta))
    return load_bundle(folder)


def test_passes_are_chosen_by_name() -> None:
    assert [one.name for one in chosen_passes(only=["fold-scales"])] == ["fold-scales"]
    assert "fold-scales" not in [one.name for one in chosen_passes(skip=["fold-scales"])]
    with pytest.raises(UsageError, match="no such pass"):
        chosen_passes(only=["fold-everything"])
    with pytest.raises(UsageError, match="every pass is left out"):
        chosen_passes(only=["fold-scales"], skip=["fold-scales"])
    assert len({one.name for one in PASSES}) == len(PASSES)
    assert all(one.does for one in PASSES)
    assert FoldScales.name in [one.name for one in PASSES]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["nemotrt", "fix", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_lists_explains_and_answers_in_json(
    graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--list") == 0
    assert all(one.name in capsys.readouterr().out or one.does for one in PASSES)
    assert command(monkeypatch, graph, "-o", graph.parent / "out", "--explain", "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)["graphs"]
    assert (answer["nodes_before"], answer["nodes_after"]) == (4, 2)
    assert answer["equality"]["problem"] is None
    assert answer["engines"]["before"]["layers"] >= answer["engines"]["after"]["layers"]
    assert command(monkeypatch, graph, "-o", graph.parent / "more", "--explain", "--pass", "fold-scales") == 0
    shown = capsys.readouterr().out
    assert "4 -> 3 nodes" in shown
    assert "engine after" in shown


def test_the_command_refuses_what_it_cannot_do(
    graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, graph) == UsageError.exit_code
    assert command(monkeypatch, graph, "-o", graph.parent / "out", "--skip", "everything") == UsageError.exit_code
    assert "choose from: remove-dead-nodes" in capsys.readouterr().err

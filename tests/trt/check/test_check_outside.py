"""What other tools say of a graph: TensorRT's parser, Polygraphy's lint, and a process that dies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from zoo import ZOO, Place, good

from nemotrt.bundle import Bundle
from nemotrt.tensorrt_api import load_api
from nemotrt.trt.check import check_graph_file, chosen_rules, opinions
from nemotrt.trt.check.operators import OperatorRefused
from nemotrt.trt.check.opinions import Opinion, Remark, ask

PARSER = chosen_rules(["tensorrt-refuses", "tensorrt-crashes"])
LINT = chosen_rules(["polygraphy-lint"])


@pytest.fixture
def place(whole_tdt: Bundle, whole_hybrid: Bundle, tmp_path: Path) -> Place:
    return Place(tmp_path, whole_tdt, whole_hybrid)


def test_tensorrts_parser_names_the_node_that_it_refuses(place: Place) -> None:
    pytest.importorskip("tensorrt_rtx")
    animal = ZOO["a_determinant"].make(place)
    (finding,) = check_graph_file(animal.path, animal.component, rules=PARSER)
    assert (finding.rule, finding.severity) == ("tensorrt-refuses", "error")
    assert finding.places[0].startswith("Det")
    assert "Det" in finding.what


def test_the_operators_that_we_say_tensorrt_lacks_are_those_that_its_parser_lacks() -> None:
    pytest.importorskip("tensorrt_rtx")
    api = load_api("tensorrt-rtx")
    builder = api.create_builder()
    network = api.create_network(builder)
    parser = api.create_parser(network)
    lacking = OperatorRefused.names | {"DFT", "MelWeightMatrix", "Unique", "Compress"}
    assert [name for name in sorted(lacking) if parser.supports_operator(name)] == []
    assert parser.supports_operator("MatMul")


def test_tensorrts_parser_has_nothing_against_a_sound_graph(place: Place) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert check_graph_file(good(place).path, rules=PARSER) == ()


def test_polygraphy_names_the_node_that_does_not_run(place: Place) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    animal = ZOO["an_operator_that_does_not_exist"].make(place)
    findings = check_graph_file(animal.path, animal.component, rules=LINT)
    assert {finding.rule for finding in findings} == {"polygraphy-lint"}
    assert any("Foo" in finding.what for finding in findings)


def test_polygraphy_finds_what_only_running_shows(place: Place) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    animal = ZOO["a_reshape_to_the_traced_frames"].make(place)
    (finding,) = check_graph_file(animal.path, animal.component, rules=LINT)
    assert finding.severity == "error"
    assert "Reshape" in finding.places[0]


def test_polygraphy_has_nothing_against_a_sound_graph(place: Place) -> None:
    pytest.importorskip("onnx_graphsurgeon")
    assert check_graph_file(good(place).path, rules=LINT) == ()


@pytest.mark.parametrize("name", ["weights_above_the_folder", "weights_left_behind", "text_instead_of_a_graph"])
def test_what_cannot_be_loaded_is_given_to_nobody(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opinions, "TENSORRT_PARSER", "no.such.program")
    animal = ZOO[name].make(place)
    findings = check_graph_file(animal.path, animal.component, rules=PARSER)
    assert {finding.rule for finding in findings} <= {"graph-unreadable"}


def test_a_parser_that_dies_is_a_finding_of_that_graph_and_the_others_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    graphs = [tmp_path / f"{name}.onnx" for name in ("first", "second", "third")]
    found = ask("dying_parser", graphs, arguments=("rtx",))
    seen = [Opinion((Remark("error", "seen by rtx", (str(graph),)),)) for graph in graphs]
    assert found == {graphs[0]: seen[0], graphs[1]: Opinion(crash="ended by SIGSEGV"), graphs[2]: seen[2]}


def test_a_dead_parser_is_an_error_that_says_how_it_died(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(opinions, "TENSORRT_PARSER", "dying_parser")
    path = shutil.copy(ZOO["a_determinant"].make(place).path, tmp_path / "second.onnx")
    (finding,) = check_graph_file(path, rules=PARSER)
    assert (finding.rule, finding.severity) == ("tensorrt-crashes", "error")
    assert "SIGSEGV" in finding.what


def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = ask("hanging", [tmp_path / "a.onnx"], seconds_per_graph=0.5)
    assert "not done after" in str(found[tmp_path / "a.onnx"].crash)

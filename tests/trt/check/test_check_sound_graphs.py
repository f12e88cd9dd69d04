"""Graphs that are right in float32 have no errors: our own of every component, and NeMo's own exports."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotrt.bench.exporters import export_with_nemo
from nemotrt.bundle import Bundle
from nemotrt.errors import MachineError
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint
from nemotrt.nemo_interpreter import InstalledNemo, find_nemo
from nemotrt.trt.check import Finding, check_bundle, check_graph_file, chosen_rules
from nemotrt.trt.precision import cast_bundle

Figure = Callable[[str], None]
POSITIONS = chosen_rules(["positions-limit"])


def said(findings: tuple[Finding, ...], severity: str) -> set[str]:
    return {finding.rule for finding in findings if finding.severity == severity}


@pytest.mark.parametrize("name", ["whole_tdt", "whole_hybrid"])
def test_nothing_worse_than_a_note_is_said_of_our_own_components(
    request: pytest.FixtureRequest, name: str, figure: Figure
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    seen: list[str] = []
    start = time.perf_counter()
    findings = check_bundle(bundle, on_component=seen.append)
    seconds = time.perf_counter() - start
    assert tuple(seen) == tuple(bundle.meta.components)
    assert [finding for finding in findings if finding.severity != "note"] == []
    figure(f"nemotrt check, {bundle.meta.name}, {len(seen)} components: {seconds:.1f} s, {len(findings)} notes")


def test_nor_of_their_float16_twins(whole_hybrid: Bundle, tmp_path: Path) -> None:
    findings = check_bundle(cast_bundle(whole_hybrid, tmp_path / "half"))
    assert [finding for finding in findings if finding.severity != "note"] == []


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(components=("all",), cache="kv", cache_drop=2, opset=23),
        ExportOptions(components=("all",), fixed_seconds=2.0),
        ExportOptions(choices=ModelChoices(max_seconds=1.0)),
    ],
    ids=["kv", "fixed", "short"],
)
def test_nor_of_other_layouts_of_them(hybrid_checkpoint: Path, tmp_path: Path, options: ExportOptions) -> None:
    findings = check_bundle(export_checkpoint(hybrid_checkpoint, tmp_path / "bundle", options=options))
    assert [finding for finding in findings if finding.severity != "note"] == []


@pytest.fixture(scope="module")
def nemo(tmp_path_factory: pytest.TempPathFactory) -> InstalledNemo:
    try:
        return find_nemo(Path(sys.executable), folder=tmp_path_factory.mktemp("probe"))
    except MachineError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def nemo_exports(
    nemo: InstalledNemo, tdt_checkpoint: Path, hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders of what NeMo writes of each demo checkpoint."""
    folders = {}
    for checkpoint in (tdt_checkpoint, hybrid_checkpoint):
        folder = tmp_path_factory.mktemp("nemo")
        folders[checkpoint.stem] = export_with_nemo(nemo, checkpoint, folder)[1].folder
    return folders


@pytest.mark.parametrize("name", ["parakeet-style-tdt", "fastconformer-hybrid-streaming"])
def test_of_nemos_own_export_the_float_lengths_are_a_warning_and_nothing_is_an_error(
    nemo_exports: dict[str, Path], name: str
) -> None:
    encoder = check_graph_file(nemo_exports[name] / "encoder-model.onnx")
    assert said(encoder, "error") == set()
    assert said(encoder, "warning") == {"length-in-float"}
    assert said(encoder, "note") == {"positions-limit"}
    decoder = check_graph_file(nemo_exports[name] / "decoder_joint-model.onnx")
    assert decoder == ()


def test_the_position_table_of_nemos_export_is_read(nemo_exports: dict[str, Path]) -> None:
    encoder = nemo_exports["parakeet-style-tdt"] / "encoder-model.onnx"
    (note,) = check_graph_file(encoder, rules=POSITIONS)
    assert "5000 encoder frames" in note.what


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_table_of_exactly_the_promised_length_is_enough(whole_tdt: Bundle, beyond: int) -> None:
    promised = whole_tdt.meta.encoder.max_encoder_frames + beyond
    encoder = whole_tdt.meta.encoder.model_copy(update={"max_encoder_frames": promised})
    meta = whole_tdt.meta.model_copy(update={"encoder": encoder})
    findings = check_graph_file(whole_tdt.graph_path("encoder"), whole_tdt.component("encoder"), meta, rules=POSITIONS)
    assert said(findings, "error") == ({"positions-limit"} if beyond else set())

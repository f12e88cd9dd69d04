"""``nemotrt debug`` from the command line: what it says, what it leaves, and its exit codes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from nemotrt import cli
from nemotrt.bench import polygraphy_lines
from nemotrt.bundle import META_NAME, Bundle, sha256_of_file

WEIGHT, NODE = "layers.1.conv.depthwise_conv.weight", "layers.1.conv.Conv"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def debug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clips: Path, tmp_path: Path) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        options = ["--audio", str(clips), "--threads", "1", "-o", str(tmp_path / "found")]
        monkeypatch.setattr(sys, "argv", ["nemotrt", "debug", *map(str, arguments), *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(str(ended.value.code)), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def clips(demo_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    line = json.loads(demo_manifest.read_text(encoding="utf-8").splitlines()[0])
    line["audio_filepath"] = str(demo_manifest.parent / line["audio_filepath"])
    manifest = tmp_path_factory.mktemp("clips") / "one.json"
    manifest.write_text(json.dumps(line), encoding="utf-8")
    return manifest


@pytest.fixture(scope="module")
def wrong(tdt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with one weight negated, and a record that says so."""
    folder = tmp_path_factory.mktemp("wrong") / "bundle"
    folder.mkdir()
    for entry in tdt_bundle.path.iterdir():
        (folder / entry.name).write_bytes(entry.read_bytes())
    tensor = ir.load(tdt_bundle.graph_path("encoder")).graph.initializers[WEIGHT].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    data = folder / "encoder.onnx.data"
    with data.open("r+b") as stream:
        stream.seek(tensor.offset or 0)
        stream.write((-tensor.numpy()).tobytes())
    meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
    meta["files"][data.name]["sha256"] = sha256_of_file(data)
    (folder / META_NAME).write_text(json.dumps(meta), encoding="utf-8")
    return folder


def test_a_pair_that_agrees_says_so(debug: Run, tdt_bundle: Bundle) -> None:
    code, out, _ = debug(tdt_bundle.path, tdt_bundle.path)
    assert (code, out.splitlines()[-1]) == (0, "A and B agree")


def test_a_difference_names_component_and_node_and_leaves_its_inputs(
    debug: Run, tdt_bundle: Bundle, wrong: Path, tmp_path: Path
) -> None:
    code, out, _ = debug(tdt_bundle.path, wrong)
    assert code == 1
    assert f"node        {NODE} (Conv) in layers.1.conv" in out
    assert f"weight {WEIGHT} differs" in out
    with np.load(tmp_path / "found" / "encoder.npz") as inputs:
        assert set(inputs) == {"audio_signal", "length"}
    with np.load(tmp_path / "found" / "encoder_nomask.npz") as inputs:
        assert set(inputs) == {"audio_signal"}


def test_the_document_is_json_and_is_what_was_written(
    debug: Run, tdt_bundle: Bundle, wrong: Path, tmp_path: Path
) -> None:
    code, out, _ = debug(tdt_bundle.path, wrong, "--json")
    document = json.loads(out, parse_constant=pytest.fail)
    assert code == 1
    assert document["to_blame"] == ["encoder", "encoder_nomask"]
    assert [search["first"]["node"] for search in document["searches"]] == [NODE, NODE]
    written = json.loads((tmp_path / "found" / "debug.json").read_text(encoding="utf-8"))
    assert written["searches"][0]["first"] == document["searches"][0]["first"]


def test_the_polygraphy_lines_show_the_difference(debug: Run, tdt_bundle: Bundle, wrong: Path, tmp_path: Path) -> None:
    pytest.importorskip("polygraphy")
    _, out, _ = debug(tdt_bundle.path, wrong, "--component", "encoder", "--json")
    save, compare, *_ = json.loads(out)["searches"][0]["polygraphy"]
    against_itself = compare.replace(str(wrong), str(tdt_bundle.path))
    assert [_exit_code(line) for line in (save, compare, against_itself)] == [0, 1, 0]


def test_without_polygraphy_the_inputs_are_there_and_it_says_what_to_install(
    debug: Run, tdt_bundle: Bundle, wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.json", None)
    code, out, _ = debug(tdt_bundle.path, wrong, "--component", "encoder")
    assert code == 1
    assert polygraphy_lines.INSTALL in out
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"debug.json", "encoder.npz"}


def test_bundles_of_two_checkpoints_are_refused(debug: Run, tdt_bundle: Bundle, hybrid_bundle: Bundle) -> None:
    code, _, err = debug(tdt_bundle.path, hybrid_bundle.path)
    assert code == 2
    assert "same checkpoint" in err


def test_a_bundle_whose_file_was_altered_without_a_record_is_refused(
    debug: Run, tdt_bundle: Bundle, wrong: Path, tmp_path: Path
) -> None:
    altered = tmp_path / "altered"
    altered.mkdir()
    for entry in wrong.iterdir():
        (altered / entry.name).write_bytes(entry.read_bytes())
    (altered / META_NAME).write_bytes((tdt_bundle.path / META_NAME).read_bytes())
    code, _, err = debug(tdt_bundle.path, altered)
    assert code == 2
    assert "not the file that was exported" in err


def _exit_code(line: str) -> int:
    words = shlex.split(line)
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode

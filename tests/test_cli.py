"""The command line as a stranger meets it: every command on the demo checkpoints, and most ways to get it wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemotrt import __version__, cli
from nemotrt.bundle import Bundle, load_bundle
from nemotrt.errors import MachineError
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint

pytest.importorskip("tensorrt_rtx")

CLIPS = 3


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document that stdout is."""
        return json.loads(self.out)


Nemotrt = Callable[..., Answer]


@pytest.fixture
def nemotrt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Nemotrt:
    """Runs a command line in this process."""

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["nemotrt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def clips(demo_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of the first few demo clips, wherever it stands."""
    lines = [json.loads(line) for line in demo_manifest.read_text(encoding="utf-8").splitlines()[:CLIPS]]
    for line in lines:
        line["audio_filepath"] = str(demo_manifest.parent / line["audio_filepath"])
    manifest = tmp_path_factory.mktemp("clips") / "few.json"
    manifest.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return manifest


@pytest.fixture(scope="module")
def clip(demo_manifest: Path) -> Path:
    return demo_manifest.parent / "clips" / "00003.wav"  # "set the light to red"


@pytest.fixture(scope="module")
def first_run(tdt_checkpoint: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """``nemotrt run`` in a process of its own, and its folder."""
    folder = tmp_path_factory.mktemp("run") / "out"
    arguments = ["run", tdt_checkpoint, "-o", folder, "--audio", clips, "--profile", "demo", "--runs", "1", "--json"]
    main = "import sys; from nemotrt.cli import main; sys.argv[0] = 'nemotrt'; main()"
    done = subprocess.run(
        [sys.executable, "-c", main, *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )
    return folder, Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def folder(first_run: tuple[Path, Answer]) -> Path:
    return first_run[0]


# --- every command


def test_run_answers_with_the_verdict_the_stages_and_everything_measured(first_run: tuple[Path, Answer]) -> None:
    folder, answer = first_run
    assert answer.code == 0, answer.err
    document = answer.document
    assert (document["verdict"], document["reasons"]) == ("pass", [])
    assert document["report"] == str(folder / "report.html")
    stages = [(stage["stage"], stage["reused"]) for stage in document["stages"]]
    assert stages == [("export", False), ("cast", False), ("build", False), ("compare and measure", False)]
    results = document["results"]
    assert {engine["component"] for engine in results["engines"]} == {"encoder", "predictor", "joint"}
    assert all(engine["layers"] and engine["size_bytes"] for engine in results["engines"])
    assert [c["verdict"] for c in results["comparisons"]] == ["pass", "pass"]
    assert len(results["transcripts"]) == CLIPS


def test_run_shows_progress_on_stderr_only(first_run: tuple[Path, Answer]) -> None:
    lines = first_run[1].err.splitlines()
    assert lines == ["export ...", "cast to FP16 ...", "build ...", "compare and measure ..."]


def test_run_ends_with_transcripts_errors_engines_verdicts_and_the_report(
    nemotrt: Nemotrt, folder: Path, tdt_checkpoint: Path, clips: Path
) -> None:
    answer = nemotrt("run", tdt_checkpoint, "-o", folder, "--audio", clips, "--profile", "demo", "--runs", "1")
    assert answer.code == 0
    assert "play red music in the kitchen at five two" in answer.out
    assert re.search(r"FP16, onnxruntime \S+ CPU, tdt +0\.00 %", answer.out)
    assert re.search(r"encoder +fp16 +tensorrt-rtx \S+ +demo +\d+ +\S+ MB", answer.out)
    assert answer.out.count("PASS  tdt: ") == 2
    assert "engines (reused), compare and measure: 3 clips (reused)" in answer.out
    assert answer.out.splitlines()[-2:] == [
        "verdict  pass; 3 engines built, not verified",
        f"report   {folder / 'report.html'}",
    ]


def test_run_without_audio_says_that_nothing_is_proven(nemotrt: Nemotrt, folder: Path, tdt_checkpoint: Path) -> None:
    answer = nemotrt("run", tdt_checkpoint, "-o", folder, "--profile", "demo", "--json")
    assert answer.code == 0
    assert answer.document["verdict"] == "nothing compared"
    shown = nemotrt("run", tdt_checkpoint, "-o", folder, "--profile", "demo")
    assert "verdict  nothing compared" in shown.out
    assert "Nothing was compared, so nothing is proven." in shown.out


def test_export_and_check_agree_about_the_bundle(nemotrt: Nemotrt, tdt_checkpoint: Path, tmp_path: Path) -> None:
    exported = nemotrt("export", tdt_checkpoint, "-o", tmp_path / "bundle", "--json")
    checked = nemotrt("check", tmp_path / "bundle", "--json")
    assert (exported.code, checked.code) == (0, 0)
    assert exported.document["family"] == "fastconformer-tdt"
    assert exported.document["path"] == str(tmp_path / "bundle")
    assert exported.document["files"] == checked.document["files"]
    assert load_bundle(tmp_path / "bundle").meta.name == "parakeet-style-tdt"
    again = nemotrt("export", tdt_checkpoint, "-o", tmp_path / "bundle", "--overwrite")
    assert again.code == 0
    assert re.search(
        r"encoder +audio_signal, length +encoder_output, encoded_lengths +3,\d{3},\d{3} +12\.\d MB", again.out
    )


def test_cast_writes_a_bundle_of_half_the_size(nemotrt: Nemotrt, folder: Path, tmp_path: Path) -> None:
    answer = nemotrt("cast", folder / "bundle", "--to", "fp16", "-o", tmp_path / "typed", "--json")
    assert answer.code == 0
    assert answer.document["precision"] == "fp16"
    sizes = {name: file["size_bytes"] for name, file in answer.document["files"].items()}
    assert sizes["encoder.onnx.data"] < 0.51 * (folder / "bundle" / "encoder.onnx.data").stat().st_size


def test_precision_search_writes_the_keep_list_that_cast_takes(
    nemotrt: Nemotrt, folder: Path, clips: Path, tmp_path: Path
) -> None:
    keep = tmp_path / "keep.yaml"
    answer = nemotrt("precision-search", folder / "bundle", "--audio", clips, "-o", keep, "--json")
    assert answer.code == 0
    assert (answer.document["keep"], answer.document["comparisons"]) == ([], 1)
    again = nemotrt("precision-search", folder / "bundle", "--audio", clips, "-o", keep)
    assert again.out.startswith(f"{keep}: 0 of ")
    assert "0 comparisons, 1 known before" in again.out
    keep.write_text("version: 1\nkeep: [layers.3.conv]\n", encoding="utf-8")
    typed = nemotrt("cast", folder / "bundle", "--to", "mixed", "--keep", keep, "-o", tmp_path / "typed", "--json")
    assert typed.document["precision"] == "fp16"
    assert typed.document["tools"]["float32 nodes"] == "layers.3.conv"


def test_cast_to_bfloat16_says_where_it_runs(nemotrt: Nemotrt, folder: Path, clip: Path, tmp_path: Path) -> None:
    answer = nemotrt("cast", folder / "bundle", "--to", "bf16", "-o", tmp_path / "typed")
    assert "note: bfloat16 needs a GPU" in answer.out
    refused = nemotrt("transcribe", tmp_path / "typed", clip)
    assert refused.code == MachineError.exit_code
    assert "bfloat16 on a CPU" in refused.err


def test_quantize_stores_eight_bits_and_compare_says_where_errors_are(
    nemotrt: Nemotrt, folder: Path, clips: Path, tmp_path: Path
) -> None:
    order = ("quantize", folder / "bundle", "-o", tmp_path / "int8", "--audio", clips, "--keep", "joint")
    made = nemotrt(*order, "--json")
    assert made.code == 0, made
    assert made.document["audit"]["products"] == {"float32": 4, "int8": 33}
    assert made.document["quantized"]["clips"] == CLIPS
    shown = nemotrt(*order, "--overwrite")
    assert re.search(r"^int8 +1\.57 MB +\S+ %  33 products$", shown.out, re.MULTILINE)
    assert nemotrt("check", tmp_path / "int8").code == 0
    answer = nemotrt("compare", folder / "bundle", tmp_path / "int8", "--audio", clips, "--json")
    assert answer.document["verdict"] == "pass"
    assert sum(count["length"] for count in answer.document["words_by_place"].values()) > CLIPS
    assert set(answer.document["tokens_by_clip_length"]) == {"2 to 3 s", "3 to 5 s"}


def test_build_stores_an_engine_once(nemotrt: Nemotrt, folder: Path, tmp_path: Path) -> None:
    order = ("build", folder / "bundle-fp16", "--engines", tmp_path / "store", "--profile", "demo")
    first = nemotrt(*order, "--component", "joint", "--compute-capability", "8.9", "--json")
    assert first.code == 0
    (engine,) = first.document["engines"]
    assert (engine["component"], engine["reused"], engine["compute_capabilities"]) == ("joint", False, ["8.9"])
    assert Path(engine["plan"]).stat().st_size == engine["size_bytes"]
    again = nemotrt(*order, "--component", "joint", "--compute-capability", "8.9")
    assert re.search(r"joint +fp16 +tensorrt-rtx \S+ +demo .* reused +built, not verified", again.out)


def test_transcribe_prints_one_line_a_clip(nemotrt: Nemotrt, folder: Path, clip: Path, clips: Path) -> None:
    answer = nemotrt("transcribe", folder, clip, clips)
    assert answer.code == 0
    assert answer.out.splitlines()[0] == f"{clip}\tset the light to red"
    assert len(answer.out.splitlines()) == 1 + CLIPS
    assert answer.err.startswith("tdt on onnxruntime ")


def test_names_and_texts_are_printed_as_they_are_and_on_one_line(
    nemotrt: Nemotrt, folder: Path, tdt_checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    """A console that reads ``[...]`` as an instruction would swallow these, or stop at them."""
    odd = tmp_path / "[red] :smile: [/nothing]" / ("long" * 50)
    odd.mkdir(parents=True)
    shutil.copy(clip, odd / "[b].wav")
    (odd / "clips.json").write_text(json.dumps({"audio_filepath": "[b].wav", "text": "[noise] :smile:"}))
    assert nemotrt("transcribe", folder, odd / "clips.json").out == f"{odd / '[b].wav'}\tset the light to red\n"
    shutil.copytree(folder, odd / "out")
    answer = nemotrt(
        "run", tdt_checkpoint, "-o", odd / "out", "--audio", odd / "clips.json", "--profile", "demo", "--runs", "1"
    )
    assert re.search(r"\[b\] +1\.76 +\[noise\] :smile: +set the light to red", answer.out)
    assert f"report   {odd / 'out' / 'report.html'}" in answer.out.splitlines()


@pytest.mark.parametrize("decoder", ["ctc", "rnnt"])
def test_transcribe_takes_each_decoder_of_a_hybrid(
    nemotrt: Nemotrt, hybrid_bundle: Bundle, clip: Path, decoder: str
) -> None:
    answer = nemotrt("transcribe", hybrid_bundle.path, clip, "--decoder", decoder, "--threads", "1", "--json")
    assert answer.document["decoder"] == decoder
    (heard,) = answer.document["clips"]
    assert heard["text"] == "set the light to red"
    assert heard["seconds"] == pytest.approx(1.76, abs=0.01)
    assert len(heard["token_ids"]) > 3


@pytest.fixture(scope="module")
def streamable(hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ExportOptions(components=("all",), choices=ModelChoices(lookahead=1))
    return export_checkpoint(hybrid_checkpoint, tmp_path_factory.mktemp("streamable") / "bundle", options=options).path


@pytest.mark.parametrize("decoder", ["ctc", "rnnt"])
def test_transcribe_streams_the_audio_and_shows_the_text_as_it_comes(
    nemotrt: Nemotrt, streamable: Path, clip: Path, decoder: str
) -> None:
    line = ("transcribe", streamable, clip, clip, "--decoder", decoder, "--threads", "1")
    whole, streamed = nemotrt(*line, "--json").document, nemotrt(*line, "--stream", "--json").document
    for row in streamed["clips"]:
        partials = row.pop("partials")
        times, texts = ([partial[key] for partial in partials] for key in ("seconds", "text"))
        assert times == sorted(set(times))
        assert times[-1] <= row["seconds"]
        assert len(texts) > 3
        assert texts[-1] == "set the light to red"
        assert all(one != other for one, other in pairwise(texts))
    assert streamed == whole
    shown = nemotrt(*line, "--stream")
    assert shown.out == f"{clip}\tset the light to red\n" * 2
    assert shown.err.startswith(f"{decoder} on onnxruntime ")
    assert re.search(r"^ +0\.\d\d s  set the light", shown.err, re.MULTILINE)


def test_the_pieces_of_a_stream_decide_how_often_the_text_is_looked_at(
    nemotrt: Nemotrt, streamable: Path, clip: Path
) -> None:
    for seconds, most in (("0.5", 4), ("60", 1)):
        answer = nemotrt("transcribe", streamable, clip, "--stream", "--chunk-seconds", seconds, "--json")
        (row,) = answer.document["clips"]
        assert row["text"] == "set the light to red"
        assert 0 < len(row["partials"]) <= most


def test_compare_passes_the_typed_bundle_and_fails_the_other_way_round(
    nemotrt: Nemotrt, folder: Path, clips: Path
) -> None:
    fp32, fp16 = folder / "bundle", folder / "bundle-fp16"
    passed = nemotrt("compare", fp32, fp16, "--audio", clips, "--json")
    assert (passed.code, passed.document["verdict"], passed.document["reasons"]) == (0, "pass", [])
    # Judged by the limits of FP32, which the difference of half precision breaks.
    shown = nemotrt("compare", fp16, fp32, "--audio", clips)
    assert shown.code == 1
    assert shown.out.startswith("FAIL  tdt: FP32, onnxruntime")
    assert re.search(r"fail frames: .*lowest cosine .*, limit 0\.9999999", shown.out)


def test_bench_relates_models_to_the_first_one(nemotrt: Nemotrt, folder: Path, clips: Path) -> None:
    models = (folder / "bundle", folder / "bundle-fp16")
    answer = nemotrt(
        "bench", *models, "--audio", clips, "--runs", "2", "--batch-size", "1", "--batch-size", "2", "--json"
    )
    assert answer.code == 0
    rows = answer.document["rows"]
    assert [(row["batch_size"], row["ratio"] is None) for row in rows] == [(1, True), (1, False), (2, True), (2, False)]
    assert all(row["rtfx"] > 0 for row in rows)
    shown = nemotrt("bench", models[0], "--audio", clips, "--runs", "1")
    assert re.search(r"FP32, onnxruntime \S+ CPU +1 .* baseline", shown.out)


def test_report_writes_a_page_that_stands_alone(nemotrt: Nemotrt, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    answer = nemotrt("report", folder / "results.json", "-o", page, "--json")
    assert (answer.code, answer.document) == (0, {"report": str(page)})
    text = page.read_text(encoding="utf-8")
    parser = HTMLParser()
    parser.feed(text)
    assert "parakeet-style-tdt" in text
    assert nemotrt("report", folder / "results.json", "-o", page).out == f"{page}\n"


def test_doctor_names_what_is_there_and_what_to_install(nemotrt: Nemotrt) -> None:
    findings = {finding["subject"]: finding for finding in nemotrt("doctor", "--json").document["findings"]}
    assert findings["TensorRT-RTX"]["state"] == "yes"
    assert all(finding["advice"] for finding in findings.values() if finding["state"] == "no")
    shown = nemotrt("doctor")
    assert shown.code == 0
    assert all(subject in shown.out for subject in findings)


def test_check_finds_nothing_wrong_with_a_bundle_and_names_the_rules_that_it_asked(
    nemotrt: Nemotrt, folder: Path
) -> None:
    answer = nemotrt("check", folder / "bundle", "--rule", "data-missing", "--rule", "graph-invalid")
    assert answer.code == 0
    assert re.search(r"encoder +audio_signal, length +encoder_output, encoded_lengths", answer.out)
    assert f"PASS  {folder / 'bundle'}: 2 rules, nothing found" in answer.out


@pytest.fixture
def without_weights(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(folder / "bundle" / "encoder.onnx", tmp_path / "encoder.onnx"))


def test_check_of_one_graph_is_a_line_for_each_finding_and_exit_code_1(
    nemotrt: Nemotrt, without_weights: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log" / "findings.sarif"
    answer = nemotrt("check", without_weights, "--rule", "data-missing", "--rule", "node-unused", "--sarif", log)
    assert answer.code == 1
    found, verdict = answer.out.splitlines()
    assert re.match(r"error +data-missing +encoder +pre_encode.* encoder\.onnx\.data is not there +-> copy", found)
    assert verdict == f"FAIL  {without_weights}: 2 rules, 1 error"
    assert [result["ruleId"] for result in json.loads(log.read_text())["runs"][0]["results"]] == ["data-missing"]


def test_check_answers_in_json_and_leaves_out_what_it_is_told_to(nemotrt: Nemotrt, without_weights: Path) -> None:
    answer = nemotrt("check", without_weights, "--rule", "data-missing", "--json")
    assert (answer.code, answer.document["verdict"]) == (1, "fail")
    (finding,) = answer.document["findings"]
    assert (finding["rule"], finding["graph"]) == ("data-missing", str(without_weights))
    ignored = nemotrt("check", without_weights, "--rule", "data-missing", "--ignore", "data-missing", "--json")
    assert (ignored.code, ignored.document["findings"]) == (0, [])


def test_version_and_help_need_no_command(nemotrt: Nemotrt) -> None:
    assert nemotrt("--version") == Answer(0, f"nemotrt {__version__}\n", "")
    assert nemotrt("--help").out.lstrip().startswith("Usage: nemotrt")
    assert "Usage: nemotrt" in nemotrt().out


# --- what goes wrong


@pytest.fixture(scope="module")
def things(
    folder: Path,
    hybrid_bundle: Bundle,
    streamable: Path,
    tdt_checkpoint: Path,
    clip: Path,
    clips: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Paths that a command line can name, right and wrong."""
    place = tmp_path_factory.mktemp("things")
    texts = {
        "text": ("notes.txt", "notes\n"),
        "fake_nemo": ("fake.nemo", "not an archive\n"),
        "fake_wav": ("fake.wav", "not audio\n"),
        "no_clips": ("empty.json", "\n"),
        "bad_manifest": ("bad.json", '{"text": "no path"}\n'),
        "gone_clip": ("gone.json", '{"audio_filepath": "nowhere.wav"}\n'),
        "bad_yaml": ("bad.yaml", "version: 1\nname: [unclosed\n"),
        "odd_yaml": ("odd.yaml", "version: 1\nname: odd\nseconds: {min: 5, opt: 2, max: 9}\n"),
        "long_yaml": (
            "long.yaml",
            "version: 1\nname: long\nseconds: {min: 1, opt: 9, max: 4000}\nbatch: {min: 1, opt: 1, max: 1}\n",
        ),
    }
    paths = {key: place / name for key, (name, _) in texts.items()}
    for name, text in texts.values():
        (place / name).write_text(text, encoding="utf-8")
    altered, foreign, lacking, old = (
        Path(shutil.copytree(folder / "bundle", place / name)) for name in ("altered", "foreign", "lacking", "old")
    )
    with (altered / "encoder.onnx.data").open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"altered!")
    (foreign / "notes.txt").write_text("mine")
    (lacking / "joint.onnx").unlink()
    meta = json.loads((old / "model_meta.json").read_text(encoding="utf-8"))
    (old / "model_meta.json").write_text(json.dumps({**meta, "schema_version": 99}), encoding="utf-8")
    (place / "empty").mkdir()
    soundfile.write(place / "click.wav", np.zeros(40, np.float32), 16000)
    return {
        **paths,
        "bundle": folder / "bundle", "fp16": folder / "bundle-fp16", "results": folder / "results.json",
        "run": folder, "hybrid": hybrid_bundle.path, "streamable": streamable, "nemo": tdt_checkpoint, "wav": clip,
        "clips": clips, "altered": altered, "foreign": foreign, "lacking": lacking, "old": old,
        "empty": place / "empty", "click": place / "click.wav", "gone": place / "gone",
        "out": place / "out", "below": place / "notes.txt" / "out", "sealed": Path("/proc/nemotrt"),
    }  # fmt: skip


NOT_TWICE = "export the checkpoint again"
WRONG: dict[str, tuple[str, int, tuple[str, ...]]] = {
    # command line with {things} in it, exit code, what the message must say
    "no such command": ("rnu {nemo} -o {out}", 2, ("'rnu'", "nemotrt --help")),
    "no such option": ("run {nemo} -o {out} --speed 9", 2, ("--speed", "nemotrt run --help")),
    "no output": ("export {nemo}", 2, ("'-o' / '--output'", "nemotrt export --help")),
    "no model": ("transcribe", 2, ("'MODEL'", "nemotrt transcribe --help")),
    "run: no timed run": ("run {nemo} -o {out} --runs 0", 2, ("--runs", "greater than or equal to 1")),
    "run: no such checkpoint": ("run {gone} -o {out}", 2, ("no such checkpoint", "{gone}", ".nemo")),
    "run: text as checkpoint": ("run {fake_nemo} -o {out}", 2, ("not a readable tar", "{fake_nemo}")),
    "run: no such audio": ("run {nemo} -o {out} --audio {gone}", 2, ("not there", "{gone}")),
    "run: no audio in the folder": ("run {nemo} -o {out} --audio {empty}", 2, ("no audio files", "{empty}")),
    "run: manifest without clips": ("run {nemo} -o {out} --audio {no_clips}", 2, ("names no clips",)),
    "run: manifest with a missing clip": ("run {nemo} -o {out} --audio {gone_clip}", 2, ("line 1", "nowhere.wav")),
    "run: manifest without paths": ("run {nemo} -o {out} --audio {bad_manifest}", 2, ("line 1", "audio_filepath")),
    "run: unknown profile": ("run {nemo} -o {out} --profile fast", 2, ("'fast'", "demo, server-offline", ".yaml")),
    "run: profile that is not YAML": ("run {nemo} -o {out} --profile {bad_yaml}", 2, ("cannot be read", "line 3")),
    "run: profile out of order": ("run {nemo} -o {out} --profile {odd_yaml}", 2, ("seconds", "min 5", "not in order")),
    "run: unknown runtime": ("run {nemo} -o {out} --runtime trt", 2, ("'trt' is not one of", "tensorrt-rtx")),
    "run: unknown GPU": ("run {nemo} -o {out} --compute-capability 9.9", 2, ("capability 9.9", "8.9, 12.0")),
    "run: misspelled GPU": ("run {nemo} -o {out} --compute-capability sm_89", 2, ("sm_89", "8.9, 12.0")),
    "run: output is a file": ("run {nemo} -o {text}", 2, ("not a folder", "{text}", "another output")),
    "run: output below a file": ("run {nemo} -o {below}", 2, ("not a folder", "{text}")),
    "run: output is a bundle": ("run {nemo} -o {bundle}", 2, ("output is a bundle", "{bundle}")),
    "run: output cannot be written": ("run {nemo} -o {sealed}", 3, ("cannot be written", "/proc", "writable")),
    "export: wav as checkpoint": ("export {wav} -o {out}", 2, ("not a readable tar", "{wav}")),
    "export: folder as checkpoint": ("export {empty} -o {out}", 2, ("{empty}", "a folder", "a .nemo file")),
    "export: bundle as checkpoint": ("export {bundle} -o {out}", 2, ("{bundle}", "a folder", "a .nemo file")),
    "export: output exists": ("export {nemo} -o {bundle}", 2, ("already there", "--overwrite")),
    "export: output is something else": ("export {nemo} -o {clips}", 2, ("something else than a bundle", "{clips}")),
    "export: output is a folder of other things": ("export {nemo} -o {run}", 2, ("something else than a bundle",)),
    "export: output below a file": ("export {nemo} -o {below}", 2, ("a file where a folder should be",)),
    "export: too little memory": ("export {nemo} -o {out} --max-memory 0.05", 3, ("51 MiB allowed", "--max-memory")),
    "export: interpreter without need": (
        "export {nemo} -o {out} --nemo-python python",
        2,
        ("only for the front end nemo",),
    ),
    "export: NeMo from nowhere": (
        "export {nemo} -o {out} --frontend nemo --nemo-python {gone}",
        3,
        ("does not start", "{gone}", "pip install"),
    ),
    "export: two checkpoints": ("export {nemo} {nemo} -o {out}", 2, ("unexpected extra argument", "export --help")),
    "check: nothing there": ("check {gone}", 2, ("not a bundle", "no such folder", "nemotrt export")),
    "check: checkpoint as bundle": ("check {nemo}", 2, ("not a bundle", "a file", "nemotrt export")),
    "check: run folder as bundle": ("check {run}", 2, ("holds bundles: bundle, bundle-fp16", "give one of them")),
    "check: altered file": ("check {altered}", 2, ("encoder.onnx.data", "not the file that was exported")),
    "check: foreign file": ("check {foreign}", 2, ("not part of it", "notes.txt", "move them")),
    "check: missing file": ("check {lacking}", 2, ("joint.onnx is missing", NOT_TWICE)),
    "check: no such rule": ("check {bundle} --rule opset", 2, ("no such rule", "opset-old")),
    "check: findings on a folder": (
        "check {bundle} --rule opset-old --sarif {empty}",
        2,
        ("a folder", "{empty}"),
    ),
    "check: another schema": ("check {old}", 2, ("schema version 1", "schema_version", NOT_TWICE)),
    "cast: FP16 twice": ("cast {fp16} -o {out}", 2, ("only a float32 bundle", "precision fp16")),
    "cast: unknown precision": ("cast {bundle} -o {out} --to int8", 2, ("'int8' is not one of 'fp16'",)),
    "cast: mixed without a list": ("cast {bundle} -o {out} --to mixed", 2, ("--keep", "nemotrt precision-search")),
    "cast: list that is not there": ("cast {bundle} -o {out} --keep {gone}", 2, ("keep list", "{gone}")),
    "cast: list that is none": ("cast {bundle} -o {out} --keep {text}", 2, ("keep list", "{text}")),
    "cast: no Model Optimizer": ("cast {bundle} -o {out} --engine modelopt", 3, ("Model Optimizer", "pip install")),
    "cast: Model Optimizer from nowhere": (
        "cast {bundle} -o {out} --engine modelopt --modelopt-python {gone}",
        3,
        ("{gone}", "pip install"),
    ),
    "cast: Model Optimizer for nothing": (
        "cast {bundle} -o {out} --modelopt-python {gone}",
        2,
        ("only for --engine modelopt",),
    ),
    "precision-search: half already": ("precision-search {fp16} --audio {clips} -o {out}", 2, ("precision fp16",)),
    "precision-search: no clips": ("precision-search {bundle} --audio {gone} -o {out}", 2, ("{gone}",)),
    "precision-search: checkpoint": ("precision-search {nemo} --audio {clips} -o {out}", 2, ("not a bundle",)),
    "cast: altered bundle": ("cast {altered} -o {out}", 2, ("encoder.onnx.data",)),
    "cast: output exists": ("cast {bundle} -o {fp16}", 2, ("already there", "--overwrite")),
    "quantize: no audio": ("quantize {bundle} -o {out}", 2, ("real audio", "--audio", "--weight-only")),
    "quantize: weights and audio": (
        "quantize {bundle} -o {out} --weight-only --audio {clips}",
        2,
        ("audio, and weights only",),
    ),
    "quantize: no such audio": ("quantize {bundle} -o {out} --audio {gone}", 2, ("not there", "{gone}")),
    "quantize: FP16": ("quantize {fp16} -o {out} --audio {clips}", 2, ("only a float32 bundle", "precision fp16")),
    "quantize: unknown scope": (
        "quantize {bundle} -o {out} --audio {clips} --keep layers.99",
        2,
        ("lies in this scope", "layers.99", "encoder:layers.0"),
    ),
    "quantize: unknown format": ("quantize {bundle} -o {out} --to int4", 2, ("'int4' is not one of",)),
    "quantize: output exists": ("quantize {bundle} -o {fp16} --weight-only", 2, ("already there", "--overwrite")),
    "build: unknown component": ("build {fp16} --engines {out} --component decoder", 2, ("'decoder'", "predictor")),
    "build: preprocessor": ("build {fp16} --engines {out} --component preprocessor", 2, ("runs on ONNX Runtime",)),
    "build: profile beyond the model": ("build {fp16} --engines {out} --profile {long_yaml}", 2, ("at most 400",)),
    "build: store is a file": ("build {fp16} --engines {text}", 2, ("store is a folder", "{text}")),
    "build: altered bundle": ("build {altered} --engines {out}", 2, ("not the file that was exported",)),
    "build: checkpoint as bundle": ("build {nemo} --engines {out}", 2, ("not a bundle", "nemotrt export")),
    "transcribe: no such clip": ("transcribe {bundle} {gone}", 2, ("not there", "{gone}")),
    "transcribe: not audio": ("transcribe {bundle} {fake_wav}", 2, ("not a readable audio file", "ffmpeg")),
    "transcribe: too short": ("transcribe {bundle} {click}", 2, ("too short", "{click}", "0.0025 s")),
    "transcribe: checkpoint as model": ("transcribe {nemo} {wav}", 2, ("not a bundle", "nemotrt export")),
    "transcribe: altered bundle": ("transcribe {altered} {wav}", 2, ("not the file that was exported",)),
    "transcribe: decoder of another model": ("transcribe {bundle} {wav} --decoder ctc", 2, ("no ctc decoder", "tdt")),
    "transcribe: unknown decoder": ("transcribe {bundle} {wav} --decoder beam", 2, ("'beam' is not one of",)),
    "transcribe: no thread": ("transcribe {bundle} {wav} --threads 0", 2, ("--threads",)),
    "transcribe: no streaming components": (
        "transcribe {hybrid} {wav} --stream",
        2,
        ("components of a stream", "{hybrid}", "nemotrt export MODEL.nemo -o BUNDLE --component all"),
    ),
    "transcribe: streamed run folder": ("transcribe {run} {wav} --stream", 2, ("--component all",)),
    "transcribe: chunks of no stream": ("transcribe {hybrid} {wav} --chunk-seconds 1", 2, ("add --stream",)),
    "transcribe: chunks of no length": (
        "transcribe {streamable} {wav} --stream --chunk-seconds 0",
        2,
        ("--chunk-seconds", "above 0"),
    ),
    "transcribe: chunks of no number": ("transcribe {streamable} {wav} --stream --chunk-seconds nan", 2, ("nan s",)),
    "compare: two checkpoints": ("compare {bundle} {hybrid} --audio {clips}", 2, ("same checkpoint", "{hybrid}")),
    "compare: too short": ("compare {bundle} {fp16} --audio {click}", 2, ("{click}", "0.0025 s")),
    "compare: no audio": ("compare {bundle} {fp16}", 2, ("'--audio'", "compare --help")),
    "compare: nothing there": ("compare {bundle} {gone} --audio {clips}", 2, ("not a bundle", "{gone}")),
    "bench: no such model": ("bench {gone} --audio {clips}", 2, ("not a bundle", "{gone}")),
    "bench: too short": ("bench {bundle} --audio {click}", 2, ("{click}", "0.0025 s")),
    "bench: one model twice": ("bench {bundle} {bundle} --audio {clips}", 2, ("given twice", "{bundle}")),
    "bench: no row": ("bench {bundle} --audio {clips} --batch-size 0", 2, ("--batch-size",)),
    "report: no results": ("report {gone} -o {out}", 2, ("cannot be read", "{gone}", "nemotrt run")),
    "report: not results": ("report {text} -o {out}", 2, ("not JSON", "{text}")),
    "report: output is a folder": ("report {results} -o {empty}", 2, ("a folder", "{empty}")),
    "report: output below a file": ("report {results} -o {below}", 2, ("a file where a folder should be",)),
    "report: output cannot be written": ("report {results} -o {sealed}", 3, ("cannot be written", "/proc/nemotrt")),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_line_is_answered_with_what_where_and_what_to_do(
    nemotrt: Nemotrt, things: dict[str, Path], case: str
) -> None:
    line, code, words = WRONG[case]
    if "{sealed}" in line and sys.platform != "linux":
        pytest.skip("needs a folder that nobody can write to")
    arguments = [word.format_map(things) for word in line.split()]
    before = snapshot(things)
    answer = nemotrt(*arguments)
    assert answer.code == code, answer
    assert answer.out == ""
    message = answer.err[answer.err.index("error: ") :]
    for word in words:
        assert word.format_map(things) in message
    assert "\n  to fix: " in message
    assert "\n  where: " in message or "\n  found: " in message or case.endswith("GPU")
    assert "Traceback" not in answer.err
    assert len(message) < 900

    document = nemotrt(*arguments, "--json")
    assert document.code == code
    assert set(document.document) == {"error", "what", "where", "found", "fix"}
    assert message.startswith(f"error: {document.document['what']}")
    assert snapshot(things) == before, "something was written"


def snapshot(things: dict[str, Path]) -> dict[str, set[str]]:
    """What stands beside the things and in the bundles among them."""
    folders = {things["text"].parent, things["run"], things["bundle"], things["fp16"]}
    return {str(folder): {entry.name for entry in folder.iterdir()} for folder in folders}


def test_what_an_export_takes_over_is_said(nemotrt: Nemotrt, things: dict[str, Path], tmp_path: Path) -> None:
    def fail_late(stage: str) -> None:
        if stage == "predictor":
            raise OSError("the drive is gone")

    with pytest.raises(MachineError):
        export_checkpoint(things["nemo"], tmp_path / "b", on_progress=fail_late)
    (left,) = tmp_path.iterdir()
    left.rename(tmp_path / f".b.{2**22 + 1}.partial")  # as if this process were gone: beyond the largest id on Linux
    answer = nemotrt("export", things["nemo"], "-o", tmp_path / "b", "--smoke-test-ort")
    assert answer.code == 0
    assert "taken over from an export that did not finish: preprocessor, encoder, encoder_nomask\n" in answer.err


@pytest.mark.skipif("tensorrt" in sys.modules, reason="TensorRT is installed here")
@pytest.mark.parametrize("command", ["run {nemo} -o {out}", "build {fp16} --engines {out}"])
def test_a_runtime_that_is_not_installed_is_this_machine_s_fault_and_found_out_first(
    nemotrt: Nemotrt, things: dict[str, Path], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    answer = nemotrt(*command.format_map(things).split(), "--runtime", "tensorrt", "--json")
    assert answer.code == 3
    assert answer.document["what"] == "TensorRT is not installed"
    assert answer.document["fix"] == "pip install 'nemotrt[tensorrt]'"
    assert not things["out"].exists()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_the_gpu_of_a_machine_without_one_is_this_machine_s_fault(nemotrt: Nemotrt, things: dict[str, Path]) -> None:
    answer = nemotrt("run", things["nemo"], "-o", things["out"], "--compute-capability", "current")
    assert answer.code == 3
    assert "this machine has none" in answer.err
    assert not things["out"].exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_is_this_machine_s_fault(nemotrt: Nemotrt, things: dict[str, Path], tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    answer = nemotrt("export", things["nemo"], "-o", tmp_path / "bundle")
    tmp_path.chmod(0o755)
    assert answer.code == 3
    assert "cannot be written" in answer.err


def test_a_path_that_no_file_system_stores_is_one_message(nemotrt: Nemotrt, things: dict[str, Path]) -> None:
    for line in ("check {}", "transcribe {} {wav}", "run {} -o {out}", "run {nemo} -o {}", "report {} -o {out}"):
        answer = nemotrt(*line.format("x" * 5000, **things).split())
        assert answer.code in (2, 3)
        assert "error: " in answer.err
        assert "Traceback" not in answer.err


def test_a_terminal_without_the_characters_shows_others_and_json_stays_exact(
    folder: Path, clip: Path, tmp_path: Path
) -> None:
    named = shutil.copy(clip, tmp_path / "für.wav")
    main = "import sys; from nemotrt.cli import main; sys.argv[0] = 'nemotrt'; main()"
    answers = [
        subprocess.run(
            [sys.executable, "-c", main, "transcribe", str(folder / "bundle"), str(named), *extra],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            timeout=120,
            check=True,
        ).stdout
        for extra in ([], ["--json"])
    ]
    assert answers[0].decode("ascii").endswith("f?r.wav\tset the light to red\n")
    assert json.loads(answers[1])["clips"][0]["path"] == str(named)


def test_ctrl_c_ends_with_130_and_a_word_about_what_stays(
    nemotrt: Nemotrt, things: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nemotrt.pipeline.run", interrupted)
    answer = nemotrt("run", things["nemo"], "-o", things["out"])
    assert answer.code == 130
    assert answer.err.startswith("interrupted; what was finished stays")


def test_a_bug_is_not_dressed_up_as_a_user_s_mistake(
    nemotrt: Nemotrt, things: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("nemotrt.pipeline.run", broken)
    monkeypatch.setattr(sys, "argv", ["nemotrt", "run", str(things["nemo"]), "-o", str(things["out"])])
    with pytest.raises(ZeroDivisionError):
        cli.main()


# --- layouts for other clients


def test_layout_says_how_the_client_loads_what_it_wrote(
    nemotrt: Nemotrt, hybrid_bundle: Bundle, tmp_path: Path
) -> None:
    answer = nemotrt("layout", hybrid_bundle.path, "-o", tmp_path / "m", "--client", "sherpa-onnx", "--decoder", "ctc")
    assert answer.code == 0, answer.err
    assert answer.out == f"{tmp_path / 'm'}: load it in sherpa-onnx as OfflineRecognizer.from_nemo_ctc\n"
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "README.md",
        "model.onnx",
        "model.onnx.data",
        "tokens.txt",
    ]
    command = ("layout", hybrid_bundle.path, "-o", tmp_path / "n", "--client", "sherpa-onnx", "--json")
    assert nemotrt(*command).document == {
        "client": "sherpa-onnx",
        "load_as": "OfflineRecognizer.from_transducer",
        "path": str(tmp_path / "n"),
    }


def test_layout_refuses_what_a_client_cannot_do(nemotrt: Nemotrt, hybrid_bundle: Bundle, tmp_path: Path) -> None:
    layout = ("layout", hybrid_bundle.path, "-o", tmp_path / "m", "--client")
    for options, what in (
        (("onnx-asr",), "other features"),
        (("onnx-asr", "--streaming"), "no streaming recognizer"),
        (("sherpa-onnx", "--streaming"), "does not have: encoder_streaming"),
        (("sherpa-onnx", "--decoder", "tdt"), "no tdt decoder"),
    ):
        answer = nemotrt(*layout, *options)
        assert (answer.code, answer.out) == (2, "")
        assert what in answer.err
    assert list(tmp_path.iterdir()) == []

"""``nemotrt run``: does everything once, redoes what changed, survives being stopped anywhere."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import typer

from gpu_stand_in import GPU, StandInGpu, install
from nemotrt import pipeline
from nemotrt.bench.latency import LatencyPlan
from nemotrt.bench.results import read_results
from nemotrt.cli import app
from nemotrt.engines.store import EngineStore
from nemotrt.errors import AudioError, MachineError, UsageError
from nemotrt.pipeline import RunRequest, RunSummary
from nemotrt.stages import proven_bundle
from test_stages import flip_a_byte

pytest.importorskip("tensorrt_rtx")

STAGES = ("export", "cast", "build", "compare and measure")


def silent(_stage: str, _what: str, _fraction: float) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Finished:
    """A run that is done: its request, what it said, and how long it took."""

    request: RunRequest
    summary: RunSummary
    seconds: float


def write_manifest(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Where tests share the cores with others, threads that spin while they wait cost more than they bring."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "LatencyPlan", lambda **plan: LatencyPlan(**{**plan, "threads": 1}))
        yield


@pytest.fixture(scope="module")
def lines(demo_manifest: Path) -> list[dict[str, object]]:
    """Lines of the demo manifest that hold wherever the manifest stands."""
    parsed = [json.loads(line) for line in demo_manifest.read_text(encoding="utf-8").splitlines()]
    return [{**line, "audio_filepath": str(demo_manifest.parent / line["audio_filepath"])} for line in parsed]


@pytest.fixture(scope="module")
def finished(
    tdt_checkpoint: Path, lines: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    place = tmp_path_factory.mktemp("finished")
    request = RunRequest(
        checkpoint=tdt_checkpoint,
        output=place / "out",
        audio=write_manifest(place / "few.json", lines[3:5]),
        profile="demo",
        runs=1,
    )
    start = time.perf_counter()
    summary = pipeline.run(request, on_progress=silent)
    return Finished(request, summary, time.perf_counter() - start)


@pytest.fixture
def request_(finished: Finished, tmp_path: Path) -> RunRequest:
    """The same request for a copy of everything that the finished run made."""
    shutil.copytree(finished.request.output, tmp_path / "out")
    audio = Path(shutil.copy(finished.request.audio or "", tmp_path))
    return replace(finished.request, output=tmp_path / "out", audio=audio)


def redone(summary: RunSummary) -> set[str]:
    return {stage.stage for stage in summary.stages if not stage.reused}


def hidden(folder: Path) -> list[str]:
    """What stages write beside their results until these are complete."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


def assert_complete(request: RunRequest) -> None:
    """Everything is there, sound, and made from each other."""
    out = request.output
    assert proven_bundle(out / "bundle-fp16").meta.cast_from == proven_bundle(out / "bundle").meta.fingerprint()
    store = EngineStore(out / "engines")
    assert {engine.manifest.component for engine in store.entries()} == {"encoder", "predictor", "joint"}
    assert all(len(store.load_plan(engine)) for engine in store.entries())
    assert store.damaged() == ()
    results = read_results(out / "results.json")
    assert (results.verdict, len(results.comparisons)) == ("pass", 2)
    assert "</html>" in (out / "report.html").read_text(encoding="utf-8")
    assert hidden(out) == []


# --- the whole road, and the second time


def test_a_run_leaves_what_it_says(finished: Finished) -> None:
    assert_complete(finished.request)
    assert redone(finished.summary) == set(STAGES)
    assert [stage.stage for stage in finished.summary.stages] == list(STAGES)
    assert finished.summary.verdict == "pass"
    assert finished.summary.report == finished.request.output / "report.html"
    (skipped,) = finished.summary.results.skipped
    assert skipped.what == "running the engines, and comparing them"


def test_a_second_run_reuses_every_stage(
    finished: Finished, request_: RunRequest, figure: Callable[[str], None]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in request_.output.rglob("*") if path.name != "report.html"}
    start = time.perf_counter()
    summary = pipeline.run(request_, on_progress=silent)
    figure(f"nemotrt run, demo TDT, two clips: {finished.seconds:.2f} s; again {time.perf_counter() - start:.2f} s")
    assert redone(summary) == set()
    assert summary.results == finished.summary.results
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()} == {
        path: stamp for path, stamp in before.items() if path.is_file()
    }


def with_lines(request: RunRequest, edit: Callable[[list[dict[str, object]]], object]) -> None:
    """Edit the lines of the request's own manifest in place."""
    assert request.audio is not None
    lines = [json.loads(line) for line in request.audio.read_text(encoding="utf-8").splitlines()]
    edit(lines)
    write_manifest(request.audio, lines)


def move_clips(request: RunRequest) -> None:
    def move(lines: list[dict[str, object]]) -> None:
        for line in lines:
            line["audio_filepath"] = shutil.copy(str(line["audio_filepath"]), request.output.parent)

    with_lines(request, move)


def swap_audio(request: RunRequest) -> None:
    def swap(lines: list[dict[str, object]]) -> None:
        for line, audio in zip(lines, [line["audio_filepath"] for line in reversed(lines)], strict=True):
            copy = request.output.parent / Path(str(line.pop("audio_filepath"))).name
            line.update(audio_filepath=str(shutil.copy(str(audio), copy)), duration=None)

    with_lines(request, swap)


def edit_results(request: RunRequest) -> None:
    results = request.output / "results.json"
    results.write_text(results.read_text(encoding="utf-8").replace('"pass"', '"fail"'), encoding="utf-8")


def remove(*names: str) -> Callable[[RunRequest], None]:
    def change(request: RunRequest) -> None:
        for path in (request.output / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def alter(name: str) -> Callable[[RunRequest], None]:
    return lambda request: flip_a_byte(request.output / name)


def write(name: str) -> Callable[[RunRequest], object]:
    return lambda request: (request.output / name).write_text("{")


CHANGES: dict[str, Callable[[RunRequest], object]] = {
    "a byte of the bundle": alter("bundle/encoder.onnx.data"),
    "a file in the bundle": write("bundle/notes.txt"),
    "a byte of the FP16 bundle": alter("bundle-fp16/encoder.onnx.data"),
    "the FP16 bundle is gone": remove("bundle-fp16"),
    "both bundles are gone": remove("bundle", "bundle-fp16"),
    "the results": edit_results,
    "the state": write("run.json"),
    "the report is gone": remove("report.html"),
    "a transcript": lambda request: with_lines(request, lambda lines: lines[0].update(text="something else")),
    "recorded tokens": lambda request: with_lines(request, lambda lines: lines[0].update(nemo_tdt_ids=[1, 2, 3])),
    "the audio of the clips": swap_audio,
    "where the clips are": move_clips,
    "the profile": lambda request: replace(request, profile="single-stream"),
    "the number of timed runs": lambda request: replace(request, runs=2),
}


def change(name: str, request: RunRequest) -> RunRequest:
    """The request after one thing was touched."""
    changed = CHANGES[name](request)
    return changed if isinstance(changed, RunRequest) else request


MEASURE = {"compare and measure"}


@pytest.mark.parametrize(
    ("touched", "expected"),
    [
        ("a byte of the bundle", {"export"}),
        ("a file in the bundle", {"export"}),
        ("a byte of the FP16 bundle", {"cast"}),
        ("the FP16 bundle is gone", {"cast"}),
        ("both bundles are gone", {"export", "cast"}),
        ("the profile", {"build"} | MEASURE),
        ("the results", MEASURE),
        ("the state", MEASURE),
        ("the report is gone", set()),
        ("a transcript", MEASURE),
        ("the audio of the clips", MEASURE),
        ("the number of timed runs", MEASURE),
        ("where the clips are", set()),
    ],
)
def test_touching_one_thing_redoes_what_depends_on_it_and_nothing_else(
    request_: RunRequest, touched: str, expected: set[str]
) -> None:
    summary = pipeline.run(change(touched, request_), on_progress=silent)
    assert redone(summary) == expected
    assert (request_.output / "report.html").is_file()
    assert proven_bundle(request_.output / "bundle").meta.precision == "fp32"


def test_a_damaged_engine_is_built_again_alone_and_compared_again(request_: RunRequest) -> None:
    store = EngineStore(request_.output / "engines")
    before = {engine.manifest.component: engine.manifest.created for engine in store.entries()}
    (joint,) = (engine for engine in store.entries() if engine.manifest.component == "joint")
    flip_a_byte(joint.plan_path)
    summary = pipeline.run(request_, on_progress=silent)
    assert redone(summary) == {"build"} | MEASURE
    after = {engine.manifest.component: engine.manifest.created for engine in store.entries()}
    assert [name for name in before if before[name] != after[name]] == ["joint"]
    assert [engine.component for engine in summary.results.engines if not engine.reused] == ["joint"]
    assert_complete(request_)


def test_recorded_tokens_that_differ_are_a_result_with_a_reason(request_: RunRequest) -> None:
    summary = pipeline.run(change("recorded tokens", request_), on_progress=silent)
    assert redone(summary) == MEASURE
    assert summary.verdict == "fail"
    assert "token ids equal on 1 of 2 clips" in summary.results.reasons[0]
    assert "NeMo (recorded)" in summary.results.reasons[0]


# --- with less


def test_without_audio_nothing_is_compared_and_later_audio_is_added(request_: RunRequest) -> None:
    silent_run = pipeline.run(replace(request_, audio=None), on_progress=silent)
    assert redone(silent_run) == MEASURE
    assert silent_run.verdict == "nothing compared"
    assert (silent_run.results.comparisons, silent_run.results.latency) == ((), None)
    assert silent_run.results.reasons == ("Nothing was compared, so nothing is proven.",)
    assert {"comparisons and latency"} <= {skipped.what for skipped in silent_run.results.skipped}
    with_audio = pipeline.run(request_, on_progress=silent)
    assert redone(with_audio) == MEASURE
    assert_complete(request_)


def test_where_no_tensorrt_is_installed_everything_else_is_done(
    request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "best_runtime", lambda: None)
    shutil.rmtree(request_.output / "engines")
    summary = pipeline.run(request_, on_progress=silent)
    assert summary.verdict == "pass"
    assert summary.results.engines == ()
    assert ("building engines", "no TensorRT is installed; see: nemotrt doctor") in [
        (skipped.what, skipped.reason) for skipped in summary.results.skipped
    ]
    assert not (request_.output / "engines").exists()
    assert "no TensorRT is installed" in (request_.output / "report.html").read_text(encoding="utf-8")


def test_a_runtime_that_was_asked_for_is_not_replaced_by_another(
    tdt_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    request = RunRequest(tdt_checkpoint, tmp_path / "out", None, "demo", runtime="tensorrt")
    with pytest.raises(MachineError, match="TensorRT is not installed"):
        pipeline.run(request, on_progress=silent)
    assert not request.output.exists()


def test_an_output_that_cannot_be_one_is_refused_and_left_alone(request_: RunRequest, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    for output in (occupied, occupied / "below", request_.output / "bundle"):
        with pytest.raises(UsageError, match="the output is"):
            pipeline.run(replace(request_, output=output), on_progress=silent)
    assert occupied.read_text() == "mine"
    assert_complete(request_)


def test_what_others_keep_in_the_folder_stays(request_: RunRequest) -> None:
    (request_.output / "notes.txt").write_text("mine")
    pipeline.run(change("the FP16 bundle is gone", request_), on_progress=silent)
    assert (request_.output / "notes.txt").read_text() == "mine"


def test_clips_that_are_not_audio_stop_the_run_and_what_was_made_stays(request_: RunRequest, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("not audio")
    with pytest.raises(AudioError, match=r"notes\.wav"):
        pipeline.run(replace(request_, audio=tmp_path / "notes.wav"), on_progress=silent)
    assert redone(pipeline.run(request_, on_progress=silent)) == set()


def test_the_commands_in_the_results_are_commands(finished: Finished, request_: RunRequest) -> None:
    group = typer.main.get_command(app)
    request = replace(request_, runtime="tensorrt-rtx", compute_capabilities=("8.9",))
    for command in (*finished.summary.results.commands, *pipeline._commands(request)):
        tool, *words = shlex.split(command)
        assert tool == "nemotrt"
        name, subcommand, rest = group.resolve_command(typer.Context(group), words)
        assert subcommand.make_context(name, rest).params


# --- on a GPU


def test_on_a_gpu_host_engines_are_verified_once_and_again_when_built_again(
    request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = StandInGpu()
    install(monkeypatch, gpu)
    summary = pipeline.run(request_, on_progress=silent)
    assert redone(summary) == MEASURE
    assert {engine.state for engine in summary.results.engines} == {"verified"}
    assert {engine.reason for engine in summary.results.engines} == {
        f"compared with {summary.results.comparisons[-1].reference} on {GPU.name}"
    }
    assert redone(pipeline.run(request_, on_progress=silent)) == set()
    store = EngineStore(request_.output / "engines")
    (joint,) = (engine for engine in store.entries() if engine.manifest.component == "joint")
    flip_a_byte(joint.plan_path)
    again = pipeline.run(request_, on_progress=silent)
    assert redone(again) == {"build"} | MEASURE
    assert {engine.manifest.verification.state for engine in store.entries()} == {"verified"}


# --- stopped


INTERRUPTED = {
    # stage: what is not there yet, and what is still to be done
    "export": (("bundle", "bundle-fp16", "results.json"), {"export", "cast", "compare and measure"}),
    "cast to FP16": (("bundle-fp16", "results.json"), {"cast", "compare and measure"}),
    "build": (("engines", "results.json"), {"build", "compare and measure"}),
    "compare and measure": (("results.json",), {"compare and measure"}),
}


@pytest.mark.parametrize("stage", INTERRUPTED)
def test_an_interrupted_run_goes_on_where_it_was(request_: RunRequest, stage: str) -> None:
    missing, left = INTERRUPTED[stage]
    remove(*missing)(request_)
    heard: list[str] = []

    def interrupt(name: str, what: str, _fraction: float) -> None:
        heard.append(name)
        if name == stage and heard.count(stage) == 3:
            raise KeyboardInterrupt(what)

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(request_, on_progress=interrupt)
    assert heard.count(stage) == 3
    assert hidden(request_.output) == []
    assert not (request_.output / missing[0]).exists()
    assert not (request_.output / "results.json").exists()
    assert redone(pipeline.run(request_, on_progress=silent)) == left
    assert_complete(request_)


def test_killed_at_random_moments_a_run_still_comes_to_its_end(
    finished: Finished, request_: RunRequest, tmp_path: Path
) -> None:
    request = replace(request_, output=tmp_path / "killed")
    words = shlex.split(finished.summary.results.commands[0])[1:]
    words[words.index("-o") + 1] = str(request.output)
    words[words.index("--audio") + 1] = str(request.audio)
    main = "import sys; from nemotrt.cli import main; sys.argv[0] = 'nemotrt'; main()"
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    for attempt in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", main, *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert child.stderr is not None
        child.stderr.readline()  # "export ...": from here on there is something to break
        time.sleep(moments.uniform(0.0, 0.3 + 0.3 * finished.seconds))
        child.kill()
        child.communicate()
        for name in ("bundle", "bundle-fp16"):
            if (request.output / name).exists():
                assert proven_bundle(request.output / name), f"seed {seed}, attempt {attempt}"
        assert EngineStore(request.output / "engines").damaged() == ()
    assert pipeline.run(request, on_progress=silent).verdict == "pass"
    assert_complete(request)

"""``nemotrt run``: a checkpoint to verified engines and a report, in one folder.

    OUT/bundle/        FP32, the reference            OUT/results.json   everything measured
    OUT/bundle-fp16/   what the engines are built of  OUT/report.html    the same, to look at
    OUT/engines/       the engine store               OUT/run.json       what the measurements were made from

Running it again redoes what changed: bundles and engines are found by content, measurements by what they were made
from.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemotrt import __version__
from nemotrt.bench.latency import LatencyPlan
from nemotrt.bench.machine import describe_machine
from nemotrt.bench.measurement import Subject, measure_subject
from nemotrt.bench.quantities import counted
from nemotrt.bench.report import write_report
from nemotrt.bench.results import Results, Skipped, read_results, write_results
from nemotrt.bench.text_file import write_whole
from nemotrt.bundle import META_NAME, Bundle, sha256_of_file
from nemotrt.engines.audio import Clip, read_clips
from nemotrt.engines.store import EngineStore
from nemotrt.errors import InputError, UsageError
from nemotrt.profiles import Profile, load_profile
from nemotrt.stages import EngineOrder, MadeEngine, Progress, ensure_bundle, ensure_engines, ensure_fp16
from nemotrt.tensorrt_api import RuntimeName, best_runtime, can_run
from nemotrt.trt.build import check_target

BUNDLE, BUNDLE_FP16, ENGINES = "bundle", "bundle-fp16", "engines"
RESULTS, REPORT, STATE = "results.json", "report.html", "run.json"

StageProgress = Callable[[str, str, float], None]
"""Called with the stage, what is at hand in it, and the fraction of it that is done."""


@dataclass(frozen=True)
class RunRequest:
    """What ``nemotrt run`` was asked for. ``runtime`` ``None``: the best one that loads here."""

    checkpoint: Path
    output: Path
    audio: Path | None
    profile: str
    runtime: RuntimeName | None = None
    compute_capabilities: tuple[str, ...] = ()
    runs: int = 10


@dataclass(frozen=True)
class StageResult:
    """A line of the summary: what a stage made, and whether it was there already."""

    stage: str
    made: str
    reused: bool


@dataclass(frozen=True)
class RunSummary:
    """What ``nemotrt run`` did."""

    results: Results
    report: Path
    stages: tuple[StageResult, ...]

    @property
    def verdict(self) -> Literal["pass", "fail", "nothing compared"]:
        """That of the results; without audio there is nothing to judge."""
        return self.results.verdict if self.results.comparisons else "nothing compared"


def run(request: RunRequest, *, on_progress: StageProgress) -> RunSummary:
    """Export, cast, build, compare, measure and report.

    A difference between engines and reference is a result: see ``summary.results.verdict``.

    Raises:
        UsageError: ``request.output`` is a file, lies below one, or is a bundle.
        NemotrtError: as the stages do; what earlier stages made stays, and the next run reuses it.
    """

    def stage(name: str) -> Progress:
        return lambda what, fraction: on_progress(name, what, fraction)

    output = request.output
    _refuse_output(output)
    clips = () if request.audio is None else read_clips(request.audio)
    profile = load_profile(request.profile)
    runtime = request.runtime or best_runtime()
    if runtime is not None:
        check_target(runtime, request.compute_capabilities)
    exported = ensure_bundle(request.checkpoint, output / BUNDLE, on_progress=stage("export"))
    cast = ensure_fp16(exported.bundle, output / BUNDLE_FP16, on_progress=stage("cast to FP16"))
    engines, skipped = _engines(request, runtime, cast.bundle, profile, on_progress=stage("build"))
    subject = Subject(
        checkpoint=request.checkpoint,
        reference=exported.bundle,
        candidate=cast.bundle,
        engines=tuple(made.engine for made in engines),
        reused=frozenset(made.engine.key for made in engines if made.reused),
        store=EngineStore(output / ENGINES),
        clips=clips,
    )
    plan = LatencyPlan(batch_sizes=_batch_sizes(profile), runs=request.runs, warmup=2, threads=None)
    measured = _measured(request, subject, plan, skipped, on_progress=stage("compare and measure"))
    return RunSummary(
        results=measured.results,
        report=write_report(measured.results, output / REPORT),
        stages=(
            StageResult("export", f"{len(exported.bundle.meta.components)} FP32 components", exported.reused),
            StageResult("cast", f"{len(cast.bundle.meta.components)} FP16 components", cast.reused),
            StageResult(
                "build", counted(len(engines), "engine"), bool(engines) and all(made.reused for made in engines)
            ),
            StageResult("compare and measure", counted(len(clips), "clip"), measured.reused),
        ),
    )


def _refuse_output(output: Path) -> None:
    """A folder of other things is accepted: ours have their own names in it. A bundle would no longer be one."""
    for path in (output, *output.absolute().parents):
        if path.exists() and not path.is_dir():
            raise UsageError("the output is not a folder", where=path, found="a file", fix="give another output")
    if (output / META_NAME).exists():
        raise UsageError(
            "the output is a bundle, and a bundle holds nothing else",
            where=output,
            fix="give the folder that the bundle is in, or another one",
        )


def _engines(
    request: RunRequest, runtime: RuntimeName | None, bundle: Bundle, profile: Profile, *, on_progress: Progress
) -> tuple[tuple[MadeEngine, ...], tuple[Skipped, ...]]:
    """The engines; or none and the reason, where this machine cannot build and nobody insisted on a runtime."""
    if runtime is None:
        return (), (Skipped(what="building engines", reason="no TensorRT is installed; see: nemotrt doctor"),)
    order = EngineOrder((profile,), runtime, request.compute_capabilities)
    return ensure_engines(bundle, order, EngineStore(request.output / ENGINES), on_progress=on_progress), ()


@dataclass(frozen=True)
class _Measured:
    results: Results
    reused: bool


def _measured(
    request: RunRequest,
    subject: Subject,
    plan: LatencyPlan,
    skipped: tuple[Skipped, ...],
    *,
    on_progress: Progress,
) -> _Measured:
    output = request.output
    key = _measurement_key(subject, plan, skipped)
    kept = _kept_results(output, key)
    if kept is not None:
        return _Measured(kept, reused=True)
    commands = _commands(request)
    results = measure_subject(subject, plan, skipped=skipped, commands=commands, on_progress=on_progress)
    write_results(results, output / RESULTS)
    _write_state(output, key)
    return _Measured(results, reused=False)


def _batch_sizes(profile: Profile) -> tuple[int, ...]:
    """One row, and as many as the profile allows, up to four."""
    return tuple(sorted({1, min(4, profile.batch.max)}))


def _measurement_key(subject: Subject, plan: LatencyPlan, skipped: Iterable[Skipped]) -> str:
    """Changes when anything changes that the measurements depend on, the machine included.

    An engine that was built again is another engine, though its key is the same.
    """
    parts = [
        __version__,
        subject.reference.meta.fingerprint(),
        subject.candidate.meta.fingerprint(),
        *(f"{engine.key} {engine.manifest.created.isoformat()}" for engine in subject.engines),
        *(_clip_key(clip) for clip in subject.clips),
        repr(plan),
        repr(describe_machine()),
        repr(can_run()),
        *(f"{one.what}: {one.reason}" for one in skipped),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _clip_key(clip: Clip) -> str:
    """By content, so that a clip may move."""
    digest = sha256_of_file(clip.path) if clip.path.is_file() else "missing"
    return repr((clip.name, clip.text, sorted(clip.recorded.items()), digest))


def _kept_results(output: Path, key: str) -> Results | None:
    """The results of an earlier run, if they were made from the same things and are unaltered."""
    try:
        state = json.loads((output / STATE).read_text(encoding="utf-8"))
        if state == {"measurement": key, "results_sha256": sha256_of_file(output / RESULTS)}:
            return read_results(output / RESULTS)
    except (OSError, ValueError, InputError):
        return None
    return None


def _write_state(output: Path, key: str) -> None:
    state = {"measurement": key, "results_sha256": sha256_of_file(output / RESULTS)}
    write_whole(json.dumps(state, indent=1) + "\n", output / STATE)


def _commands(request: RunRequest) -> tuple[str, ...]:
    """The run, and the same stage by stage."""
    out = request.output
    audio: list[object] = [] if request.audio is None else ["--audio", request.audio]
    target: list[object] = ["--profile", request.profile]
    target += ["--runtime", request.runtime] if request.runtime else []
    for capability in request.compute_capabilities:
        target += ["--compute-capability", capability]
    commands: list[list[object]] = [
        ["nemotrt", "run", request.checkpoint, "-o", out, *target, *audio, "--runs", request.runs],
        ["nemotrt", "export", request.checkpoint, "-o", out / BUNDLE],
        ["nemotrt", "cast", out / BUNDLE, "--to", "fp16", "-o", out / BUNDLE_FP16],
        ["nemotrt", "build", out / BUNDLE_FP16, "--engines", out / ENGINES, *target],
    ]
    if audio:
        commands.append(["nemotrt", "compare", out / BUNDLE, out / BUNDLE_FP16, *audio])
    return tuple(shlex.join(map(str, command)) for command in commands)

"""A reference bundle, a candidate and its engines, on real audio: everything ``results.json`` holds.

    clips --> FP32 on ONNX Runtime  against  what NeMo recorded                    same tokens
          --> FP16 on ONNX Runtime  against  FP32 on ONNX Runtime                  the typed graph is right
          --> the engines on a GPU  against  FP32 on ONNX Runtime                  the engines are right
          --> latency of all of them, interleaved

Where there is no GPU the engines are "built, not verified", and the results say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import onnx

from nemotrt.bench.compare import compare, compare_recorded
from nemotrt.bench.engine_limits import EngineLimits
from nemotrt.bench.latency import LatencyPlan, measure
from nemotrt.bench.machine import describe_machine, git_commit
from nemotrt.bench.results import Comparison, EngineBuild, GraphFile, Latency, Results, Skipped
from nemotrt.bench.roofline import hardware_peak
from nemotrt.bench.system import Progress, System
from nemotrt.bench.tolerances import tolerance_for
from nemotrt.bench.transcripts import transcripts_from_comparisons
from nemotrt.bench.utterance import Utterance, read_utterances
from nemotrt.bundle import Bundle, Decoder
from nemotrt.engines.audio import Clip
from nemotrt.engines.manifest import Verification
from nemotrt.engines.runner import Runner
from nemotrt.engines.store import EngineStore, StoredEngine
from nemotrt.engines.tensorrt_runner import TensorRTRunner
from nemotrt.engines.transcriber import Transcriber, components_of, decoders_of
from nemotrt.errors import EngineError, MachineError
from nemotrt.tensorrt_api import GpuReport, can_run

_BATCH_SIZE = 4
"""Rows of the batches that clips are compared in, where an engine takes as many."""


@dataclass(frozen=True)
class Subject:
    """What is measured. ``reused`` holds the keys of the engines that were there already."""

    checkpoint: Path
    reference: Bundle
    candidate: Bundle
    engines: tuple[StoredEngine, ...]
    reused: frozenset[str]
    store: EngineStore
    clips: tuple[Clip, ...]


def measure_subject(
    subject: Subject,
    plan: LatencyPlan,
    *,
    skipped: Iterable[Skipped],
    commands: Sequence[str],
    on_progress: Progress,
) -> Results:
    """Compare and time everything that this machine can run; what it cannot is in ``skipped`` with the reason.

    Verdicts on engines are written into their manifests. An engine that this GPU cannot load stays unverified.

    Raises:
        AudioError: a clip cannot be read.
        MachineError: an engine was loaded and fails to run.
    """
    session = _Session(subject, plan, list(skipped), on_progress)
    comparisons, latency = session.measurements()
    return Results(
        schema_version=1,
        created=datetime.now(UTC),
        model=subject.reference.meta.name,
        family=subject.reference.meta.family,
        checkpoint=subject.checkpoint.name,
        checkpoint_sha256=subject.reference.meta.checkpoint_sha256,
        commit=git_commit(Path(__file__).parent),
        machine=describe_machine(),
        transcripts=transcripts_from_comparisons(comparisons),
        comparisons=comparisons,
        latency=latency,
        graphs=(*_graph_files(subject.reference), *_graph_files(subject.candidate)),
        engines=tuple(_engine_row(subject, engine) for engine in session.engines),
        skipped=tuple(session.skipped),
        commands=tuple(commands),
    )


class _Session:
    """One measurement: collects what had to be skipped, and the engines with their latest verdicts."""

    def __init__(self, subject: Subject, plan: LatencyPlan, skipped: list[Skipped], on_progress: Progress) -> None:
        self.engines = list(subject.engines)
        self.skipped = skipped
        self._subject, self._plan, self._on_progress = subject, plan, on_progress
        self._gpu = can_run()
        self._limits = EngineLimits.of(engine.manifest for engine in self.engines if self._gpu)

    def measurements(self) -> tuple[tuple[Comparison, ...], Latency | None]:
        """Every comparison, then the latency of the first decoder's systems."""
        if self.engines and not self._gpu:
            self._skip("running the engines, and comparing them", f"no GPU: {self._gpu.reason}")
        utterances = self._utterances()
        if not utterances:
            self._skip("comparisons and latency", "no audio was given, or none that the model takes")
            return (), None
        comparisons: list[Comparison] = []
        latency = None
        for decoder in decoders_of(self._subject.reference.meta):
            with ExitStack() as stack:
                systems = self._systems(decoder, stack)
                comparisons.extend(self._compare(systems, utterances))
                if latency is None:
                    latency = self._latency(systems, utterances)
        return tuple(comparisons), latency

    def _utterances(self) -> tuple[Utterance, ...]:
        """The clips with audio, without those that the model or the engines' profile does not take."""
        meta, geometry = self._subject.reference.meta, self._subject.reference.meta.geometry
        longest = geometry.seconds_from_feature_frames(geometry.max_feature_frames)
        kept = []
        for utterance in read_utterances(self._subject.clips, sample_rate=meta.audio_front_end().sample_rate):
            frames, what = self._frames(utterance), f"clip {utterance.clip.name}, {utterance.waveform.seconds:.2f} s"
            if not 1 <= frames <= geometry.max_feature_frames:
                self._skip(what, f"the model takes one feature frame to {longest:g} s")
            elif not self._limits.takes(frames=frames, batch=1):
                self._skip(what, f"the engines were built for {self._limits.in_words(geometry)}")
            else:
                kept.append(utterance)
        return tuple(kept)

    def _frames(self, utterance: Utterance) -> int:
        return len(utterance.waveform.samples) // self._subject.reference.meta.audio_front_end().hop_samples

    def _systems(self, decoder: Decoder, stack: ExitStack) -> tuple[System, ...]:
        """FP32 first, then FP16, then the engines where a GPU can run them."""
        opened = []
        for bundle in (self._subject.reference, self._subject.candidate):
            transcriber = Transcriber(bundle, decoder=decoder, threads=self._plan.threads)
            opened.append(stack.enter_context(transcriber))
        if self._gpu and (runners := self._engine_runners(decoder, stack)):
            candidate, threads = self._subject.candidate, self._plan.threads
            transcriber = Transcriber(candidate, decoder=decoder, runners=runners, threads=threads)
            opened.append(stack.enter_context(transcriber))
        return tuple(System.named_by_precision(transcriber) for transcriber in opened)

    def _engine_runners(self, decoder: Decoder, stack: ExitStack) -> dict[str, Runner]:
        """By component; none, and the reason recorded, where one cannot be loaded here."""
        runners: dict[str, Runner] = {}
        try:
            for engine in self.engines:
                if engine.manifest.component in components_of(decoder):
                    runner = TensorRTRunner.open(engine)
                    stack.callback(runner.close)
                    runners[engine.manifest.component] = runner
        except (EngineError, MachineError) as exc:
            reason = f"{exc.what} ({exc.found})" if exc.found else exc.what
            self._skip(f"running the {decoder} engines, and comparing them", reason)
            self._record_unverified(decoder, reason)
            return {}
        return runners

    def _compare(self, systems: Sequence[System], utterances: Sequence[Utterance]) -> list[Comparison]:
        reference, *candidates = systems
        decoder = reference.transcriber.decoder
        results = []
        if any(decoder in utterance.clip.recorded for utterance in utterances):
            results.append(compare_recorded(reference, utterances, on_progress=self._on_progress))
        else:
            self._skip(f"{decoder} tokens against NeMo", "the audio manifest records none")
        for candidate in candidates:
            meta = candidate.transcriber.bundle.meta
            tolerance = tolerance_for(meta.family, meta.precision, decoder=decoder)
            is_engines = candidate is not systems[1]
            comparison = compare(
                reference,
                candidate,
                utterances,
                tolerance=tolerance,
                batch_size=self._engine_batch_size(utterances) if is_engines else _BATCH_SIZE,
                on_progress=self._on_progress,
            )
            results.append(comparison)
            if is_engines:
                self._record(comparison, decoder)
        return results

    def _engine_batch_size(self, utterances: Sequence[Utterance]) -> int | None:
        """``None`` where the engines take one clip at a time."""
        rows = self._limits.largest_batch(map(self._frames, utterances), at_most=_BATCH_SIZE)
        return rows if rows > 1 else None

    def _record_unverified(self, decoder: Decoder, reason: str) -> None:
        """Say in the manifests why there is no verdict; one that another GPU gave stays."""
        verification = Verification(state="built, not verified", reason=reason)
        for index, engine in enumerate(self.engines):
            is_open = engine.manifest.verification.state == "built, not verified"
            if is_open and engine.manifest.component in components_of(decoder):
                self.engines[index] = self._subject.store.record_verification(engine, verification)

    def _record(self, comparison: Comparison, decoder: Decoder) -> None:
        """Write the verdict into the manifest of every engine that took part."""
        verification = Verification(
            state="verified" if comparison.verdict == "pass" else "failed",
            reason="; ".join(comparison.reasons) or None,
            reference=comparison.reference,
            gpu=self._gpu.gpus[0].name,
            checked=datetime.now(UTC),
            figures=_figures(comparison),
        )
        for index, engine in enumerate(self.engines):
            if engine.manifest.component in components_of(decoder):
                self.engines[index] = self._subject.store.record_verification(engine, verification)

    def _latency(self, systems: Sequence[System], utterances: Sequence[Utterance]) -> Latency:
        gpu = self._gpu.gpus[0].name if self._gpu else None
        frames = [self._frames(utterance) for utterance in utterances]
        fitting = (size for size in self._plan.batch_sizes if self._limits.largest_batch(frames, at_most=size) == size)
        plan = replace(self._plan, batch_sizes=tuple(fitting) or (1,))
        peaks = {}
        for index, system in enumerate(systems):
            precision = system.transcriber.bundle.meta.precision
            peaks[system.name] = hardware_peak(gpu if index > 1 else None, precision)
        return measure(systems, utterances, plan=plan, peaks=peaks, on_progress=self._on_progress)

    def _skip(self, what: str, reason: str) -> None:
        self.skipped.append(Skipped(what=what, reason=reason))


def _figures(comparison: Comparison) -> dict[str, float]:
    cosines = [row.frames.min_cosine for row in comparison.clips if row.frames and row.frames.min_cosine is not None]
    return {"min_frame_cosine": min(cosines)} if cosines else {}


def _graph_files(bundle: Bundle) -> tuple[GraphFile, ...]:
    return tuple(
        GraphFile(
            component=name,
            precision=bundle.meta.precision,
            nodes=len(onnx.load(bundle.graph_path(name), load_external_data=False).graph.node),
            parameters=spec.parameters,
            size_bytes=sum(bundle.meta.files[file].size_bytes for file in spec.files),
        )
        for name, spec in bundle.meta.components.items()
    )


def _engine_row(subject: Subject, engine: StoredEngine) -> EngineBuild:
    manifest = engine.manifest
    return EngineBuild(
        component=manifest.component,
        precision=manifest.precision,
        runtime=manifest.runtime,
        runtime_version=manifest.runtime_version,
        profile=manifest.profile,
        targets=", ".join(manifest.compute_capabilities) or "the library's default GPUs",
        layers=manifest.layers,
        size_bytes=manifest.size_bytes,
        seconds=manifest.build_seconds,
        key=manifest.key,
        state=manifest.verification.state,
        reason=_state_reason(engine, can_run()),
        reused=engine.key in subject.reused,
    )


def _state_reason(engine: StoredEngine, gpu: GpuReport) -> str:
    verification = engine.manifest.verification
    if verification.state == "verified":
        return f"compared with {verification.reference} on {verification.gpu}"
    return verification.reason or gpu.reason

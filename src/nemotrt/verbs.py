"""What stands behind ``transcribe``, ``compare`` and ``bench``: the paths a user gives, opened and put to work.

MODEL is a bundle                     ONNX Runtime
MODEL is a folder of ``nemotrt run``  its verified engines where a GPU can run them, else its FP32 bundle
streamed, either of them              ONNX Runtime, on the FP32 bundle
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nemotrt.bench.compare import compare
from nemotrt.bench.engine_limits import EngineLimits
from nemotrt.bench.latency import LatencyPlan, measure
from nemotrt.bench.results import Comparison, Latency
from nemotrt.bench.roofline import hardware_peak
from nemotrt.bench.system import Progress, System
from nemotrt.bench.tolerances import tolerance_for
from nemotrt.bench.utterance import Utterance, read_utterances
from nemotrt.bundle import META_NAME, Bundle, Decoder
from nemotrt.engines.audio import Clip, Waveform, read_clips, read_waveform
from nemotrt.engines.feature_file import read_features
from nemotrt.engines.runner import Runner
from nemotrt.engines.store import EngineStore, StoredEngine
from nemotrt.engines.streaming_transcriber import StreamingTranscriber
from nemotrt.engines.tensorrt_runner import TensorRTRunner
from nemotrt.engines.transcriber import Transcriber, components_of, decoders_of
from nemotrt.errors import AudioError, EngineError, MachineError, UsageError
from nemotrt.pipeline import BUNDLE, BUNDLE_FP16, ENGINES
from nemotrt.stages import is_cast_of, proven_bundle
from nemotrt.tensorrt_api import can_run

_BATCH_SIZE = 4
"""Rows of the batches that clips are compared in, where an engine takes as many."""


@dataclass(frozen=True)
class ClipText:
    """What was heard in a clip. ``seconds`` is its duration."""

    clip: Clip
    seconds: float
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PartialText:
    """What was heard in the first ``seconds`` of a clip."""

    seconds: float
    text: str


@dataclass(frozen=True)
class StreamedText:
    """What was heard in a clip, and each other text on the way there."""

    heard: ClipText
    partials: tuple[PartialText, ...]


@dataclass(frozen=True)
class _Parts:
    """What a transcriber is made of, and which clips and batches its engines take."""

    bundle: Bundle
    runners: Mapping[str, Runner] = field(default_factory=dict)
    limits: EngineLimits = field(default_factory=EngineLimits)


@dataclass(frozen=True)
class _OpenedModel:
    transcriber: Transcriber
    limits: EngineLimits


@contextmanager
def open_transcriber(model: Path, *, decoder: Decoder | None, threads: int | None) -> Iterator[Transcriber]:
    """A transcriber of ``model``, closed on exit.

    Raises:
        BundleError: ``model`` is neither a bundle nor a run folder, or is damaged.
        UsageError: it has no such decoder.
    """
    with _opened_model(model, decoder, threads) as opened:
        yield opened.transcriber


def transcribe_clips(transcriber: Transcriber, clips: Sequence[Clip]) -> Iterator[ClipText]:
    """The text of each clip, in order, one at a time. Of a model that takes its own features a clip is a file of them.

    Raises:
        AudioError: a clip is not audio, too short, or longer than the model's position table; names the file.
        UsageError: features that do not fit the model.
    """
    if transcriber.bundle.meta.mel is None:
        yield from _transcribe_feature_files(transcriber, clips)
        return
    rate = transcriber.bundle.meta.audio_front_end().sample_rate
    for clip in clips:
        waveform = read_waveform(clip.path, sample_rate=rate)
        _refuse_length(clip, waveform, transcriber)
        heard = transcriber.transcribe([waveform])[0]
        yield ClipText(clip, waveform.seconds, heard.text, heard.hypothesis.token_ids)


def _transcribe_feature_files(transcriber: Transcriber, clips: Sequence[Clip]) -> Iterator[ClipText]:
    for clip in clips:
        features = read_features(clip.path)
        heard = transcriber.transcribe_features([features])[0]
        seconds = transcriber.bundle.meta.geometry.seconds_from_feature_frames(features.shape[1])
        yield ClipText(clip, seconds, heard.text, heard.hypothesis.token_ids)


@contextmanager
def open_streaming_transcriber(
    model: Path, *, decoder: Decoder | None, threads: int | None
) -> Iterator[StreamingTranscriber]:
    """A transcriber of streams, closed on exit.

    Raises:
        BundleError: ``model`` is neither a bundle nor a run folder, or is damaged.
        UsageError: it has not the components of a stream with this decoder.
    """
    bundle = proven_bundle(model if _is_bundle(model) else model / BUNDLE)
    with StreamingTranscriber(bundle, decoder=decoder, threads=threads) as transcriber:
        yield transcriber


def stream_clip(
    transcriber: StreamingTranscriber,
    clip: Clip,
    *,
    chunk_seconds: float | None,
    on_partial: Callable[[PartialText], None],
) -> StreamedText:
    """The text of a clip that is pushed in pieces of ``chunk_seconds``, by default one chunk of the model.

    ``on_partial`` hears every text that differs from the one before, and after how much audio. A clip may be of any
    length.

    Raises:
        UsageError: pieces of no length.
        AudioError: the clip is not audio; names the file.
        UnsupportedModelError: the model's features depend on the whole utterance.
    """
    waveform = read_waveform(clip.path, sample_rate=transcriber.bundle.meta.audio_front_end().sample_rate)
    rate, samples = waveform.sample_rate, waveform.samples
    step = _piece_samples(transcriber.chunk_seconds if chunk_seconds is None else chunk_seconds, rate)
    stream, partials, text = transcriber.stream(), [], ""
    for start in range(0, len(samples), step):
        (live,) = stream.push(samples[None, start : start + step])
        if live.text != text:
            text = live.text
            partials.append(PartialText(min(start + step, len(samples)) / rate, text))
            on_partial(partials[-1])
    (live,) = stream.finish()
    return StreamedText(ClipText(clip, waveform.seconds, live.text, live.hypothesis.token_ids), tuple(partials))


def compare_models(
    reference: Path,
    candidate: Path,
    audio: Path,
    *,
    decoder: Decoder | None,
    threads: int | None,
    on_progress: Progress,
) -> Comparison:
    """Judge one model by another on the clips of ``audio``, within the tolerances of the candidate.

    Raises:
        UsageError: two different checkpoints, or a model without this decoder.
        BundleError, AudioError: something cannot be read.
    """
    with _opened([reference, candidate], decoder, threads) as (systems, limits):
        first, second = (system.transcriber.bundle.meta for system in systems)
        if first.checkpoint_sha256 != second.checkpoint_sha256:
            raise UsageError(
                "the two models were not made from the same checkpoint",
                where=candidate,
                found=f"{second.name} ({second.checkpoint_sha256[:16]}), {first.name} ({first.checkpoint_sha256[:16]})",
                fix="compare models of one checkpoint",
            )
        tolerance = tolerance_for(second.family, second.precision, decoder=systems[1].transcriber.decoder)
        utterances = _utterances(audio, systems)
        frames = [len(utterance.waveform.samples) // second.audio_front_end().hop_samples for utterance in utterances]
        takes_one = any(meta.fixed_feature_frames is not None for meta in (first, second))
        rows = 1 if takes_one else limits[1].largest_batch(frames, at_most=_BATCH_SIZE)
        return compare(
            systems[0],
            systems[1],
            utterances,
            tolerance=tolerance,
            batch_size=rows if rows > 1 else None,
            on_progress=on_progress,
        )


def bench_models(
    models: Sequence[Path],
    audio: Path,
    *,
    plan: LatencyPlan,
    decoder: Decoder | None,
    on_progress: Progress,
) -> Latency:
    """Time ``models`` on the clips of ``audio``, interleaved; the first is the baseline of the ratios.

    Raises:
        UsageError: a model without this decoder, or one model twice.
        BundleError, AudioError: something cannot be read.
    """
    twice = sorted({str(model) for model in models if models.count(model) > 1})
    if twice:
        raise UsageError("one model was given twice", found=", ".join(twice), fix="give each model once")
    with _opened(models, decoder, plan.threads) as (systems, _):
        gpu = next((gpu.name for gpu in can_run().gpus), None)
        peaks = {
            system.name: hardware_peak(
                gpu if "TensorRT" in system.name else None, system.transcriber.bundle.meta.precision
            )
            for system in systems
        }
        return measure(systems, _utterances(audio, systems), plan=plan, peaks=peaks, on_progress=on_progress)


def _is_bundle(model: Path) -> bool:
    """A path that is neither a bundle nor a run folder is taken for a bundle, and refused as one."""
    return (model / META_NAME).exists() or not (model / BUNDLE).is_dir()


def _piece_samples(seconds: float, rate: int) -> int:
    if not 0 < seconds < math.inf:
        raise UsageError(
            "a stream is pushed in pieces of some length",
            where="--chunk-seconds",
            found=f"{seconds:g} s",
            fix="give a number of seconds above 0, or leave it out",
        )
    return max(1, round(seconds * rate))


@contextmanager
def _opened_model(model: Path, decoder: Decoder | None, threads: int | None) -> Iterator[_OpenedModel]:
    with ExitStack() as stack:
        parts = _Parts(proven_bundle(model)) if _is_bundle(model) else _from_run_folder(model, decoder, stack)
        transcriber = Transcriber(parts.bundle, decoder=decoder, runners=parts.runners, threads=threads)
        yield _OpenedModel(stack.enter_context(transcriber), parts.limits)


@contextmanager
def _opened(
    models: Sequence[Path], decoder: Decoder | None, threads: int | None
) -> Iterator[tuple[tuple[System, ...], tuple[EngineLimits, ...]]]:
    with ExitStack() as stack:
        opened = [stack.enter_context(_opened_model(model, decoder, threads)) for model in models]
        systems = [System.named_by_precision(one.transcriber) for one in opened]
        yield _named_apart(systems, models), tuple(one.limits for one in opened)


def _named_apart(systems: Sequence[System], models: Sequence[Path]) -> tuple[System, ...]:
    """With the folder's name in front where precision and backend do not tell the systems apart."""
    names = [system.name for system in systems]
    if len(set(names)) == len(names):
        return tuple(systems)
    pairs = zip(systems, models, strict=True)
    return tuple(System(f"{model}: {system.name}", system.transcriber) for system, model in pairs)


def _utterances(audio: Path, systems: Sequence[System]) -> tuple[Utterance, ...]:
    """The clips of ``audio``, none of which is too long or too short for a system."""
    rate = systems[0].transcriber.bundle.meta.audio_front_end().sample_rate
    utterances = read_utterances(read_clips(audio), sample_rate=rate)
    for utterance in utterances:
        for system in systems:
            _refuse_length(utterance.clip, utterance.waveform, system.transcriber)
    return utterances


def _refuse_length(clip: Clip, waveform: Waveform, transcriber: Transcriber) -> None:
    """The transcriber refuses it too, but cannot name the file."""
    geometry = transcriber.bundle.meta.geometry
    if not 1 <= len(waveform.samples) // geometry.hop_samples <= geometry.max_feature_frames:
        shortest, longest = map(geometry.seconds_from_feature_frames, (1, geometry.max_feature_frames))
        raise AudioError(
            "the clip is too short or too long for the model",
            where=clip.path,
            found=f"{waveform.seconds:.4f} s, the model takes {shortest:g} to {longest:g} s",
            fix="leave it out, or cut it into pieces at pauses",
        )


def _from_run_folder(folder: Path, decoder: Decoder | None, stack: ExitStack) -> _Parts:
    """The FP16 bundle with runners of its verified engines; where none can run here, the FP32 bundle and no runners."""
    reference = proven_bundle(folder / BUNDLE)
    gpus = frozenset(gpu.name for gpu in can_run().gpus)
    if not gpus:
        return _Parts(reference)
    typed = proven_bundle(folder / BUNDLE_FP16)
    verified = _verified_engines(folder, typed, gpus) if is_cast_of(reference.meta, typed.meta) else {}
    wanted = components_of(decoder or decoders_of(reference.meta)[0])
    engines = {name: engine for name, engine in verified.items() if name in wanted}
    runners: dict[str, Runner] = {}
    try:
        for name, engine in engines.items():
            runner = TensorRTRunner.open(engine)
            stack.callback(runner.close)
            runners[name] = runner
    except (EngineError, MachineError):
        # Verified once, but built by another version of the library than the one here.
        return _Parts(reference)
    if not runners:
        return _Parts(reference)
    return _Parts(typed, runners, EngineLimits.of(engine.manifest for engine in engines.values()))


def _verified_engines(folder: Path, bundle: Bundle, gpus: Container[str]) -> dict[str, StoredEngine]:
    """By component the newest engine of ``bundle`` that passed on one of ``gpus``."""
    newest: dict[str, StoredEngine] = {}
    for engine in sorted(EngineStore(folder / ENGINES).entries(), key=lambda engine: engine.manifest.created):
        verification = engine.manifest.verification
        if verification.state == "verified" and verification.gpu in gpus and _was_built_from(engine, bundle):
            newest[engine.manifest.component] = engine
    return newest


def _was_built_from(engine: StoredEngine, bundle: Bundle) -> bool:
    """The store keeps engines of other checkpoints too, if the folder was used for them before."""
    spec = bundle.meta.components.get(engine.manifest.component)
    files = {} if spec is None else {name: bundle.meta.files[name].sha256 for name in spec.files}
    return engine.manifest.graph_files == files

"""Wall-clock time of each stage, several systems side by side in one run.

    for every round:  for every system, the first one rotating:
        waveforms --features--> t1 --encode--> t2 --decode--> t3            whole = t1 + t2 + t3
    RTFx = audio seconds / compute seconds;  ratio = whole time over the baseline's in the same round

A slow moment of the machine hits all systems alike, so ratios hold where absolute times do not. Nothing is printed,
logged or collected inside of the timed code; reading audio and turning tokens into text are not in it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from nemotrt.bench.results import (
    CandidateLatency,
    EncoderWork,
    Latency,
    Percentiles,
    Ratio,
    Stage,
    StageLatency,
)
from nemotrt.bench.roofline import (
    HardwarePeak,
    encoder_layer_flops,
    floor_seconds,
    subsampling_channels,
    subsampling_flops,
)
from nemotrt.bench.system import Progress, System, silent
from nemotrt.bench.utterance import Utterance, padding_fraction
from nemotrt.engines.audio import Waveform
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import UsageError

STAGES: tuple[Stage, ...] = ("preprocessor", "encoder", "decode")


@dataclass(frozen=True)
class LatencyPlan:
    """How often and at which batch sizes. ``threads`` records what the systems' runners were opened with.

    Raises:
        UsageError: fewer than one run or row, or a negative warm-up.
    """

    batch_sizes: tuple[int, ...]
    runs: int
    warmup: int
    threads: int | None

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1 or self.runs < 1 or self.warmup < 0:
            raise UsageError(
                "this latency plan measures nothing",
                found=f"batch sizes {self.batch_sizes}, {self.runs} runs, {self.warmup} warm-up runs",
                fix="give batch sizes and runs of at least 1",
            )


def measure(
    systems: Sequence[System],
    utterances: Sequence[Utterance],
    *,
    plan: LatencyPlan,
    peaks: Mapping[str, HardwarePeak],
    on_progress: Progress = silent,
) -> Latency:
    """Time every system at every batch size, interleaved; the first system is the baseline of the ratios.

    A batch is made of the utterances nearest to the median length, the same for all systems. ``peaks`` has the
    hardware's peak by system name.

    Raises:
        UsageError: no system, no utterances, or two systems of one name.
        AudioError, ProfileError: a batch lies outside of what the model or an engine takes.
    """
    names = [system.name for system in systems]
    if not systems or not utterances or len(set(names)) != len(names):
        raise UsageError(
            "systems must be named apart, and need audio to be timed on",
            found=f"systems: {', '.join(names) or 'none'}; {len(utterances)} clips",
            fix="give at least one system and one clip",
        )
    rows: list[CandidateLatency] = []
    for number, batch_size in enumerate(plan.batch_sizes):
        on_progress(f"batch size {batch_size}", number / len(plan.batch_sizes))
        batch = _median_batch(utterances, batch_size)
        times = _interleaved(systems, [utterance.waveform for utterance in batch], plan)
        rows.extend(_row(system, batch, times, names[0], peaks[system.name]) for system in systems)
    on_progress("done", 1.0)
    return Latency(
        warmup=plan.warmup,
        runs=plan.runs,
        order="interleaved round-robin, first candidate rotates",
        threads=plan.threads,
        rows=tuple(rows),
    )


def _median_batch(utterances: Sequence[Utterance], batch_size: int) -> tuple[Utterance, ...]:
    """``batch_size`` utterances around the median length; repeated in order where there are fewer."""
    by_length = sorted(utterances, key=lambda u: len(u.waveform.samples))
    start = max(0, (len(by_length) - batch_size) // 2)
    middle = by_length[start : start + batch_size]
    return tuple(middle[row % len(middle)] for row in range(batch_size))


def _interleaved(
    systems: Sequence[System], waveforms: Sequence[Waveform], plan: LatencyPlan
) -> Mapping[str, NDArray[np.float64]]:
    """Seconds by system name, ``[runs, stages]``."""
    for system in systems:
        for _ in range(plan.warmup):
            _time_stages(system.transcriber, waveforms)
    times = {system.name: np.empty((plan.runs, len(STAGES))) for system in systems}
    with collector_paused():
        for run in range(plan.runs):
            first = run % len(systems)
            for system in (*systems[first:], *systems[:first]):
                times[system.name][run] = _time_stages(system.transcriber, waveforms)
    return times


def _time_stages(transcriber: Transcriber, waveforms: Sequence[Waveform]) -> tuple[float, ...]:
    start = perf_counter_ns()
    features = transcriber.features(waveforms)
    has_features = perf_counter_ns()
    encoded = transcriber.encode(*features)
    has_encoded = perf_counter_ns()
    transcriber.decode(*encoded)
    end = perf_counter_ns()
    return ((has_features - start) / 1e9, (has_encoded - has_features) / 1e9, (end - has_encoded) / 1e9)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection in the middle of a run; collected before, restored after."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _row(
    system: System,
    batch: Sequence[Utterance],
    times: Mapping[str, NDArray[np.float64]],
    baseline: str,
    peak: HardwarePeak,
) -> CandidateLatency:
    own = times[system.name]
    whole = own.sum(axis=1)
    audio_seconds = sum(utterance.waveform.seconds for utterance in batch)
    samples = [len(utterance.waveform.samples) for utterance in batch]
    stages = [_stage(name, own[:, column]) for column, name in enumerate(STAGES)]
    encoder_seconds = float(np.median(own[:, STAGES.index("encoder")]))
    return CandidateLatency(
        candidate=system.name,
        batch_size=len(batch),
        audio_seconds=audio_seconds,
        padding=padding_fraction(sum(samples), max(samples) * len(samples)),
        stages=(*stages, _stage("whole", whole)),
        rtfx=audio_seconds / float(np.median(whole)),
        ratio=None if system.name == baseline else _ratio(baseline, whole / times[baseline].sum(axis=1)),
        encoder_work=_encoder_work(system.transcriber, samples, audio_seconds, encoder_seconds, peak),
    )


def _stage(name: Stage, seconds: NDArray[np.float64]) -> StageLatency:
    p5, p50, p95, p99 = (float(value) for value in np.percentile(seconds, (5, 50, 95, 99)))
    return StageLatency(stage=name, seconds=Percentiles(p5=p5, p50=p50, p95=p95, p99=p99))


def _ratio(baseline: str, ratios: NDArray[np.float64]) -> Ratio:
    p5, p50, p95 = (float(value) for value in np.percentile(ratios, (5, 50, 95)))
    return Ratio(baseline=baseline, p5=p5, p50=p50, p95=p95)


def _encoder_work(
    transcriber: Transcriber,
    samples: Sequence[int],
    audio_seconds: float,
    seconds: float,
    peak: HardwarePeak,
) -> EncoderWork:
    """By formula from the contract, padding included: the batch is computed at its longest row."""
    bundle, spec = transcriber.bundle, transcriber.bundle.meta.encoder
    component = "ctc" if transcriber.decoder == "ctc" else "encoder"
    feature_frames = max(samples) // bundle.meta.audio_front_end().hop_samples
    frames = spec.encoder_frames_from_feature_frames(feature_frames)
    flops = encoder_layer_flops(spec, encoder_frames=frames, batch=len(samples))
    channels = subsampling_channels(bundle.graph_path(component))
    if channels is not None:
        flops += subsampling_flops(spec, channels=channels, feature_frames=feature_frames, batch=len(samples))
    files = bundle.component(component).files
    weight_bytes = sum(bundle.meta.files[name].size_bytes for name in files)
    least = floor_seconds(flops, weight_bytes, peak)
    achieved = flops / seconds
    return EncoderWork(
        flops=flops,
        flops_per_audio_second=flops / audio_seconds,
        achieved_flops_per_second=achieved,
        peak_flops_per_second=peak.flops_per_second,
        floor_seconds=least,
        share_of_floor=None if least is None else least / seconds,
        peak_reason=peak.reason,
        left_out="subsampling (its width is not in the graph)" if channels is None else None,
    )

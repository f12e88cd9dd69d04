"""Synthetic results with everything a report can show: numbers are made up, nothing was measured."""

from __future__ import annotations

from datetime import UTC, datetime

from nemotrt.bench.results import (
    CandidateLatency,
    Check,
    ClipRow,
    Comparison,
    EncoderWork,
    EngineBuild,
    ErrorCount,
    FrameAgreement,
    GraphFile,
    Latency,
    Machine,
    Percentiles,
    Ratio,
    Results,
    RowAgreement,
    Skipped,
    StageLatency,
    WordChange,
)
from nemotrt.bench.tolerances import tolerance_for
from nemotrt.bench.transcripts import transcripts_from_comparisons
from nemotrt.bench.word_errors import align_words, character_errors, token_errors, word_errors

FP32, FP16 = "FP32, onnxruntime 1.31.1 CPU", "FP16, onnxruntime 1.31.1 CPU"
TEXTS = (
    ("turn on the light in the kitchen", "turn on the light in the kitchen", "turn on the light in the kitchen"),
    ("play red music at five two", "play red music at five two", "play bread music at five"),
    ("open the garden window", "open the garden windows", "open the garden windows"),
)


def clip_row(number: int, truth: str, reference: str, candidate: str, *, frames: bool = True) -> ClipRow:
    seconds = 1.5 + number
    cosines = tuple(1.0 - 10.0 ** (-7 + (bin_ * (number + 1)) % 5) for bin_ in range(30))
    changes = [s for s in align_words(reference, candidate) if s.kind != "equal"]
    return ClipRow(
        clip=f"0000{number}",
        seconds=seconds,
        truth=truth,
        reference_text=reference,
        candidate_text=candidate,
        reference_length=40 if frames else None,
        candidate_length=40,
        tokens=token_errors(tuple(map(len, reference.split())), tuple(map(len, candidate.split()))),
        finite=True,
        frames=FrameAgreement(
            frames=40, min_cosine=min(cosines), p1_cosine=0.9999, median_cosine=0.99999, max_abs=0.02, profile=cosines
        )
        if frames
        else None,
        alone_and_batched=RowAgreement(
            batch_size=4,
            row=number % 4,
            padding=0.2,
            same_length=True,
            tokens=ErrorCount(errors=0, length=7),
            min_cosine=0.999999,
            max_abs=1e-3,
        )
        if frames
        else None,
        changes=tuple(WordChange(kind=s.kind, reference=s.reference, candidate=s.hypothesis) for s in changes),
    )


def comparison(
    reference: str,
    candidate: str,
    *,
    texts: tuple[tuple[str, str, str], ...] = TEXTS,
    reasons: tuple[str, ...] = (),
    frames: bool = True,
) -> Comparison:
    rows = tuple(clip_row(number, *text, frames=frames) for number, text in enumerate(texts))
    truth_and = [
        [(row.truth or "", side) for row, side in zip(rows, sides, strict=True)]
        for sides in (
            [row.reference_text for row in rows],
            [row.candidate_text for row in rows],
        )
    ]
    between = [(row.reference_text, row.candidate_text) for row in rows]
    return Comparison(
        verdict="fail" if reasons else "pass",
        reasons=reasons,
        reference=reference,
        candidate=candidate,
        decoder="tdt",
        tolerance=tolerance_for("fastconformer-tdt", "fp16", decoder="tdt") if frames else None,
        checks=(
            Check(name="lengths", state="pass" if frames else "not checked", finding="encoded lengths equal"),
            Check(name="tokens", state="fail" if reasons else "pass", finding=reasons[0] if reasons else "equal"),
        ),
        reference_wer=word_errors(truth_and[0]),
        candidate_wer=word_errors(truth_and[1]),
        between_wer=word_errors(between),
        reference_cer=character_errors(truth_and[0]),
        candidate_cer=character_errors(truth_and[1]),
        between_cer=character_errors(between),
        clips=rows,
        left_out=(),
    )


def percentiles(median: float) -> Percentiles:
    return Percentiles(p5=median * 0.9, p50=median, p95=median * 1.3, p99=median * 1.6)


def candidate_latency(name: str, batch_size: int, *, speed: float, baseline: str | None) -> CandidateLatency:
    stages = {"preprocessor": 0.001, "encoder": 0.006, "decode": 0.004}
    seconds = {stage: median * batch_size**0.8 / speed for stage, median in stages.items()}
    whole = sum(seconds.values())
    flops = 9e8 * batch_size
    return CandidateLatency(
        candidate=name,
        batch_size=batch_size,
        audio_seconds=3.1 * batch_size,
        padding=0.0 if batch_size == 1 else 0.08,
        stages=(
            *(StageLatency(stage=s, seconds=percentiles(v)) for s, v in seconds.items()),
            StageLatency(stage="whole", seconds=percentiles(whole)),
        ),
        rtfx=3.1 * batch_size / whole,
        ratio=Ratio(baseline=baseline, p5=0.9 / speed, p50=1 / speed, p95=1.1 / speed) if baseline else None,
        encoder_work=EncoderWork(
            flops=flops,
            flops_per_audio_second=flops / 3.1 / batch_size,
            achieved_flops_per_second=flops / seconds["encoder"],
            peak_flops_per_second=None,
            floor_seconds=None,
            share_of_floor=None,
            peak_reason="the peak of this CPU is not known: clock and cores are shared",
            left_out=None,
        ),
    )


def engine(component: str, precision: str, number: int) -> EngineBuild:
    return EngineBuild(
        component=component,
        precision=precision,
        runtime="tensorrt-rtx",
        runtime_version="1.7.1.116",
        profile="demo",
        targets="8.0, 8.6, 8.9, 12.0",
        layers=600 + number,
        size_bytes=4_300_000 + number * 1000,
        seconds=1.4,
        key=f"{number:x}".zfill(64),
        state="built, not verified",
        reason="this machine has no GPU to run it on",
        reused=number == 1,
    )


def sample_results(*, failing: bool = False) -> Results:
    same = tuple((truth, reference, reference) for truth, reference, _ in TEXTS)
    reasons = ("token ids equal on 2 of 3 clips, 2 of 17 tokens changed (11.76%), limit 1.00%",) if failing else ()
    comparisons = (
        comparison("NeMo (recorded)", FP32, texts=same, frames=False),
        comparison(FP32, FP16, texts=TEXTS if failing else same, reasons=reasons),
    )
    return Results(
        schema_version=1,
        created=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        model="parakeet-style-tdt",
        family="fastconformer-tdt",
        checkpoint="examples/demo/parakeet-style-tdt.nemo",
        checkpoint_sha256="ab" * 32,
        commit=None,
        machine=Machine(
            system="Linux 6.1",
            python="3.11.9",
            cpu="Example CPU @ 2.0 GHz",
            cores=2,
            memory_bytes=8_000_000_000,
            gpu=None,
            cuda=None,
            packages={"nemotrt": "0.1.0", "onnxruntime": "1.31.1", "numpy": "2.4.6"},
        ),
        transcripts=transcripts_from_comparisons(comparisons),
        comparisons=comparisons,
        latency=Latency(
            warmup=3,
            runs=20,
            order="interleaved round-robin, first candidate rotates",
            threads=2,
            rows=(
                candidate_latency(FP32, 1, speed=1.0, baseline=None),
                candidate_latency(FP16, 1, speed=0.7, baseline=FP32),
                candidate_latency(FP32, 4, speed=1.0, baseline=None),
                candidate_latency(FP16, 4, speed=0.8, baseline=FP32),
            ),
        ),
        graphs=tuple(
            GraphFile(
                component=name, precision=precision, nodes=200, parameters=parameters, size_bytes=parameters * width
            )
            for name, parameters in (("encoder", 2_100_000), ("predictor", 180_000), ("joint", 60_000))
            for precision, width in (("fp32", 4), ("fp16", 2))
        ),
        engines=tuple(
            engine(component, precision, number)
            for number, (component, precision) in enumerate(
                (c, p) for p in ("fp32", "fp16") for c in ("encoder", "predictor", "joint")
            )
        ),
        skipped=(Skipped(what="engine verification", reason="no GPU: run the same command on a GPU host"),),
        commands=("nemotrt run examples/demo/parakeet-style-tdt.nemo -o out/", "nemotrt compare out/fp32 out/fp16"),
    )

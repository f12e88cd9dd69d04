"""``results.json``: everything the report shows, as one versioned document.

A number that is not known is ``null`` and has a reason beside it. Readers refuse another schema version and unknown
fields, so that a report never shows half of a file. Times are UTC, durations seconds, sizes bytes; rates are
fractions, not percent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from nemotrt.bench.record import Record, read_record
from nemotrt.bench.text_file import write_whole
from nemotrt.bench.tolerances import Tolerance

SCHEMA_VERSION = 1

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Figure = Annotated[float, Field(allow_inf_nan=False)]
Outcome = Literal["pass", "fail"]
CheckState = Literal["pass", "fail", "not checked"]
CheckName = Literal["decodes", "lengths", "finite", "frames", "rows", "tokens", "text"]
Stage = Literal["preprocessor", "encoder", "decode", "whole"]
EngineState = Literal["built, not verified", "verified", "failed"]


# --- the machine


class Gpu(Record):
    """The first GPU, as its driver names it."""

    name: str
    driver: str
    memory_bytes: Count | None


class Machine(Record):
    """``gpu`` is ``None`` where there is none; ``packages`` maps the installed ones of interest to versions."""

    system: str
    python: str
    cpu: str | None
    cores: Count
    memory_bytes: Count
    gpu: Gpu | None
    cuda: str | None
    packages: dict[str, str]


# --- comparison


class Check(Record):
    """One level of a comparison. ``finding`` is a sentence: what was measured, against which limit."""

    name: CheckName
    state: CheckState
    finding: str


class FrameAgreement(Record):
    """Frames of both sides, over the frames both have whose values are finite on both.

    ``profile`` is the cosine along the clip, in at most :data:`PROFILE_BINS` equal bins, each its worst frame;
    ``None`` marks a bin with a value that is not finite.
    """

    frames: Count
    min_cosine: Figure | None
    p1_cosine: Figure | None
    median_cosine: Figure | None
    max_abs: Figure | None
    profile: tuple[Figure | None, ...]


PROFILE_BINS = 160


class RowAgreement(Record):
    """One clip alone against the same clip as row ``row`` of a batch, ``padding`` (fraction) of which was padding."""

    batch_size: Count
    row: Count
    padding: Figure
    same_length: bool
    tokens: ErrorCount
    min_cosine: Figure | None
    max_abs: Figure | None


class WordChange(Record):
    """Words of the reference that became other words in the candidate."""

    kind: Literal["substitute", "insert", "delete"]
    reference: str
    candidate: str


class ErrorCount(Record):
    """Edits (substitutions, insertions, deletions) that make the candidate of the reference, and its length."""

    errors: Count
    length: Count

    @property
    def rate(self) -> float | None:
        """Errors per reference unit; ``None`` for an empty reference, where no rate exists."""
        return self.errors / self.length if self.length else None

    def within(self, limit: float) -> bool:
        """At most ``limit`` errors per reference unit. An empty reference allows no error."""
        return self.errors <= limit * self.length

    def __add__(self, other: ErrorCount) -> ErrorCount:
        return ErrorCount(errors=self.errors + other.errors, length=self.length + other.length)


class ClipRow(Record):
    """One clip. ``truth`` is the human transcript; lengths and frames are ``None`` where only tokens are known."""

    clip: str
    seconds: Seconds
    truth: str | None
    reference_text: str
    candidate_text: str
    reference_length: Count | None
    candidate_length: Count | None
    tokens: ErrorCount
    finite: bool
    frames: FrameAgreement | None
    alone_and_batched: RowAgreement | None
    changes: tuple[WordChange, ...]

    @property
    def differs(self) -> bool:
        """Other tokens, or other text from the same tokens."""
        return bool(self.tokens.errors) or self.reference_text != self.candidate_text


class Comparison(Record):
    """Candidate against reference on the same clips. ``reasons`` say why it failed; empty when it passed."""

    verdict: Outcome
    reasons: tuple[str, ...]
    reference: str
    candidate: str
    decoder: str
    tolerance: Tolerance | None
    checks: tuple[Check, ...]
    reference_wer: ErrorCount | None
    candidate_wer: ErrorCount | None
    between_wer: ErrorCount
    reference_cer: ErrorCount | None
    candidate_cer: ErrorCount | None
    between_cer: ErrorCount
    clips: tuple[ClipRow, ...]
    left_out: tuple[str, ...]

    @property
    def differing(self) -> tuple[ClipRow, ...]:
        """The clips whose tokens or text differ."""
        return tuple(row for row in self.clips if row.differs)


# --- latency


class Percentiles(Record):
    """Wall-clock seconds of single runs."""

    p5: Seconds
    p50: Seconds
    p95: Seconds
    p99: Seconds


class StageLatency(Record):
    """One stage of the pipeline; ``whole`` is the sum of the others, run by run."""

    stage: Stage
    seconds: Percentiles


class Ratio(Record):
    """A peer's time over the baseline's, run by run of the same round, whole pipeline. Below 1 is faster."""

    baseline: str
    p5: Figure
    p50: Figure
    p95: Figure


class EncoderWork(Record):
    """What the encoder computes for one batch, by formula, and what was reached at the median.

    ``floor_seconds`` (no run can be faster) and ``share_of_floor`` (floor over median; 1 is perfect) need the peak
    of the hardware: ``None`` where it is not known, and ``peak_reason`` says why.
    """

    flops: Figure
    flops_per_audio_second: Figure
    achieved_flops_per_second: Figure
    peak_flops_per_second: Figure | None
    floor_seconds: Figure | None
    share_of_floor: Figure | None
    peak_reason: str
    left_out: str | None


class CandidateLatency(Record):
    """One candidate at one batch size. ``rtfx`` is audio seconds over compute seconds at the median, whole pipeline."""

    candidate: str
    batch_size: Count
    audio_seconds: Seconds
    padding: Figure
    stages: tuple[StageLatency, ...]
    rtfx: Figure
    ratio: Ratio | None
    encoder_work: EncoderWork | None

    def stage(self, name: Stage) -> Percentiles | None:
        """Seconds of one stage; ``None`` where it was not timed."""
        return next((s.seconds for s in self.stages if s.stage == name), None)


class Latency(Record):
    """All candidates of one interleaved run. ``threads`` as given to the runtime; ``None``: the runtime chose."""

    warmup: Count
    runs: Count
    order: Literal["interleaved round-robin, first candidate rotates"]
    threads: int | None
    rows: Annotated[tuple[CandidateLatency, ...], Field(min_length=1)]


# --- what was made


class GraphFile(Record):
    """One ONNX graph of a bundle with its data file. ``nodes`` is ``None`` where it was not counted."""

    component: str
    precision: str
    nodes: Count | None
    parameters: Count
    size_bytes: Count


class EngineBuild(Record):
    """One plan in the engine store. ``reason`` says why the state is what it is."""

    component: str
    precision: str
    runtime: str
    runtime_version: str
    profile: str
    targets: str
    layers: Count
    size_bytes: Count
    seconds: Seconds
    key: str
    state: EngineState
    reason: str
    reused: bool


class Skipped(Record):
    """A part of the work that was left out, in the words the report shows."""

    what: str
    reason: str


class Output(Record):
    """What one system made of a clip."""

    system: str
    text: str


class Transcript(Record):
    """One clip and what each system made of it; ``truth`` is the human transcript."""

    clip: str
    seconds: Seconds
    truth: str | None
    outputs: tuple[Output, ...]


class Results(Record):
    """The whole of ``results.json``."""

    schema_version: Literal[1]
    created: AwareDatetime
    model: str
    family: str
    checkpoint: str
    checkpoint_sha256: str
    commit: str | None
    machine: Machine
    transcripts: tuple[Transcript, ...]
    comparisons: tuple[Comparison, ...]
    latency: Latency | None
    graphs: tuple[GraphFile, ...]
    engines: tuple[EngineBuild, ...]
    skipped: tuple[Skipped, ...]
    commands: tuple[str, ...]

    @property
    def verdict(self) -> Outcome:
        """``pass`` only if something was compared, everything compared passed and no engine failed."""
        compared = bool(self.comparisons) and all(c.verdict == "pass" for c in self.comparisons)
        return "pass" if compared and all(e.state != "failed" for e in self.engines) else "fail"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is ``fail``, one sentence each; empty when it is ``pass``."""
        if not self.comparisons:
            return ("Nothing was compared, so nothing is proven.",)
        compared = [f"{c.candidate} against {c.reference}: {r}" for c in self.comparisons for r in c.reasons]
        engines = [f"engine {e.component} ({e.precision}): {e.reason}" for e in self.engines if e.state == "failed"]
        return (*compared, *engines)


def write_results(results: Results, path: Path) -> Path:
    """Write the document and return ``path``. Raises as ``write_whole``."""
    return write_whole(results.model_dump_json(indent=1) + "\n", path)


def read_results(path: Path) -> Results:
    """Read a document of this schema version.

    Raises:
        InputError: no such file, not JSON, another schema version, or a field that is missing, unknown or malformed.
    """
    return read_record(Results, path, schema_version=SCHEMA_VERSION, again="make them with: nemotrt run")

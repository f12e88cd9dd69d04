"""Our graphs against NeMo's own export of the same checkpoints, as one versioned document.

Ratios are ours over NeMo's: below 1 is smaller, faster. What could not be measured is ``null``, and ``unmeasured``
says why. The goals stand in one table here, with their reasons, and are judged when the document is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from nemotrt.bench.record import Record, read_record
from nemotrt.bench.results import Count, Figure, Machine, Percentiles, Seconds, Skipped
from nemotrt.bench.text_file import write_whole

SCHEMA_VERSION = 1
DOCUMENT = "nemo export"
"""What tells this document from others."""


class ExportCost(Record):
    """One export in a process of its own. ``seconds`` is the whole process, imports included; ``files`` and
    ``size_bytes`` are all that it wrote."""

    seconds: Seconds
    peak_rss_bytes: Count | None
    files: Count
    size_bytes: Count


class EncoderGraph(Record):
    """The encoder (of a CTC model: the whole model) as ONNX, and what TensorRT makes of it.

    ``nodes`` counts nested graphs too. ``tensorrt_layers`` is the network after parsing, before any fusion;
    ``tensorrt_build_seconds`` the median of parsing and building for one optimization profile.
    """

    nodes: Count
    files: Count
    size_bytes: Count
    tensorrt_layers: Count | None
    tensorrt_build_seconds: Seconds | None
    tensorrt_plan_bytes: Count | None


class Exported(Record):
    """What one exporter made of a checkpoint; ``None`` where it failed."""

    cost: ExportCost | None
    encoder: EncoderGraph | None


class RatioPercentiles(Record):
    """Ours over NeMo's, round by round."""

    p5: Figure
    p50: Figure
    p95: Figure


class EncoderLatency(Record):
    """Both encoders on the same ragged batch in ONNX Runtime, taking turns.

    ``frames`` are feature frames of the longest row. ``max_abs`` is over the valid frames of every row.
    """

    batch_size: Count
    frames: Count
    nemotrt: Percentiles
    nemo: Percentiles
    ratio: RatioPercentiles
    max_abs: Figure
    lengths_equal: bool


class CheckpointExports(Record):
    """One checkpoint through both exporters."""

    checkpoint: str
    checkpoint_sha256: str
    family: str
    component: Literal["encoder", "ctc"]
    layers: Count
    d_model: Count
    parameters: Count
    nemotrt: Exported
    nemo: Exported
    latency: tuple[EncoderLatency, ...]
    unmeasured: tuple[Skipped, ...]

    @property
    def goals(self) -> tuple[GoalResult, ...]:
        """Every goal of the table, with what was found."""
        return tuple(_judged(goal, self) for goal in GOALS)


class NemoExportResults(Record):
    """The whole document. ``startup_seconds`` is what a process takes that only imports the exporter."""

    schema_version: Literal[1]
    document: Literal["nemo export"]
    created: AwareDatetime
    commit: str | None
    machine: Machine
    nemo_version: str
    nemo_exporter: str
    nemo_startup_seconds: Seconds
    nemotrt_startup_seconds: Seconds
    tensorrt: str | None
    profile: str
    builds: Count
    runs: Count
    warmup: Count
    threads: int | None
    order: Literal["interleaved round-robin, first graph rotates"]
    checkpoints: Annotated[tuple[CheckpointExports, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Goal:
    """A limit on one figure. ``figure`` is ``None`` where it was not measured."""

    name: str
    figure: Callable[[CheckpointExports], float | None]
    limit: Callable[[CheckpointExports], float]
    reason: str


@dataclass(frozen=True)
class GoalResult:
    """``met`` is ``None`` where the figure was not measured."""

    name: str
    figure: float | None
    limit: float
    met: bool | None
    reason: str


def _judged(goal: Goal, exports: CheckpointExports) -> GoalResult:
    figure, limit = goal.figure(exports), goal.limit(exports)
    return GoalResult(goal.name, figure, limit, None if figure is None else figure <= limit, goal.reason)


def ratio(ours: float | None, nemos: float | None) -> float | None:
    """Ours over NeMo's; ``None`` if either is unknown, or NeMo's is nothing."""
    return None if ours is None or not nemos else ours / nemos


def encoder_ratio(exports: CheckpointExports, figure: Callable[[EncoderGraph], float | None]) -> float | None:
    """The ratio of one figure of the two encoders."""
    ours, nemos = exports.nemotrt.encoder, exports.nemo.encoder
    return None if ours is None or nemos is None else ratio(figure(ours), figure(nemos))


def cost_ratio(exports: CheckpointExports, figure: Callable[[ExportCost], float | None]) -> float | None:
    """The ratio of one figure of the two exports."""
    ours, nemos = exports.nemotrt.cost, exports.nemo.cost
    return None if ours is None or nemos is None else ratio(figure(ours), figure(nemos))


def _nodes(exports: CheckpointExports) -> float | None:
    return None if exports.nemotrt.encoder is None else exports.nemotrt.encoder.nodes


def _peak(exports: CheckpointExports) -> float | None:
    return None if exports.nemotrt.cost is None else exports.nemotrt.cost.peak_rss_bytes


def _encoder_files(exports: CheckpointExports) -> float | None:
    return None if exports.nemotrt.encoder is None else exports.nemotrt.encoder.files


def _worst(values: Iterator[float]) -> float | None:
    return max(values, default=None)


GOALS: tuple[Goal, ...] = (
    Goal(
        "encoder nodes",
        _nodes,
        lambda e: 60 * e.layers + 80,
        "about 50 operators a layer; subsampling, masks and positions are there once",
    ),
    Goal("encoder files", _encoder_files, lambda _: 2, "one graph and one data file: a folder that can be moved"),
    Goal(
        "TensorRT layers, ratio",
        lambda e: encoder_ratio(e, lambda g: g.tensorrt_layers),
        lambda _: 0.45,
        "layers are what a builder works on; a prototype reached 0.43 on 17 layers",
    ),
    Goal(
        "TensorRT build seconds, ratio",
        lambda e: encoder_ratio(e, lambda g: g.tensorrt_build_seconds),
        lambda _: 0.5,
        "a prototype reached 0.45 to 0.5",
    ),
    Goal(
        "export seconds, ratio",
        lambda e: cost_ratio(e, lambda c: c.seconds),
        lambda _: 1 / 3,
        "weights are copied, nothing is traced: 15 of 46 seconds are in reach for 0.6 billion parameters",
    ),
    Goal(
        "export peak memory in bytes", _peak, lambda _: 1e9, "weights pass one at a time, so that any laptop can export"
    ),
    Goal(
        "ONNX Runtime seconds, worst ratio",
        lambda e: _worst(row.ratio.p50 for row in e.latency),
        lambda _: 1.0,
        "never slower than what people have today",
    ),
    Goal(
        "largest difference on valid frames",
        lambda e: _worst(row.max_abs for row in e.latency),
        lambda _: 1e-5,
        "the order of FP32 sums, on layer-normalised frames",
    ),
    Goal(
        "batches with other lengths",
        lambda e: float(sum(not row.lengths_equal for row in e.latency)) if e.latency else None,
        lambda _: 0,
        "lengths are integers",
    ),
)


def write_nemo_export_results(results: NemoExportResults, path: Path) -> Path:
    """Write the document and return ``path``. Raises as ``write_whole``."""
    return write_whole(results.model_dump_json(indent=1) + "\n", path)


def read_nemo_export_results(path: Path) -> NemoExportResults:
    """Read a document of this schema version.

    Raises:
        InputError: no such file, not JSON, another schema version, or a field that is missing, unknown or malformed.
    """
    return read_record(
        NemoExportResults, path, schema_version=SCHEMA_VERSION, again="make them with: nemotrt bench-export"
    )

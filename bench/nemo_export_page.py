"""The comparison with NeMo's export as tables: for the terminal, and as one page that needs nothing else.

NemoExportResults --> figures side by side, latency, goals --> templates/nemo_export.html.j2 --> page.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from nemotrt.bench import quantities
from nemotrt.bench.nemo_export_results import (
    CheckpointExports,
    EncoderGraph,
    EncoderLatency,
    ExportCost,
    Exported,
    GoalResult,
    NemoExportResults,
    ratio,
)
from nemotrt.bench.page_template import render_page
from nemotrt.bench.plots import Segment, strip
from nemotrt.bench.text_file import write_whole

_MARK_WIDTH = 0.004
_TEMPLATE = "nemo_export.html.j2"


@dataclass(frozen=True)
class FigureRow:
    """One figure of both exports, as text; ``ratio`` is ours over NeMo's."""

    name: str
    nemo: str
    nemotrt: str
    ratio: str


@dataclass(frozen=True)
class LatencyRow:
    """One shape: medians, the ratio with p5 and p95, the largest difference; ``bar`` shows the ratio."""

    shape: str
    nemo: str
    nemotrt: str
    ratio: str
    difference: str
    bar: Markup


@dataclass(frozen=True)
class GoalRow:
    """A goal with what was found, as text; ``state`` is ``pass``, ``fail`` or ``not measured``."""

    name: str
    found: str
    limit: str
    state: str
    reason: str


def write_nemo_export_page(results: NemoExportResults, path: Path) -> Path:
    """Write the page whole or not at all, and return ``path``. Raises as ``write_whole``."""
    return write_whole(render_nemo_export_page(results), path)


def render_nemo_export_page(results: NemoExportResults) -> str:
    """The page as a string."""
    tables = [(c, figure_rows(c), latency_rows(c), goal_rows(c)) for c in results.checkpoints]
    return render_page(
        _TEMPLATE,
        filters={"duration": quantities.duration, "size": quantities.size, "number": quantities.whole},
        results=results,
        tables=tables,
        summary=summary_sentence(results),
        verdict=verdict(results),
    )


def verdict(results: NemoExportResults) -> str:
    """``fail`` if a goal was missed on any checkpoint, else ``pass``; what was not measured decides nothing."""
    return "fail" if any(goal.met is False for c in results.checkpoints for goal in c.goals) else "pass"


def summary_sentence(results: NemoExportResults) -> str:
    """How many goals were met, and which were not."""
    judged = [(c, goal) for c in results.checkpoints for goal in c.goals if goal.met is not None]
    missed = [f"{c.checkpoint}: {goal.name}" for c, goal in judged if not goal.met]
    open_goals = sum(goal.met is None for c in results.checkpoints for goal in c.goals)
    parts = [f"{len(judged) - len(missed)} of {len(judged)} goals met"]
    if missed:
        parts.append(f"missed: {', '.join(missed)}")
    if open_goals:
        parts.append(f"{open_goals} not measured")
    return f"{'; '.join(parts)}."


def figure_rows(exports: CheckpointExports) -> tuple[FigureRow, ...]:
    """What both exports cost, and what their encoders are made of."""

    def cost(name: str, figure: Callable[[ExportCost], float | None], text: Callable[..., str]) -> FigureRow:
        return _row(name, exports, lambda side: None if side.cost is None else figure(side.cost), text)

    def graph(name: str, figure: Callable[[EncoderGraph], float | None], text: Callable[..., str]) -> FigureRow:
        return _row(name, exports, lambda side: None if side.encoder is None else figure(side.encoder), text)

    return (
        cost("export, whole process", lambda c: c.seconds, quantities.duration),
        cost("peak memory of the export", lambda c: c.peak_rss_bytes, quantities.size),
        cost("files written, all components", lambda c: c.files, quantities.whole),
        cost("bytes written, all components", lambda c: c.size_bytes, quantities.size),
        graph(f"{exports.component}: nodes", lambda g: g.nodes, quantities.whole),
        graph(f"{exports.component}: files", lambda g: g.files, quantities.whole),
        graph(f"{exports.component}: bytes", lambda g: g.size_bytes, quantities.size),
        graph("TensorRT layers", lambda g: g.tensorrt_layers, quantities.whole),
        graph("TensorRT build", lambda g: g.tensorrt_build_seconds, quantities.duration),
        graph("TensorRT plan", lambda g: g.tensorrt_plan_bytes, quantities.size),
    )


def latency_rows(exports: CheckpointExports) -> tuple[LatencyRow, ...]:
    """ONNX Runtime, one row a shape; the bars have one scale, and a mark where NeMo's time is."""
    scale = max((1.0, *(row.ratio.p95 for row in exports.latency)))
    return tuple(_latency_row(row, scale) for row in exports.latency)


def goal_rows(exports: CheckpointExports) -> tuple[GoalRow, ...]:
    """The goals, judged."""
    return tuple(_goal_row(goal) for goal in exports.goals)


def _row(
    name: str, exports: CheckpointExports, figure: Callable[[Exported], float | None], text: Callable[..., str]
) -> FigureRow:
    ours, nemos = figure(exports.nemotrt), figure(exports.nemo)
    return FigureRow(name, text(nemos), text(ours), quantities.whole(ratio(ours, nemos)))


def _latency_row(row: EncoderLatency, scale: float) -> LatencyRow:
    r = row.ratio
    lengths = "" if row.lengths_equal else ", other lengths"
    mark = 1 / scale
    bar = strip(
        [
            Segment(0.0, r.p50 / scale, "bar", f"{r.p50:.2f} of NeMo's time"),
            Segment(mark - _MARK_WIDTH, mark, "over", "NeMo's time"),
        ],
        label=f"{row.batch_size} x {row.frames}: {r.p50:.2f} of NeMo's time",
        whisker=(r.p5 / scale, r.p95 / scale),
    )
    return LatencyRow(
        shape=f"{row.batch_size} x {row.frames}",
        nemo=quantities.duration(row.nemo.p50),
        nemotrt=quantities.duration(row.nemotrt.p50),
        ratio=f"{r.p50:.2f} ({r.p5:.2f} to {r.p95:.2f})",
        difference=f"{quantities.scientific(row.max_abs)}{lengths}",
        bar=bar,
    )


def _goal_row(goal: GoalResult) -> GoalRow:
    state = {True: "pass", False: "fail", None: "not measured"}[goal.met]
    return GoalRow(goal.name, _figure(goal.figure), _figure(goal.limit), state, goal.reason)


def _figure(value: float | None) -> str:
    return quantities.scientific(value) if value and value < 1e-3 else quantities.whole(value)

"""Plots as strips: one inline SVG per bar or per clip, without text, coloured by the report's style sheet.

A strip fills the width it is given, so labels beside it stay readable on a phone and colours follow light and dark.
Positions are fractions of the strip, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Svg

from markupsafe import Markup

from nemotrt.bench import quantities
from nemotrt.bench.results import CandidateLatency, ClipRow, GraphFile, Latency
from nemotrt.bench.tolerances import Tolerance

_WIDTH, _HEIGHT = 1000.0, 20.0

COSINE_STEPS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
"""Upper bounds of ``1 - cosine`` of the heat map's colours; the last colour goes on to the limit."""


@dataclass(frozen=True)
class Segment:
    """A rectangle of a strip. ``style`` is a class of the style sheet, ``title`` shows on hover."""

    start: float
    end: float
    style: str
    title: str


@dataclass(frozen=True)
class Bar:
    """A strip with its label and the value to print beside it."""

    label: str
    value: str
    strip: Markup


@dataclass(frozen=True)
class BarGroup:
    """Bars that share a scale and a heading."""

    heading: str
    bars: tuple[Bar, ...]


def strip(segments: Sequence[Segment], *, label: str, whisker: tuple[float, float] | None = None) -> Markup:
    """The SVG element; ``label`` is read by screen readers. Everything is escaped."""
    root = Svg.Element(
        "svg",
        {
            "viewBox": f"0 0 {_WIDTH:g} {_HEIGHT:g}",
            "preserveAspectRatio": "none",
            "role": "img",
            "class": "strip",
            "aria-label": label,
        },
    )
    for segment in segments:
        box = _rectangle(root, segment.start, segment.end, y=0, height=_HEIGHT, style=segment.style)
        Svg.SubElement(box, "title").text = segment.title
    if whisker is not None:
        _rectangle(root, *whisker, y=_HEIGHT / 2 - 1, height=2, style="whisker")
        for end in whisker:
            _rectangle(root, end - 0.001, end + 0.001, y=_HEIGHT / 4, height=_HEIGHT / 2, style="whisker")
    # ElementTree escapes text and attributes, which is what Markup promises.
    return Markup(Svg.tostring(root, encoding="unicode"))


def cosine_bars(clips: Sequence[ClipRow], tolerance: Tolerance) -> tuple[Bar, ...]:
    """One strip a clip, drawn to the scale of the longest: how far each stretch is from the reference."""
    longest = max((row.seconds for row in clips), default=0.0)
    return tuple(
        Bar(row.clip, quantities.cosine(row.frames.min_cosine), _cosine_strip(row, longest, tolerance))
        for row in clips
        if row.frames is not None
    )


def latency_groups(latency: Latency) -> tuple[BarGroup, ...]:
    """Stacked stage medians per batch size, one bar a system; the whisker is p5 to p95 of the whole."""
    return tuple(
        BarGroup(f"Batch of {batch_size}", _latency_bars(rows)) for batch_size, rows in _by_batch_size(latency)
    )


def rtfx_groups(latency: Latency) -> tuple[BarGroup, ...]:
    """RTFx per batch size on one common scale, so that batch sizes compare."""
    best = max(row.rtfx for row in latency.rows)
    return tuple(
        BarGroup(
            f"Batch of {batch_size}",
            tuple(_single_bar(row.candidate, row.rtfx / best, quantities.whole(round(row.rtfx))) for row in rows),
        )
        for batch_size, rows in _by_batch_size(latency)
    )


def size_bars(graphs: Sequence[GraphFile]) -> tuple[Bar, ...]:
    """Graph and data file sizes, one bar a component and precision."""
    largest = max((graph.size_bytes for graph in graphs), default=0) or 1
    return tuple(
        _single_bar(
            f"{graph.component}, {graph.precision}", graph.size_bytes / largest, quantities.size(graph.size_bytes)
        )
        for graph in graphs
    )


def cosine_style(cosine: float | None, tolerance: Tolerance) -> str:
    """The heat map's class for a cosine: a step, ``over`` beyond the limit, ``nan`` where it is not finite."""
    if cosine is None:
        return "nan"
    if cosine < tolerance.min_cosine:
        return "over"
    distance = 1.0 - cosine
    step = next((i for i, bound in enumerate(COSINE_STEPS) if distance < bound), len(COSINE_STEPS))
    return f"heat{step}"


def _cosine_strip(row: ClipRow, longest: float, tolerance: Tolerance) -> Markup:
    profile = row.frames.profile if row.frames else ()
    scale = row.seconds / longest / max(1, len(profile)) if longest else 0.0
    segments: list[Segment] = []
    for start, end, style in _runs([cosine_style(value, tolerance) for value in profile]):
        values = [value for value in profile[start:end] if value is not None]
        worst = quantities.cosine(min(values)) if values else "not finite"
        bin_seconds = row.seconds / len(profile)
        title = f"{row.clip}, {start * bin_seconds:.2f} to {end * bin_seconds:.2f} s: lowest cosine {worst}"
        segments.append(Segment(start * scale, end * scale, style, title))
    lowest = quantities.cosine(row.frames.min_cosine if row.frames else None)
    return strip(segments, label=f"{row.clip}: lowest cosine {lowest}")


def _runs(styles: Sequence[str]) -> list[tuple[int, int, str]]:
    """Runs of equal styles as (start, end, style)."""
    runs: list[tuple[int, int, str]] = []
    for position, style in enumerate(styles):
        if runs and runs[-1][2] == style:
            runs[-1] = (runs[-1][0], position + 1, style)
        else:
            runs.append((position, position + 1, style))
    return runs


def _latency_bars(rows: Sequence[CandidateLatency]) -> tuple[Bar, ...]:
    longest = max([whole.p95 for row in rows if (whole := row.stage("whole"))], default=0.0) or 1.0
    return tuple(_latency_bar(row, longest) for row in rows)


def _latency_bar(row: CandidateLatency, longest: float) -> Bar:
    segments: list[Segment] = []
    position = 0.0
    for stage in row.stages:
        if stage.stage == "whole":
            continue
        end = min(1.0, position + stage.seconds.p50 / longest)
        title = f"{stage.stage}: median {quantities.duration(stage.seconds.p50)}"
        segments.append(Segment(position, end, f"stage-{stage.stage}", title))
        position = end
    whole = row.stage("whole")
    whisker = (whole.p5 / longest, whole.p95 / longest) if whole else None
    value = quantities.duration(whole.p50 if whole else None)
    return Bar(row.candidate, value, strip(segments, label=f"{row.candidate}: {value}", whisker=whisker))


def _single_bar(label: str, fraction: float, value: str) -> Bar:
    # A bar too short to see still shows that it is there.
    visible = max(fraction, 0.003) if fraction > 0 else 0.0
    return Bar(label, value, strip([Segment(0.0, visible, "bar", f"{label}: {value}")], label=f"{label}: {value}"))


def _by_batch_size(latency: Latency) -> list[tuple[int, list[CandidateLatency]]]:
    sizes = dict.fromkeys(row.batch_size for row in latency.rows)
    return [(size, [row for row in latency.rows if row.batch_size == size]) for size in sizes]


def _rectangle(root: Svg.Element, start: float, end: float, *, y: float, height: float, style: str) -> Svg.Element:
    left, right = (min(1.0, max(0.0, x)) * _WIDTH for x in (start, end))
    if not (math.isfinite(left) and math.isfinite(right)):
        raise ValueError(f"a strip cannot be drawn from {start} to {end}")
    return Svg.SubElement(
        root,
        "rect",
        {"x": f"{left:.2f}", "y": f"{y:g}", "width": f"{right - left:.2f}", "height": f"{height:g}", "class": style},
    )

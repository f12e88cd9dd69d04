"""``report.html``: the results as one page that needs nothing else.

    Results --> view values (tables, strips, marked words) --> templates/report.html.j2 + report.css --> report.html

The page makes no request (its content security policy forbids them), follows light and dark, and fits a phone: wide
tables scroll inside of their own box. Everything that comes from files is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotrt.bench import plots, quantities
from nemotrt.bench.page_template import Filters, render_page
from nemotrt.bench.results import Comparison, EngineBuild, Results, Transcript
from nemotrt.bench.text_file import write_whole
from nemotrt.bench.transcripts import word_errors_by_system
from nemotrt.bench.word_errors import Span, align_words

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class TextVariant:
    """One text and the systems that wrote it, aligned with the truth (or with the first text, where none is known)."""

    systems: tuple[str, ...]
    text: str
    spans: tuple[Span, ...]

    @property
    def is_exact(self) -> bool:
        """Word for word what it is aligned with."""
        return all(span.kind == "equal" for span in self.spans)


@dataclass(frozen=True)
class ClipTexts:
    """A clip's truth and its distinct texts; one variant means that all systems agree."""

    clip: str
    seconds: float
    truth: str | None
    variants: tuple[TextVariant, ...]


def write_report(results: Results, path: Path) -> Path:
    """Write the page and return ``path``. Raises as ``write_whole``."""
    return write_whole(render_report(results), path)


def render_report(results: Results) -> str:
    """The page as a string."""
    return render_page(
        _TEMPLATE,
        filters=_FILTERS,
        results=results,
        summary=summary_sentence(results),
        word_errors=word_errors_by_system(results.transcripts),
        clips=[clip_texts(transcript) for transcript in results.transcripts],
        heat_maps=[(c, plots.cosine_bars(c.clips, c.tolerance)) for c in results.comparisons if c.tolerance],
        latency_groups=plots.latency_groups(results.latency) if results.latency else (),
        rtfx_groups=plots.rtfx_groups(results.latency) if results.latency else (),
        size_bars=plots.size_bars(results.graphs),
        cosine_steps=plots.COSINE_STEPS,
        unverified=[engine for engine in results.engines if engine.state == "built, not verified"],
    )


def summary_sentence(results: Results) -> str:
    """What was compared and built, in one or two sentences, for the top of the page and the end of a run."""
    passed = sum(comparison.verdict == "pass" for comparison in results.comparisons)
    clips = len({row.clip for comparison in results.comparisons for row in comparison.clips})
    compared = f"{passed} of {_counted(len(results.comparisons), 'comparison')} passed on {_counted(clips, 'clip')}."
    return f"{compared} {_engine_sentence(results.engines)}".strip()


def clip_texts(transcript: Transcript) -> ClipTexts:
    """The distinct texts of a clip, each with the systems that wrote it."""
    systems: dict[str, list[str]] = {}
    for output in transcript.outputs:
        systems.setdefault(output.text, []).append(output.system)
    baseline = transcript.truth if transcript.truth is not None else next(iter(systems), "")
    return ClipTexts(
        clip=transcript.clip,
        seconds=transcript.seconds,
        truth=transcript.truth,
        variants=tuple(
            TextVariant(systems=tuple(names), text=text, spans=align_words(baseline, text))
            for text, names in systems.items()
        ),
    )


def lowest_cosine(comparison: Comparison) -> float | None:
    """The worst frame of all clips; ``None`` where no frames were compared."""
    values = [r.frames.min_cosine for r in comparison.clips if r.frames and r.frames.min_cosine is not None]
    return min(values, default=None)


def largest_difference(comparison: Comparison) -> float | None:
    """The largest absolute difference of all clips; ``None`` where no frames were compared."""
    values = [r.frames.max_abs for r in comparison.clips if r.frames and r.frames.max_abs is not None]
    return max(values, default=None)


def _engine_sentence(engines: Sequence[EngineBuild]) -> str:
    if not engines:
        return "No engine was built."
    verified = sum(engine.state == "verified" for engine in engines)
    unverified = sum(engine.state == "built, not verified" for engine in engines)
    failed = len(engines) - verified - unverified
    parts = [
        f"{number} {state}"
        for number, state in ((verified, "verified"), (unverified, "built, not verified"), (failed, "failed"))
        if number
    ]
    return f"{_counted(len(engines), 'engine')}: {', '.join(parts)}."


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_FILTERS: Filters = {
    "duration": quantities.duration,
    "size": quantities.size,
    "percent": quantities.percent,
    "error_rate": quantities.error_rate,
    "giga": quantities.giga,
    "number": quantities.whole,
    "cosine": quantities.cosine,
    "scientific": quantities.scientific,
    "lowest_cosine": lowest_cosine,
    "largest_difference": largest_difference,
}

"""The page holds everything, asks for nothing, and escapes what it is given."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_results import FP16, FP32, sample_results

from nemotrt.bench import quantities
from nemotrt.bench.plots import Segment, cosine_style, strip
from nemotrt.bench.report import render_report, summary_sentence, write_report
from nemotrt.bench.results import ErrorCount, Gpu, Output, Results, Skipped, Transcript
from nemotrt.bench.tolerances import tolerance_for

VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = "</style></script><script>alert(1)</script>\"'><img src=x onerror=alert(1)> & {{ 7*7 }}"


class Page(HTMLParser):
    """Text and tags of a page; refuses tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids.update(value for name, value in attrs if name == "id" and value)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def passing() -> Page:
    return Page(render_report(sample_results()))


@pytest.fixture(scope="module")
def failing() -> Page:
    return Page(render_report(sample_results(failing=True)))


def test_the_verdict_comes_first_and_says_why(passing: Page, failing: Page) -> None:
    assert passing.text.index("✓ Passed") < passing.text.index("Transcripts")
    assert "✗ Failed" not in passing.text
    reason = sample_results(failing=True).reasons[0]
    assert failing.text.index("✗ Failed") < failing.text.index(reason) < failing.text.index("Transcripts")


def test_engines_that_never_ran_are_said_to_be_unverified_at_the_top_and_in_the_table(passing: Page) -> None:
    note = "6 of 6 engines: built, not verified on this machine: no GPU"
    assert passing.text.index(note) < passing.text.index("Transcripts")
    assert passing.text.count("○ built, not verified") == 6


def test_no_note_about_verification_where_every_engine_is_verified() -> None:
    results = sample_results()
    verified = tuple(e.model_copy(update={"state": "verified", "reason": "compared"}) for e in results.engines)
    page = Page(render_report(results.model_copy(update={"engines": verified})))
    assert "not verified" not in page.text
    assert page.text.count("✓ verified") == 6


def test_the_page_asks_for_nothing_from_outside(passing: Page) -> None:
    assert not {tag for tag, _ in passing.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    targets = [attrs[name] for _, attrs in passing.tags for name in ("src", "href", "xlink:href") if name in attrs]
    assert targets
    assert {target.removeprefix("#") for target in targets if target} <= passing.ids
    assert "url(" not in render_report(sample_results())
    assert "@import" not in render_report(sample_results())
    policies = [attrs["content"] for tag, attrs in passing.tags if attrs.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_every_part_of_the_results_is_on_the_page(failing: Page) -> None:
    results = sample_results(failing=True)
    expected = [
        results.model,
        results.checkpoint_sha256,
        results.machine.cpu,
        *(transcript.truth for transcript in results.transcripts),
        *(check.finding for comparison in results.comparisons for check in comparison.checks),
        *(skipped.reason for skipped in results.skipped),
        *results.commands,
        *(quantities.size(graph.size_bytes) for graph in results.graphs),
        *(f"{engine.runtime} {engine.runtime_version}" for engine in results.engines),
        *(row.encoder_work.peak_reason for row in results.latency.rows),
        results.comparisons[1].tolerance.reason,
    ]
    for text in expected:
        assert text in failing.text


def test_words_that_differ_are_marked(failing: Page) -> None:
    html = render_report(sample_results(failing=True))
    assert "<del>red</del> <ins>bread</ins>" in html
    assert "<del>two</del>" in html
    assert "✓ all 3 systems, word for word" in failing.text


def test_everything_from_files_is_escaped() -> None:
    page = render_report(hostile_results())
    assert "<script" not in page
    assert "<img" not in page
    assert "{{ 7*7 }}" in Page(page).text
    assert HOSTILE.split("{{", maxsplit=1)[0].strip() in Page(page).text


def hostile_results() -> Results:
    results = sample_results()
    comparison = results.comparisons[1]
    row = comparison.clips[0].model_copy(
        update={"clip": HOSTILE, "candidate_text": HOSTILE, "tokens": ErrorCount(errors=1, length=2)}
    )
    latency = results.latency
    return results.model_copy(
        update={
            "model": HOSTILE,
            "checkpoint": HOSTILE,
            "commands": (HOSTILE,),
            "skipped": (Skipped(what=HOSTILE, reason=HOSTILE),),
            "comparisons": (
                comparison.model_copy(update={"clips": (row,), "candidate": HOSTILE, "reasons": (HOSTILE,)}),
            ),
            "transcripts": (
                Transcript(clip=HOSTILE, seconds=1.0, truth=HOSTILE, outputs=(Output(system=HOSTILE, text=HOSTILE),)),
            ),
            "latency": latency.model_copy(
                update={"rows": tuple(r.model_copy(update={"candidate": HOSTILE}) for r in latency.rows)}
            ),
            "engines": tuple(e.model_copy(update={"reason": HOSTILE, "profile": HOSTILE}) for e in results.engines),
            "graphs": tuple(g.model_copy(update={"component": HOSTILE}) for g in results.graphs),
            "machine": results.machine.model_copy(
                update={
                    "cpu": HOSTILE,
                    "gpu": Gpu(name=HOSTILE, driver=HOSTILE, memory_bytes=None),
                    "packages": {HOSTILE: HOSTILE},
                }
            ),
        }
    )


def test_results_with_nothing_in_them_still_make_a_page_and_it_is_a_failure() -> None:
    empty = sample_results().model_copy(
        update={
            "transcripts": (),
            "comparisons": (),
            "latency": None,
            "graphs": (),
            "engines": (),
            "skipped": (),
            "commands": (),
        }
    )
    text = Page(render_report(empty)).text
    assert "✗ Failed" in text
    for part in ("No clip was transcribed", "Nothing was compared", "Nothing was timed", "No engine was built"):
        assert part in text


def test_clips_without_a_transcript_are_shown_by_what_the_systems_wrote() -> None:
    results = sample_results(failing=True)
    bare = tuple(t.model_copy(update={"truth": None}) for t in results.transcripts)
    page = Page(render_report(results.model_copy(update={"transcripts": bare})))
    assert "(transcript)" not in page.text
    assert FP16 in page.text
    assert FP32 in page.text


def test_the_page_is_written_whole_and_alone(tmp_path: Path) -> None:
    path = write_report(sample_results(), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render_report(sample_results())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_summary_counts_what_was_done() -> None:
    assert summary_sentence(sample_results()) == (
        "2 of 2 comparisons passed on 3 clips. 6 engines: 6 built, not verified."
    )


def test_the_heat_map_tells_within_the_limit_from_beyond_it_and_from_not_finite() -> None:
    tolerance = tolerance_for("fastconformer-tdt", "fp16", decoder="tdt")
    assert cosine_style(1.0, tolerance) == "heat0"
    assert cosine_style(tolerance.min_cosine, tolerance).startswith("heat")
    assert cosine_style(tolerance.min_cosine - 1e-6, tolerance) == "over"
    assert cosine_style(None, tolerance) == "nan"


def test_strips_stay_inside_of_their_box_and_refuse_what_cannot_be_drawn() -> None:
    svg = strip([Segment(-1.0, 2.0, "bar", "a < b")], label="<all>")
    assert 'x="0.00"' in svg
    assert 'width="1000.00"' in svg
    assert "a &lt; b" in svg
    assert "&lt;all&gt;" in svg


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.0, "0 µs"), (4.2e-5, "42.0 µs"), (0.00123, "1.23 ms"), (75.0, "75.0 s")],  # noqa: RUF001
)
def test_durations_read_as_people_write_them(seconds: float | None, text: str) -> None:
    assert quantities.duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(None, "–"), (0, "0 B"), (999, "999 B"), (1500, "1.50 kB"), (2_467_000_000, "2.47 GB")],  # noqa: RUF001
)
def test_sizes_read_as_people_write_them(size_bytes: int | None, text: str) -> None:
    assert quantities.size(size_bytes) == text

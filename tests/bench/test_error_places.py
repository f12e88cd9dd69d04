"""Where errors are. Oracle: texts whose changes are known."""

from __future__ import annotations

import pytest

from nemotrt.bench.error_places import token_errors_by_duration, word_errors_by_place
from nemotrt.bench.results import ClipRow, ErrorCount


def row(seconds: float, errors: int, length: int) -> ClipRow:
    return ClipRow(
        clip=f"{seconds}",
        seconds=seconds,
        truth=None,
        reference_text="",
        candidate_text="",
        reference_length=None,
        candidate_length=None,
        tokens=ErrorCount(errors=errors, length=length),
        finite=True,
        frames=None,
        alone_and_batched=None,
        changes=(),
    )


def test_token_errors_are_pooled_by_the_length_of_the_clip_shortest_first() -> None:
    rows = [row(45.0, 7, 100), row(1.5, 0, 10), row(2.0, 1, 12), row(2.9, 2, 8), row(12, 0, 40)]
    assert {title: (count.errors, count.length) for title, count in token_errors_by_duration(rows).items()} == {
        "under 2 s": (0, 10),
        "2 to 3 s": (3, 20),
        "10 to 20 s": (0, 40),
        "40 s and more": (7, 100),
    }
    assert next(iter(token_errors_by_duration(rows))) == "under 2 s"


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("set the light to red", "set the light to red", (0, 0, 0)),
        ("set the light to red", "the light to red", (1, 0, 0)),
        ("set the light to red", "set the light to", (0, 0, 1)),
        ("set the light to red", "set a light to red", (0, 1, 0)),
        ("set the light to red", "", (1, 3, 1)),
        ("set the light to red", "please set the light to red", (1, 0, 0)),
        ("set the light to red", "set the light to red now please", (0, 0, 2)),
        ("set the light to red", "set the big light to red", (0, 1, 0)),
        ("stop", "halt", (1, 0, 0)),
        ("", "halt", (1, 0, 0)),
    ],
)
def test_a_changed_word_counts_at_its_place(reference: str, hypothesis: str, errors: tuple[int, int, int]) -> None:
    found = word_errors_by_place([(reference, hypothesis)])
    assert tuple(found[place].errors for place in ("first", "middle", "last")) == errors
    assert sum(count.length for count in found.values()) == len(reference.split())

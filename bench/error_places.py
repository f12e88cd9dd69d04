"""Where a candidate's errors are: in clips of which length, and at which place of a clip's words.

Eight-bit models fail first on long audio, and lose first and last words before others: a rate over all hides both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from math import inf
from typing import Literal

from nemotrt.bench.results import ClipRow, Comparison, ErrorCount
from nemotrt.bench.word_errors import NO_ERRORS, align_words

Place = Literal["first", "middle", "last"]
PLACES: tuple[Place, ...] = ("first", "middle", "last")

_EDGES_SECONDS = (0.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, inf)


def error_places(comparison: Comparison) -> dict[str, dict[str, ErrorCount]]:
    """Both views of a comparison, by name: candidate against reference."""
    texts = ((row.reference_text, row.candidate_text) for row in comparison.clips)
    return {
        "tokens_by_clip_length": token_errors_by_duration(comparison.clips),
        "words_by_place": {str(place): count for place, count in word_errors_by_place(texts).items()},
    }


def token_errors_by_duration(rows: Iterable[ClipRow]) -> dict[str, ErrorCount]:
    """Token errors by the length of the clip, shortest first: ``2 to 3 s``. Lengths that no clip has are left out."""
    counts = dict.fromkeys(pairwise(_EDGES_SECONDS), NO_ERRORS)
    seen = set()
    for row in rows:
        bucket = next((low, high) for low, high in counts if low <= row.seconds < high)
        counts[bucket] += row.tokens
        seen.add(bucket)
    return {_title(*bucket): count for bucket, count in counts.items() if bucket in seen}


def word_errors_by_place(pairs: Iterable[tuple[str, str]]) -> dict[Place, ErrorCount]:
    """Word errors of (reference, hypothesis) pairs by the place of the reference's word.

    A word that was inserted counts where the word after it stands, at the end as last. A single word is a first one.
    """
    errors: Counter[Place] = Counter()
    words: Counter[Place] = Counter()
    for reference, hypothesis in pairs:
        length, index = len(reference.split()), 0
        words.update(_place(position, length) for position in range(length))
        for span in align_words(reference, hypothesis):
            inserted = len(span.hypothesis.split()) if span.kind == "insert" else 0
            spoken = len(span.reference.split())
            if span.kind != "equal":
                errors.update(_place(position, length) for position in range(index, index + spoken))
                errors.update([_place(index, length)] * inserted)
            index += spoken
    return {place: ErrorCount(errors=errors[place], length=words[place]) for place in PLACES}


def _place(index: int, length: int) -> Place:
    if index == 0:
        return "first"
    return "last" if index >= length - 1 else "middle"


def _title(low: float, high: float) -> str:
    if low == 0:
        return f"under {high:g} s"
    return f"{low:g} s and more" if high == inf else f"{low:g} to {high:g} s"

"""Word and character errors, and which words changed (jiwer's minimum edit alignment).

    rate = (substitutions + deletions + insertions) / reference words

Texts are compared as they are, split at white space: no lower-casing, no punctuation removal. The demo's transcripts
and NeMo's output share one convention; for other data, normalise both sides before they get here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import jiwer

from nemotrt.bench.results import ErrorCount

SpanKind = Literal["equal", "substitute", "insert", "delete"]
NO_ERRORS = ErrorCount(errors=0, length=0)
_KINDS: dict[str, SpanKind] = {kind: kind for kind in get_args(SpanKind)}


@dataclass(frozen=True)
class Span:
    """A run of words: ``reference`` became ``hypothesis``. Empty on one side for insertions and deletions."""

    kind: SpanKind
    reference: str
    hypothesis: str


def align_words(reference: str, hypothesis: str) -> tuple[Span, ...]:
    """The spans of both texts in order; joined again they give both texts back (white space aside)."""
    result = jiwer.process_words([reference], [hypothesis])
    reference_words, hypothesis_words = result.references[0], result.hypotheses[0]
    return tuple(
        Span(
            kind=_KINDS[chunk.type],
            reference=" ".join(reference_words[chunk.ref_start_idx : chunk.ref_end_idx]),
            hypothesis=" ".join(hypothesis_words[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in result.alignments[0]
    )


def word_errors(pairs: Iterable[tuple[str, str]]) -> ErrorCount:
    """Word errors over (reference, hypothesis) pairs, pooled: long clips weigh more, as WER is defined."""
    return sum((_errors(jiwer.process_words([r], [h])) for r, h in pairs), start=NO_ERRORS)


def character_errors(pairs: Iterable[tuple[str, str]]) -> ErrorCount:
    """Character errors over (reference, hypothesis) pairs, pooled; spaces count as characters."""
    return sum((_errors(jiwer.process_characters([r], [h])) for r, h in pairs), start=NO_ERRORS)


def token_errors(reference: Sequence[int], hypothesis: Sequence[int]) -> ErrorCount:
    """Token edits: each id is one word of the alignment."""
    return word_errors([(" ".join(map(str, reference)), " ".join(map(str, hypothesis)))])


def _errors(result: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorCount:
    edits = result.substitutions + result.deletions + result.insertions
    return ErrorCount(errors=edits, length=len(result.references[0]))

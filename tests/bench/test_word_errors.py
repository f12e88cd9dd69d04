from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotrt.bench.results import ErrorCount
from nemotrt.bench.word_errors import align_words, character_errors, token_errors, word_errors

WORDS = st.lists(st.sampled_from(["a", "b", "light", "on", "red"]), max_size=8).map(" ".join)


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    """Wagner and Fischer's table: the oracle."""
    row = list(range(len(hypothesis) + 1))
    for i, r in enumerate(reference, start=1):
        before, row[0] = row[0], i
        for j, h in enumerate(hypothesis, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (r != h))
    return row[-1]


@given(WORDS, WORDS)
def test_word_errors_are_the_edit_distance(reference: str, hypothesis: str) -> None:
    count = word_errors([(reference, hypothesis)])
    assert count.errors == edit_distance(reference.split(), hypothesis.split())
    assert count.length == len(reference.split())


@given(WORDS, WORDS)
def test_the_spans_give_both_texts_back(reference: str, hypothesis: str) -> None:
    spans = align_words(reference, hypothesis)
    assert " ".join(s.reference for s in spans if s.reference) == reference
    assert " ".join(s.hypothesis for s in spans if s.hypothesis) == hypothesis


@given(st.lists(st.integers(0, 5), max_size=8), st.lists(st.integers(0, 5), max_size=8))
def test_token_errors_are_the_edit_distance(reference: list[int], hypothesis: list[int]) -> None:
    expected = edit_distance([str(i) for i in reference], [str(i) for i in hypothesis])
    assert token_errors(reference, hypothesis).errors == expected


def test_errors_are_pooled_over_clips_not_averaged() -> None:
    assert word_errors([("a", "b"), ("a b c", "a b c")]) == ErrorCount(errors=1, length=4)


def test_characters_are_counted_with_spaces() -> None:
    assert character_errors([("ab cd", "ab d")]) == ErrorCount(errors=1, length=5)


def test_no_rate_exists_for_an_empty_reference_and_no_error_is_allowed_there() -> None:
    inserted = word_errors([("", "a")])
    assert inserted.rate is None
    assert not inserted.within(1.0)
    assert word_errors([("", "")]).within(0.0)


@pytest.mark.parametrize(("errors", "within"), [(1, True), (2, False)])
def test_a_limit_is_inclusive(errors: int, within: bool) -> None:
    assert ErrorCount(errors=errors, length=100).within(0.01) is within

"""Bisection for what is needed. Oracle: the set that was hidden."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotrt.trt.irreducible import irreducible_part

Passes = Callable[[frozenset[str]], bool]


def names(count: int) -> list[str]:
    return [f"n{index}" for index in range(count)]


def counted(passes: Passes) -> tuple[Passes, list[frozenset[str]]]:
    """``passes``, and every set that it is asked for."""
    asked: list[frozenset[str]] = []

    def asking(kept: frozenset[str]) -> bool:
        asked.append(kept)
        return passes(kept)

    return asking, asked


@given(size=st.integers(1, 300), data=st.data())
def test_the_hidden_set_is_found_in_a_logarithm_of_tests_for_each_of_its_elements(
    size: int, data: st.DataObject
) -> None:
    hidden = set(data.draw(st.lists(st.sampled_from(names(size)), max_size=5, unique=True)))
    passes, asked = counted(lambda kept: hidden <= kept)
    assert set(irreducible_part(names(size), passes)) == hidden
    assert len(asked) <= len(hidden) * (ceil(log2(size)) + 1) + 1


@given(
    groups=st.lists(st.lists(st.sampled_from(names(20)), min_size=1, max_size=4, unique=True), min_size=1, max_size=4)
)
def test_of_several_sets_that_pass_one_is_found_and_nothing_of_it_can_be_left_out(groups: list[list[str]]) -> None:
    def passes(kept: frozenset[str]) -> bool:
        return any(kept.issuperset(group) for group in groups)

    found = irreducible_part(names(20), passes)
    assert passes(frozenset(found))
    assert not any(passes(frozenset(found) - {name}) for name in found)
    assert list(found) == sorted(found, key=names(20).index)


def test_where_nothing_is_needed_one_test_says_so() -> None:
    passes, asked = counted(lambda _kept: True)
    assert irreducible_part(names(64), passes) == ()
    assert asked == [frozenset()]


@pytest.mark.parametrize("culprit", ["n0", "n31", "n63"])
def test_one_of_64_costs_at_most_eight_tests_where_trying_each_costs_64(culprit: str) -> None:
    passes, asked = counted(lambda kept: culprit in kept)
    assert irreducible_part(names(64), passes) == (culprit,)
    assert len(asked) <= 8

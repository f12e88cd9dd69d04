"""Sizes of axes as polynomials. Oracle: the same arithmetic with numbers."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from nemotrt.trt.surgery.axis_size import Floor, Size, product

T, B = Size.named("frames"), Size.named("batch")
STEPS: list[Callable[[Size | int, int], Size | int]] = [
    lambda size, k: size + k,
    lambda size, k: size - k,
    lambda size, k: size * k,
    lambda size, k: size // (abs(k) + 1),
]
steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(-4, 4)), max_size=8)


def value_of(size: Size, frames: int) -> int:
    total = 0
    for monomial, k in size.terms:
        factors = (value_of(a.numerator, frames) // a.divisor if isinstance(a, Floor) else frames for a in monomial)
        number = k
        for factor in factors:
            number *= factor
        total += number
    return total


@given(steps, st.integers(1, 500))
def test_arithmetic_with_an_axis_is_that_of_its_length(
    chain: list[tuple[Callable[[Size | int, int], Size | int], int]], frames: int
) -> None:
    size: Size | int = T
    number: Size | int = frames
    for step, k in chain:
        size, number = step(size, k), step(number, k)
    assert isinstance(size, Size)
    assert value_of(size, frames) == number
    assert size.at_least is None or size.at_least <= number


def test_equal_sizes_are_equal_however_they_were_computed() -> None:
    assert (T * 2 - 1) + 1 == T * 2
    assert (T * 2 + 5) // 2 == T + 2
    assert product((B, T, T * 2)).divided_exactly(B * T) == T * 2


def test_a_size_that_is_not_a_multiple_is_not_divided() -> None:
    assert (B * T + 1).divided_exactly(B) is None
    assert (T * 3).divided_exactly(T * 2) is None


def test_unknown_sizes_equal_only_themselves() -> None:
    unknown = Size.unknown()
    assert unknown == unknown  # noqa: PLR0124  # that is the question
    assert unknown != Size.unknown()

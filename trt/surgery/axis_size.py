"""The size of an axis as a polynomial with integer coefficients: ``2*frames - 1``, ``floor((frames - 1)/2) + 1``.

    Size.named("frames") * 2 - 1 + 1 == Size.named("frames") * 2

Equal polynomials are equal sizes for every length; different ones may be equal too. Axes hold at least one element.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count

Monomial = tuple["Atom", ...]
_unknown_numbers = count()


@dataclass(frozen=True)
class Floor:
    """``floor(numerator / divisor)``, where the division does not come out even."""

    numerator: Size
    divisor: int

    def __str__(self) -> str:
        return f"floor(({self.numerator})/{self.divisor})"


Atom = str | Floor


@dataclass(frozen=True)
class Size:
    """Products of axes, each with its coefficient, in one order."""

    terms: tuple[tuple[Monomial, int], ...]

    @classmethod
    def of(cls, number: int) -> Size:
        """A number."""
        return _size({(): number})

    @classmethod
    def named(cls, axis: str) -> Size:
        """An axis that has any length from one on."""
        return _size({(axis,): 1})

    @classmethod
    def unknown(cls) -> Size:
        """A size that equals only itself."""
        return cls.named(f"?{next(_unknown_numbers)}")

    def __add__(self, other: Size | int) -> Size:
        return _size(_sum((*self.terms, *_as_size(other).terms)))

    def __sub__(self, other: Size | int) -> Size:
        return self + _as_size(other) * -1

    def __mul__(self, other: Size | int) -> Size:
        pairs = ((a, b) for a in self.terms for b in _as_size(other).terms)
        return _size(_sum((tuple(sorted(x + y, key=str)), m * n) for (x, m), (y, n) in pairs))

    def __floordiv__(self, divisor: int) -> Size:
        """Rounded down, for a positive divisor."""
        even = [(monomial, k // divisor) for monomial, k in self.terms if k % divisor == 0]
        rest = _size({monomial: k for monomial, k in self.terms if k % divisor})
        whole = _size(dict(even))
        if not rest.terms:
            return whole
        number = rest.number
        return whole + (_size({(Floor(rest, divisor),): 1}) if number is None else number // divisor)

    def divided_exactly(self, other: Size) -> Size | None:
        """The polynomial that gives this one when multiplied with ``other``, where ``other`` is one product."""
        if len(other.terms) != 1:
            return None
        (monomial, k), quotient = other.terms[0], {}
        for factors, coefficient in self.terms:
            rest = list(factors)
            for factor in monomial:
                if factor not in rest:
                    return None
                rest.remove(factor)
            if coefficient % k:
                return None
            quotient[tuple(rest)] = coefficient // k
        return _size(quotient)

    @property
    def number(self) -> int | None:
        """The number that it is for every length, if it is one."""
        if not self.terms:
            return 0
        (monomial, k), *more = self.terms
        return k if not monomial and not more else None

    @property
    def at_least(self) -> int | None:
        """A number that it is never below; ``None``: nothing is known."""
        total = 0
        for monomial, k in self.terms:
            lowest = 1
            for atom in monomial:
                below = 1 if isinstance(atom, str) else _floor_at_least(atom)
                if below is None or below < 0:
                    return None
                lowest *= below
            if monomial and k < 0:
                return None
            total += k * lowest
        return total

    def __str__(self) -> str:
        words = ["*".join([*([] if k == 1 and m else [str(k)]), *map(str, m)]) for m, k in self.terms]
        return " + ".join(words).replace("+ -", "- ") or "0"


Shape = tuple[Size, ...]


def product(sizes: Iterable[Size]) -> Size:
    """Elements of a tensor with these axes."""
    total = Size.of(1)
    for size in sizes:
        total = total * size
    return total


def _as_size(value: Size | int) -> Size:
    return value if isinstance(value, Size) else Size.of(value)


def _sum(terms: Iterable[tuple[Monomial, int]]) -> dict[Monomial, int]:
    total: dict[Monomial, int] = {}
    for monomial, k in terms:
        total[monomial] = total.get(monomial, 0) + k
    return total


def _size(terms: Mapping[Monomial, int]) -> Size:
    kept = [(monomial, k) for monomial, k in terms.items() if k]
    return Size(tuple(sorted(kept, key=lambda term: (-len(term[0]), str(term[0])))))


def _floor_at_least(atom: Floor) -> int | None:
    below = atom.numerator.at_least
    return None if below is None else below // atom.divisor

"""The smallest part of a list that makes a test pass, by bisection.

Take the shortest beginning of the list that passes: its last element is needed. Keep it, and look for the next one in
front of it, until what was kept passes alone. One element of n costs log2(n) + 2 tests, k of them k (log2(n) + 1) + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def irreducible_part(candidates: Sequence[str], passes: Callable[[frozenset[str]], bool]) -> tuple[str, ...]:
    """A part of ``candidates``, in order, that passes and of which nothing can be left out.

    All candidates together must pass, and more of them never fail where fewer pass. Where several such parts exist,
    it is the one whose last element comes first.
    """
    needed: list[str] = []
    end = len(candidates)  # what is needed and candidates[:end] pass together
    while end > 0 and not passes(frozenset(needed)):
        low = 0  # what is needed and candidates[:low] fail
        while end - low > 1:
            middle = (low + end) // 2
            if passes(frozenset([*needed, *candidates[:middle]])):
                end = middle
            else:
                low = middle
        end -= 1
        needed.append(candidates[end])
    return tuple(reversed(needed))

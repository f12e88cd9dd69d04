"""All rules, and the choice of some of them."""

from __future__ import annotations

from collections.abc import Sequence

from nemotrt.errors import UsageError
from nemotrt.trt.check import (
    contract,
    edges,
    external_data,
    files,
    half_range,
    lengths,
    masks,
    norms,
    operators,
    outside,
    positions,
    traced_axes,
)
from nemotrt.trt.check.rule import Rule

RULES: tuple[Rule, ...] = (
    *files.RULES,
    *external_data.RULES,
    *contract.RULES,
    *positions.RULES,
    *traced_axes.RULES,
    *edges.RULES,
    *lengths.RULES,
    *masks.RULES,
    *operators.RULES,
    *norms.RULES,
    *half_range.RULES,
    *outside.RULES,
)


def chosen_rules(only: Sequence[str] = (), ignored: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The rules named in ``only`` (empty: all) without those in ``ignored``.

    Raises:
        UsageError: an id that no rule has.
    """
    known = [rule.id for rule in RULES]
    unknown = [name for name in (*only, *ignored) if name not in known]
    if unknown:
        raise UsageError(
            "there is no such rule", found=", ".join(unknown), fix=f"choose from: {', '.join(sorted(known))}"
        )
    return tuple(rule for rule in RULES if rule.id in (only or known) and rule.id not in ignored)

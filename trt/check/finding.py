"""What a rule found in a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Severity = Literal["error", "warning", "note"]
"""error: broken, or no runtime here takes it. warning: right in float32, not in every use. note: costs something."""

_RANK = {severity: rank for rank, severity in enumerate(get_args(Severity))}


@dataclass(frozen=True)
class Finding:
    """``places`` are nodes, tensors or files, most telling first; empty: the graph as a whole."""

    rule: str
    severity: Severity
    component: str
    graph: Path
    places: tuple[str, ...]
    what: str
    fix: str

    @property
    def place(self) -> str:
        """The first place, and how many more there are."""
        more = len(self.places) - 1
        return f"{self.places[0]} (+{more})" if more > 0 else "".join(self.places)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then notes; otherwise in the order found."""
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.severity]))

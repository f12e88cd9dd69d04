"""What every rule is: an id, why it matters, how bad it is, what to do, and a look at one graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

from nemotrt.trt.check.finding import Finding, Severity
from nemotrt.trt.check.subject import Subject


class Rule(ABC):
    """Rules hold no state: one object of each is enough."""

    id: ClassVar[str]
    severity: ClassVar[Severity]
    reason: ClassVar[str]
    fix: ClassVar[str]
    needs_valid_graph: ClassVar[bool] = True

    @abstractmethod
    def check(self, subject: Subject) -> Iterator[Finding]:
        """What is wrong with the graph, one finding for each cause."""

    def found(
        self,
        subject: Subject,
        what: str,
        *,
        places: Iterable[str | None] = (),
        severity: Severity | None = None,
        fix: str | None = None,
    ) -> Finding:
        """A finding of this rule; ``severity`` and ``fix`` where they are not the rule's own."""
        return Finding(
            rule=self.id,
            severity=severity or self.severity,
            component=subject.name,
            graph=subject.path,
            places=tuple(place for place in places if place),
            what=what,
            fix=fix or self.fix,
        )

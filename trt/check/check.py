"""Graphs in, findings out: every rule looks at every graph, and nothing is built or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nemotrt.bundle import Bundle, BundleMeta, ComponentSpec
from nemotrt.trt.check.files import FIRST, INVALID
from nemotrt.trt.check.finding import Finding, worst_first
from nemotrt.trt.check.opinions import Opinions
from nemotrt.trt.check.registry import RULES
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject


def check_graph_file(
    path: Path,
    component: ComponentSpec | None = None,
    meta: BundleMeta | None = None,
    *,
    rules: Sequence[Rule] = RULES,
) -> tuple[Finding, ...]:
    """What is wrong with one graph, worst first.

    ``component`` and ``meta`` are its contract; without them, what a rule cannot know it leaves out.
    A file that is not a graph is a finding too, whatever ``rules`` are, and so is an invalid graph that they cannot
    look at.
    """
    subject = Subject(path, component, meta, Opinions(lambda: _loadable([subject])))
    return worst_first(_findings(subject, rules))


def check_bundle(
    bundle: Bundle, *, rules: Sequence[Rule] = RULES, on_component: Callable[[str], None] | None = None
) -> tuple[Finding, ...]:
    """The same of every component of a bundle. ``on_component`` receives the name of each before it is looked at."""
    opinions = Opinions(lambda: _loadable(subjects))
    subjects = [
        Subject(bundle.path / spec.graph, spec, bundle.meta, opinions) for spec in bundle.meta.components.values()
    ]
    found: list[Finding] = []
    for subject in subjects:
        if on_component is not None:
            on_component(subject.name)
        found.extend(_findings(subject, rules))
    return worst_first(found)


def _findings(subject: Subject, rules: Sequence[Rule]) -> Iterator[Finding]:
    for first in FIRST:
        if found := tuple(first.check(subject)):
            yield from found
            return
    invalid = tuple(INVALID.check(subject))
    if any(rule is INVALID or rule.needs_valid_graph for rule in rules):
        yield from invalid
    for rule in rules:
        if rule not in (*FIRST, INVALID) and not (invalid and rule.needs_valid_graph):
            yield from rule.check(subject)


def _loadable(subjects: Sequence[Subject]) -> list[Path]:
    """Those that are graphs, with all their weights: nothing else is given to a runtime."""
    return [one.path for one in subjects if not any(any(rule.check(one)) for rule in FIRST) and one.is_sound]

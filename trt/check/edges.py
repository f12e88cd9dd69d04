"""Inputs that nothing reads, outputs that nothing given reaches, nodes for nothing."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.provenance import Source
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject


class InputUnused(Rule):
    """Inputs without a reader."""

    id = "input-unused"
    severity = "warning"
    reason = "the exporter lost what the input is for; runtimes may drop it, and clients still feed it"
    fix = "find out what should have used it: a length, for masks"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        idle = [value for value in subject.graph.inputs if not value.uses() and not value.is_graph_output()]
        if idle:
            yield self.found(subject, "no node reads these inputs", places=(value.name for value in idle))


class OutputConstant(Rule):
    """Outputs that no value of an input reaches."""

    id = "output-constant"
    severity = "error"
    reason = "the exporter took what it saw in the trace for a constant"
    fix = "compute the output from tensors, not from Python numbers"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        frozen = [value for value in subject.graph.outputs if subject.sources[value] <= Source.SHAPE]
        if frozen:
            names = (value.name for value in frozen)
            yield self.found(subject, "outputs do not depend on the values of any input", places=names)


class NodeUnused(Rule):
    """Nodes that no output needs."""

    id = "node-unused"
    severity = "note"
    reason = "runtimes drop them; they are only in the way of the reader"
    fix = "remove them: onnx_ir.passes.common.RemoveUnusedNodesPass does"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        needed: set[ir.Node] = set()
        waiting = [value.producer() for value in subject.graph.outputs]
        while waiting:
            node = waiting.pop()
            if node is None or node in needed:
                continue
            needed.add(node)
            waiting.extend(value.producer() for value in _read_by(node) if value is not None)
        idle = [node for node in subject.graph if node not in needed]
        if idle:
            yield self.found(subject, "no output needs these nodes", places=(node.name for node in idle))


def _read_by(node: ir.Node) -> Iterator[ir.Value | None]:
    """The node's inputs, and what the graphs inside of it take from around them."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            nested = attribute.as_graph()
            yield from nested.outputs
            yield from (value for within in nested.all_nodes() for value in within.inputs)


RULES = (InputUnused(), OutputConstant(), NodeUnused())

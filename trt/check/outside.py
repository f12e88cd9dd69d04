"""What TensorRT's own parser and Polygraphy's lint say, where they are installed."""

from __future__ import annotations

from collections.abc import Iterator

from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.opinions import Opinion
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject

_NOTHING = Opinion()


class _Outside(Rule):
    """Asked in another process, which may be given an invalid graph too."""

    needs_valid_graph = False


class TensorRTRefuses(_Outside):
    """The parser of the library that would build here."""

    id = "tensorrt-refuses"
    severity = "error"
    reason = "TensorRT's parser does not take the graph, so no engine can be built of it"
    fix = "replace the operator, or the type, that the parser names"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each error of the parser."""
        for remark in subject.opinions.tensorrt.get(subject.path, _NOTHING).remarks:
            yield self.found(subject, remark.what, places=remark.nodes)


class TensorRTCrashes(_Outside):
    """The parser's process."""

    id = "tensorrt-crashes"
    severity = "error"
    reason = "a parser that dies takes the build, and whoever called it, along"
    fix = "report it to NVIDIA with the graph; another version may take it"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        crash = subject.opinions.tensorrt.get(subject.path, _NOTHING).crash
        if crash:
            yield self.found(subject, f"TensorRT's parser did not come back: {crash}")


class PolygraphyLint(_Outside):
    """``polygraphy check lint``, which runs the graph in ONNX Runtime."""

    id = "polygraphy-lint"
    severity = "warning"
    reason = "Polygraphy found nodes that ONNX or ONNX Runtime does not take, or that nothing needs"
    fix = "see it in full: polygraphy check lint GRAPH.onnx"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each entry of its report, as bad as Polygraphy says."""
        opinion = subject.opinions.polygraphy.get(subject.path, _NOTHING)
        for remark in opinion.remarks:
            yield self.found(subject, remark.what, places=remark.nodes, severity=remark.level)
        if opinion.crash:
            yield self.found(subject, f"Polygraphy's lint did not come back: {opinion.crash}")


RULES = (TensorRTRefuses(), TensorRTCrashes(), PolygraphyLint())

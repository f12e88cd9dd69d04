"""Opsets and operators: what runtimes do not take, and what decides shapes from values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import onnx
import onnx_ir as ir

from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.provenance import Source
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject

_FIRST_WITH_LAYER_NORM = 17
_ONNX_DOMAINS = ("", "ai.onnx")
_RUNTIME_DOMAINS = ("com.microsoft", "com.ms.internal.nhwc", "ai.onnx.ml")

_SHAPE_OPERANDS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Slice": (1, 2),
    "Tile": (1,),
}
"""Inputs whose values decide the shape of the output."""


class OpsetOld(Rule):
    """Before LayerNormalization."""

    id = "opset-old"
    severity = "warning"
    reason = "before opset 17 there is no LayerNormalization: norms come apart, and overflow in half precision"
    fix = "export with opset 17 or later"
    needs_valid_graph = False

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        if (opset := _opset(subject)) < _FIRST_WITH_LAYER_NORM:
            yield self.found(subject, f"opset {opset}")


class OpsetNew(Rule):
    """Beyond what the installed onnx knows."""

    id = "opset-new"
    severity = "error"
    reason = "runtimes read an opset that they do not know as the newest that they do"
    fix = "install a newer onnx, or export with an older opset"
    needs_valid_graph = False

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        known = onnx.defs.onnx_opset_version()
        if (opset := _opset(subject)) > known:
            yield self.found(subject, f"opset {opset}; onnx {onnx.__version__} knows {known}")


class _Operators(Rule):
    """One finding for each operator of ``names`` that is in the graph."""

    severity = "warning"
    names: ClassVar[frozenset[str]]
    what: ClassVar[str]

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each operator."""
        there = [node for node in subject.nodes if node.op_type in self.names and node.domain in _ONNX_DOMAINS]
        for name in dict.fromkeys(node.op_type for node in there):
            places = (node.name for node in there if node.op_type == name)
            yield self.found(subject, self.what.format(name=name), places=places)


class ControlFlow(_Operators):
    """Graphs inside of nodes."""

    id = "control-flow"
    names = frozenset({"If", "Loop", "Scan"})
    what = "{name} holds a graph of its own"
    reason = "a branch or loop is a graph apart: rules and casts here do not look into it, and TensorRT restricts it"
    fix = "export in inference mode with the branch decided, or unroll the loop"


class DataDependentShape(_Operators):
    """Operators whose output is as long as the values say."""

    id = "data-dependent-shape"
    names = frozenset({"NonZero", "Unique", "Compress", "NonMaxSuppression"})
    what = "the output of {name} is as large as the values say"
    reason = "a shape that is known only after running: no static memory plan, no stream capture, often no build"
    fix = "replace it by a mask and a product or Where"


class SignalOperator(_Operators):
    """The front end as operators."""

    id = "signal-operator"
    names = frozenset({"STFT", "DFT", "MelWeightMatrix", "HannWindow", "HammingWindow", "BlackmanWindow"})
    what = "the front end is computed with {name}"
    reason = "TensorRT's parser has no DFT and no MelWeightMatrix, and old versions have no STFT either"
    fix = "keep the front end out of the graph, or use preprocessor.onnx of nemotrt export: one convolution"


class OperatorRefused(_Operators):
    """What the parser of TensorRT-RTX 1.7 says that it has not."""

    id = "operator-refused"
    names = frozenset(
        {
            *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "CumProd"),
            *("Det", "DeformConv", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QLinearConv"),
            *("QLinearMatMul", "MaxUnpool", "Multinomial", "Bernoulli", "StringNormalizer", "TfIdfVectorizer"),
            *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceLength", "SequenceMap"),
            *("ConcatFromSequence", "SplitToSequence", "Optional", "OptionalGetElement", "OptionalHasElement"),
        }
    )
    what = "TensorRT has no {name}"
    reason = "the build ends at an operator that the parser does not know"
    fix = "write it with other operators, or keep this component on ONNX Runtime"


class CustomOperator(Rule):
    """Domains that are not ONNX's own, and not functions of the file."""

    id = "custom-operator"
    severity = "error"
    reason = "an operator outside of ONNX needs a library that is not in the file"
    fix = "export without fused or contrib operators"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each domain; a warning where ONNX Runtime has the operator."""
        own = {function.domain for function in subject.proto.functions}
        foreign = [node for node in subject.nodes if node.domain not in (*_ONNX_DOMAINS, *own)]
        for domain in dict.fromkeys(node.domain for node in foreign):
            nodes = [node for node in foreign if node.domain == domain]
            kinds = ", ".join(dict.fromkeys(node.op_type for node in nodes))
            yield self.found(
                subject,
                f"operators of the domain {domain}: {kinds}",
                places=(node.name for node in nodes),
                severity="warning" if domain in _RUNTIME_DOMAINS else "error",
            )


class ScatterInShape(Rule):
    """Scatter and control flow on the way to a shape."""

    id = "scatter-in-shape"
    severity = "warning"
    reason = "TensorRT computes shapes on the host, with few operators: scattering into a shape breaks the build"
    fix = "build shapes with Concat of Shape, Gather and constants"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        odd = ("ScatterND", "ScatterElements", "Scatter", "If", "Loop", "NonZero")
        nodes = [node for node in _computes_shapes(subject.nodes) if node.op_type in odd]
        if nodes:
            kinds = ", ".join(dict.fromkeys(node.op_type for node in nodes))
            yield self.found(subject, f"a shape is computed with {kinds}", places=(node.name for node in nodes))


class ShapeFromInput(Rule):
    """Values of an input that decide a shape."""

    id = "shape-from-input"
    severity = "warning"
    reason = "TensorRT needs the values of such an input before it can plan memory; nemotrt build refuses it"
    fix = "take shapes from tensors (Shape), and use lengths for masks only"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        nodes = [
            node
            for node in subject.graph
            for value in _shape_operands(node)
            if subject.sources.get(value, Source.CONSTANT) >= Source.LENGTH
        ]
        if nodes:
            what = "the values of an input decide the shape of a tensor"
            yield self.found(subject, what, places=dict.fromkeys(node.name for node in nodes))


def _opset(subject: Subject) -> int:
    imports = subject.proto.opset_import
    return max((one.version for one in imports if one.domain in _ONNX_DOMAINS), default=_FIRST_WITH_LAYER_NORM)


def _shape_operands(node: ir.Node) -> list[ir.Value]:
    inputs = node.inputs
    places = _SHAPE_OPERANDS.get(node.op_type, ())
    return [value for place in places if place < len(inputs) and (value := inputs[place]) is not None]


def _computes_shapes(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Nodes behind a shape operand, back to where a tensor's shape is taken."""
    waiting = [value.producer() for node in nodes for value in _shape_operands(node)]
    seen: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node.op_type in ("Shape", "Size"):
            continue
        seen.add(node)
        yield node
        waiting.extend(value.producer() for value in node.inputs if value is not None)


RULES = (
    OpsetOld(),
    OpsetNew(),
    ControlFlow(),
    DataDependentShape(),
    ScatterInShape(),
    ShapeFromInput(),
    SignalOperator(),
    OperatorRefused(),
    CustomOperator(),
)

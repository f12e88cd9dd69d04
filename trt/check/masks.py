"""Padding that reaches valid frames: convolutions and attention without a mask before them.

masked:  x * mask, Where(mask, x, 0)    then only moves, until the convolution
         Where(mask, scores, low), scores + bias of a mask    then only moves and scales, until the softmax
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.patterns import MOVES
from nemotrt.trt.check.provenance import Source
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject

_KEEPS_ZERO = MOVES | {"Relu"}
_SCALES = MOVES | {"Add", "Div", "Mul", "Sub", "Where"}


class ConvolutionUnmasked(Rule):
    """Depthwise convolutions over time, of an encoder that is told how long its rows are."""

    id = "convolution-unmasked"
    severity = "warning"
    reason = "what pads a row leaks into its last frames: the text depends on the neighbours in the batch"
    fix = "zero the input beyond each row's length (NeMo's pad_mask), or run rows of one length only"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        if not subject.has_lengths:
            return
        nodes = [node for node in subject.graph if _is_depthwise(node, subject) and not self._masked(node, subject)]
        if nodes:
            yield self.found(subject, "no mask before a depthwise convolution", places=(node.name for node in nodes))

    def _masked(self, convolution: ir.Node, subject: Subject) -> bool:
        return _meets_mask(convolution.inputs[0], subject.sources, through=_KEEPS_ZERO, masks=("Mul", "Where"))


class AttentionUnmasked(Rule):
    """Softmax of scores, of an encoder that is told how long its rows are."""

    id = "attention-unmasked"
    severity = "warning"
    reason = "frames attend to padding: the text depends on the neighbours in the batch"
    fix = "add a large negative number to the scores of keys beyond each row's length"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        if not subject.has_lengths:
            return
        masks = ("Add", "Sub", "Where")
        nodes = [
            node
            for node in subject.graph
            if node.op_type == "Softmax"
            and subject.sources[node.outputs[0]] == Source.DATA
            and not _meets_mask(node.inputs[0], subject.sources, through=_SCALES, masks=masks)
        ]
        if nodes:
            yield self.found(subject, "no mask before a softmax", places=(node.name for node in nodes))


def _is_depthwise(node: ir.Node, subject: Subject) -> bool:
    """A convolution that reaches over frames, a group for each channel."""
    if node.op_type != "Conv" or subject.sources[node.outputs[0]] != Source.DATA or node.inputs[1] is None:
        return False
    kernel = tuple(node.inputs[1].shape or ())
    group = node.attributes.get("group")
    groups = 1 if group is None else group.as_int()
    return groups > 1 and groups == kernel[0] and any(size != 1 for size in kernel[2:])


def _meets_mask(
    value: ir.Value | None, sources: Mapping[ir.Value, Source], *, through: frozenset[str], masks: tuple[str, ...]
) -> bool:
    """Whether a value of kind ``length`` meets the data on the way back from ``value``, ``through`` these operators."""
    waiting, seen = [value], set[ir.Node]()
    while waiting:
        node = one.producer() if (one := waiting.pop()) is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        data = [given for given in node.inputs if given is not None and sources[given] == Source.DATA]
        has_mask = any(given is not None and sources[given] == Source.LENGTH for given in node.inputs)
        if node.op_type in masks and has_mask and data:
            return True
        if node.op_type in through:
            waiting.extend(data)
    return False


RULES = (ConvolutionUnmasked(), AttentionUnmasked())

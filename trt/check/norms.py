"""Norms and softmax written out as arithmetic, as exporters did before there were operators for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.patterns import producer
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject


class _Decomposed(Rule):
    """A division that ends a pattern of several nodes."""

    severity = "warning"
    what: ClassVar[str]

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding; the divisions are its places."""
        places = [node.name for node in subject.nodes if node.op_type == "Div" and self.ends(*node.inputs[:2])]
        if places:
            yield self.found(subject, self.what, places=places)

    @abstractmethod
    def ends(self, above: ir.Value | None, below: ir.Value | None) -> bool:
        """Whether ``above / below`` is the end of the pattern."""


class LayerNormDecomposed(_Decomposed):
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon), over the last axis."""

    id = "layer-norm-decomposed"
    what = "layer norms are written out as means, squares and roots"
    reason = "the square of an activation overflows half precision, and no runtime fuses all the spellings"
    fix = "export with opset 17 or later, so that LayerNormalization stays one operator"

    def ends(self, above: ir.Value | None, below: ir.Value | None) -> bool:
        """Square root of a mean, under a difference from a mean."""
        total = producer(producer(below, "Sqrt"), "Add")
        is_deviation = total is not None and any(producer(value, "ReduceMean") for value in total.inputs)
        difference = producer(above, "Sub")
        return is_deviation and difference is not None and _over_last_axis(producer(difference.inputs[1], "ReduceMean"))


class SoftmaxDecomposed(_Decomposed):
    """exp(x) / sum(exp(x))."""

    id = "softmax-decomposed"
    what = "softmax is written out as exponentials and their sum"
    reason = "an exponential overflows half precision above 11, unless the maximum was taken off before"
    fix = "export with the operator Softmax"

    def ends(self, above: ir.Value | None, below: ir.Value | None) -> bool:
        """An exponential over its own sum."""
        total = producer(below, "ReduceSum")
        return total is not None and producer(above, "Exp") is not None and total.inputs[0] is above


def _over_last_axis(mean: ir.Node | None) -> bool:
    if mean is None or (x := mean.inputs[0]) is None:
        return False
    attribute = mean.attributes.get("axes")
    axes: list[int] = []
    if attribute is not None:
        axes = list(attribute.as_ints())
    elif len(mean.inputs) > 1 and (operand := mean.inputs[1]) is not None:
        constant = ir.convenience.get_const_tensor(operand)
        axes = [] if constant is None else constant.numpy().tolist()
    return axes in ([-1], [len(x.shape or ()) - 1])


RULES = (LayerNormDecomposed(), SoftmaxDecomposed())

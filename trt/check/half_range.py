"""Constants that half precision cannot hold, and masks that make NaN. Weights are read one at a time."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from onnx import TensorProto

from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject
from nemotrt.trt.check.weights import Extremes, StoredWeight

_HALF = np.finfo(np.float16)
_HALF_MAX = float(_HALF.max)
_HALF_ZERO = float(_HALF.smallest_subnormal) / 2  # from here on down, a number rounds to zero
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


class _Values(Rule):
    """One finding with all constants that are :meth:`wrong`."""

    what: ClassVar[str]

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        floats = (weight for weight in subject.weights if _is_float(weight))
        names = [weight.name for weight in floats if self.wrong(weight.extremes)]
        if names:
            yield self.found(subject, self.what, places=names)

    @abstractmethod
    def wrong(self, values: Extremes) -> bool:
        """Whether this is what the rule is about."""


class WeightNotFinite(_Values):
    """NaN, or plus infinity."""

    id = "weight-not-finite"
    severity = "error"
    what = "weights hold NaN or infinity"
    reason = "a cast or a training that overflowed: what is computed with them is NaN"
    fix = "export from a checkpoint whose weights are finite"

    def wrong(self, values: Extremes) -> bool:
        """Minus infinity alone may be a mask."""
        return math.isnan(values.low) or values.high == math.inf


class MaskInfinite(_Values):
    """Minus infinity."""

    id = "mask-infinite"
    severity = "warning"
    what = "a mask is minus infinity"
    reason = "softmax of a row without any allowed key is NaN, and padded rows of a batch are such rows"
    fix = "mask with a finite number, -10000"

    def wrong(self, values: Extremes) -> bool:
        """Anywhere in the constant."""
        return values.low == -math.inf


class MaskBeyondHalf(_Values):
    """One finite number at or below the smallest of half precision."""

    id = "mask-beyond-half"
    severity = "warning"
    what = "a mask is a number that half precision does not have"
    reason = "in half precision it becomes minus infinity, and a fully padded row NaN"
    fix = "mask with -10000, which is zero after softmax in every precision"

    def wrong(self, values: Extremes) -> bool:
        """Masks are single numbers."""
        return values.are_one and -math.inf < values.low <= -_HALF_MAX


class BeyondHalf(_Values):
    """Finite numbers too large for half precision; single ones that become zero in it."""

    id = "beyond-half"
    severity = "warning"
    what = "constants are beyond the range of half precision"
    reason = "a naive cast makes infinity of a large weight, and zero of a small epsilon"
    fix = "cast with nemotrt cast, which keeps them in float32"

    def wrong(self, values: Extremes) -> bool:
        """A mask is another rule's."""
        if values.are_one:
            return _HALF_MAX < values.high < math.inf or 0 < abs(values.high) <= _HALF_ZERO
        return _HALF_MAX < values.high < math.inf or -math.inf < values.low < -_HALF_MAX


def _is_float(weight: StoredWeight) -> bool:
    return weight.tensor.data_type in _FLOATS and weight.size_bytes > 0 and weight.fault is None


RULES = (WeightNotFinite(), MaskInfinite(), MaskBeyondHalf(), BeyondHalf())

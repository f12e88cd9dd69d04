"""How far a candidate may be from the FP32 graph on ONNX Runtime: the one table, with the reasons.

Nothing else in nemotrt holds a tolerance. A row is chosen by model family, the candidate's precision and the tensor
that is compared: ``encoder`` (encoder output, transducer decoders) or ``logprobs`` (CTC decoder). Lengths have no
tolerance: they are integers and must be equal. Figures were set from what the demo checkpoints and a random
full-size encoder (FP16: relative L2 9e-4) show on ONNX Runtime, with a margin for other kernels; a known TensorRT
miscompile of such an encoder sits at cosine 0.35.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from nemotrt.bench.record import Record
from nemotrt.bundle import Family, Precision
from nemotrt.errors import UsageError

ComparedTensor = Literal["encoder", "logprobs"]


class Tolerance(Record):
    """Limits for one family, precision and tensor.

    ``min_cosine`` holds for every valid frame; ``max_abs`` for every value of it (units of the tensor).
    ``row_*`` compare the candidate with itself: a clip alone and the same clip in a padded batch.
    ``token_error_rate`` and ``word_error_rate`` are fractions over all clips together, candidate against reference
    (not against the truth): the WER against the truth cannot rise by more than the words that changed.
    """

    family: Family
    precision: Precision
    tensor: ComparedTensor
    min_cosine: float
    max_abs: float
    row_min_cosine: float
    row_max_abs: float
    token_error_rate: float
    word_error_rate: float
    reason: str

    @property
    def name(self) -> str:
        """The row's key in words, for reports."""
        return f"{self.family} {self.precision} {self.tensor}"


@dataclass(frozen=True)
class _Limits:
    min_cosine: float
    max_abs: float
    row_min_cosine: float
    row_max_abs: float
    token_error_rate: float
    word_error_rate: float
    reason: str


_FP32_ENCODER = _Limits(
    min_cosine=0.9999999,
    max_abs=1e-4,
    row_min_cosine=0.9999999,
    row_max_abs=1e-4,
    token_error_rate=0.0,
    word_error_rate=0.0,
    reason=(
        "FP32 with TF32 off differs by the order of sums only: 2e-6 to 1e-5 on layer-normalised frames, in a batch "
        "as across backends. FP16 and TF32 (1e-3 and more) are meant to fail. Tokens must be equal."
    ),
)
_FP32_LOGPROBS = _Limits(
    min_cosine=0.9999999,
    max_abs=1e-3,
    row_min_cosine=0.9999999,
    row_max_abs=1e-3,
    token_error_rate=0.0,
    word_error_rate=0.0,
    reason=(
        "As FP32 encoder frames, but log-probabilities reach -50: the same relative error is ten times larger in "
        "absolute terms. Tokens must be equal."
    ),
)
_FP16_ENCODER = _Limits(
    min_cosine=0.9999,
    max_abs=0.05,
    row_min_cosine=0.9999,
    row_max_abs=0.05,
    token_error_rate=0.01,
    word_error_rate=0.01,
    reason=(
        "Half precision keeps 11 bits. Measured: lowest cosine 0.999998, largest difference 0.006; kernels that sum in "
        "FP16 get room for ten times that. One near-tie in a hundred tokens may flip. A wrong kernel is below 0.99."
    ),
)
_FP16_LOGPROBS = _Limits(
    min_cosine=0.9999,
    max_abs=0.5,
    row_min_cosine=0.9999,
    row_max_abs=0.5,
    token_error_rate=0.01,
    word_error_rate=0.01,
    reason=(
        "As FP16 encoder frames. Measured: 0.03, on log-probabilities below -20, which decide nothing; hence the "
        "wide absolute limit, and the cosine carries the check."
    ),
)
_BF16_ENCODER = _Limits(
    min_cosine=0.998,
    max_abs=0.4,
    row_min_cosine=0.998,
    row_max_abs=0.4,
    token_error_rate=0.02,
    word_error_rate=0.02,
    reason=(
        "bfloat16 keeps 8 bits, 3 fewer than FP16: differences are 8 times as large. Measured with every stored value "
        "rounded: lowest cosine 0.99978, largest difference 0.08. A wrong kernel is below 0.99."
    ),
)
_BF16_LOGPROBS = _Limits(
    min_cosine=0.999,
    max_abs=2.0,
    row_min_cosine=0.999,
    row_max_abs=2.0,
    token_error_rate=0.02,
    word_error_rate=0.02,
    reason=(
        "As BF16 encoder frames. Measured: lowest cosine 0.99999, and 0.3 on log-probabilities below -20, which decide "
        "nothing; the cosine carries the check."
    ),
)
_EIGHT_BIT_ENCODER = _Limits(
    min_cosine=0.9,
    max_abs=5.0,
    row_min_cosine=0.95,
    row_max_abs=5.0,
    token_error_rate=0.02,
    word_error_rate=0.02,
    reason=(
        "Eight bits are judged by tokens and words: one in fifty may change. Frames only have to be those of the same "
        "audio. Measured on the demo clips, joined up to 46 s, int8 and fp8: lowest cosine 0.997 and 0.994, largest "
        "difference 0.4 and 0.5; wider models have larger outliers. A wrong kernel sits at 0.35."
    ),
)
_EIGHT_BIT_LOGPROBS = _Limits(
    min_cosine=0.9,
    max_abs=20.0,
    row_min_cosine=0.95,
    row_max_abs=20.0,
    token_error_rate=0.02,
    word_error_rate=0.02,
    reason=(
        "As eight-bit encoder frames. Measured: lowest cosine 0.9999, largest difference 1.1, on log-probabilities "
        "that decide nothing. Tokens and words carry the check."
    ),
)


_LIMITS: dict[tuple[Precision, ComparedTensor], _Limits] = {
    ("fp32", "encoder"): _FP32_ENCODER,
    ("fp16", "encoder"): _FP16_ENCODER,
    ("bf16", "encoder"): _BF16_ENCODER,
    ("fp32", "logprobs"): _FP32_LOGPROBS,
    ("fp16", "logprobs"): _FP16_LOGPROBS,
    ("bf16", "logprobs"): _BF16_LOGPROBS,
    ("int8", "encoder"): _EIGHT_BIT_ENCODER,
    ("int8", "logprobs"): _EIGHT_BIT_LOGPROBS,
    ("fp8", "encoder"): _EIGHT_BIT_ENCODER,
    ("fp8", "logprobs"): _EIGHT_BIT_LOGPROBS,
}


def _tensors(family: str) -> tuple[ComparedTensor, ...]:
    """A hybrid is compared by both of its heads."""
    if "hybrid" in family:
        return ("encoder", "logprobs")
    return ("logprobs",) if family.endswith("-ctc") else ("encoder",)


# Layers are normalised in every family, so one limit holds for all of them; a family that differs gets rows of its own.
TABLE: tuple[Tolerance, ...] = tuple(
    Tolerance(family=family, precision=precision, tensor=tensor, **vars(limits))
    for family in get_args(Family)
    for (precision, tensor), limits in _LIMITS.items()
    if tensor in _tensors(family)
)


def tolerance_for(family: str, precision: str, *, decoder: str) -> Tolerance:
    """The row for a candidate of ``precision``, decoded by ``ctc``, ``rnnt`` or ``tdt``.

    Raises:
        UsageError: the table has no such row; a comparison without a limit proves nothing.
    """
    tensor: ComparedTensor = "logprobs" if decoder == "ctc" else "encoder"
    for row in TABLE:
        if (row.family, row.precision, row.tensor) == (family, precision, tensor):
            return row
    raise UsageError(
        "there is no tolerance for this comparison",
        where="bench/tolerances.py",
        found=f"family {family}, precision {precision}, decoder {decoder}",
        fix=f"families with tolerances: {', '.join(get_args(Family))}; add a row with its reason for another",
    )


@dataclass(frozen=True)
class TensorTolerance:
    """For a tensor inside of a graph: the largest difference over the largest element.

    Roundings add up like steps of a random walk, so the limit grows with the root of the number of operators before it.
    """

    unit: float
    reason: str

    def at(self, depth: int) -> float:
        """The limit behind ``depth`` operators."""
        return self.unit * math.sqrt(depth)


_TENSORS: dict[Precision, TensorTolerance] = {
    "fp32": TensorTolerance(
        64 * 2.0**-24,
        "FP32 keeps 24 bits; a product of 1000 elements in another order is off by some ten units of the last.",
    ),
    "fp16": TensorTolerance(
        6 * 2.0**-11,
        "FP16 keeps 11 bits. Measured on the demo TDT encoder in ONNX Runtime: at most 1.6 units and the root of the "
        "depth, behind a softmax; kernels that round every sum get room for four times that.",
    ),
}


def tensor_tolerance_for(reference: str, candidate: str) -> TensorTolerance:
    """The limit between graphs of two precisions: that of the coarser one.

    Raises:
        UsageError: the table has no row for one of them.
    """
    known = {str(name): tolerance for name, tolerance in _TENSORS.items()}
    missing = [precision for precision in (reference, candidate) if precision not in known]
    if missing:
        raise UsageError(
            "there is no tolerance for tensors of this precision",
            where="bench/tolerances.py",
            found=missing[0],
            fix=f"precisions with tolerances: {', '.join(known)}; add a row with its reason for another",
        )
    return max(known[reference], known[candidate], key=lambda tolerance: tolerance.unit)

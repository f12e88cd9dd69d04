from __future__ import annotations

from typing import get_args

import pytest

from nemotrt.bench.tolerances import TABLE, tolerance_for
from nemotrt.bundle import Family, Precision
from nemotrt.errors import UsageError


def test_every_row_has_its_own_key_and_a_reason() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert all(len(row.reason) > 40 for row in TABLE)


def test_every_family_and_precision_of_the_contract_has_a_row() -> None:
    known = {(row.family, row.precision) for row in TABLE}
    assert known == {(family, precision) for family in get_args(Family) for precision in get_args(Precision)}


def test_full_precision_allows_no_other_token_and_half_precision_is_wider() -> None:
    for row in TABLE:
        if row.precision == "fp32":
            half = next(r for r in TABLE if (r.family, r.precision, r.tensor) == (row.family, "fp16", row.tensor))
            assert row.token_error_rate == row.word_error_rate == 0.0
            assert row.min_cosine > half.min_cosine
            assert row.max_abs < half.max_abs
            brain = next(r for r in TABLE if (r.family, r.precision, r.tensor) == (row.family, "bf16", row.tensor))
            assert half.min_cosine > brain.min_cosine
            assert half.max_abs < brain.max_abs


def test_eight_bits_are_judged_by_tokens_and_not_by_frames() -> None:
    for row in TABLE:
        if row.precision in ("int8", "fp8"):
            half = next(r for r in TABLE if (r.family, r.precision, r.tensor) == (row.family, "fp16", row.tensor))
            assert row.min_cosine < half.min_cosine < 1
            assert 0 < row.token_error_rate <= 0.02
            assert 0 < row.word_error_rate <= 0.02


def test_the_ctc_decoder_is_judged_on_its_log_probabilities() -> None:
    family = "fastconformer-hybrid-rnnt-ctc"
    assert tolerance_for(family, "fp16", decoder="ctc").tensor == "logprobs"
    assert tolerance_for(family, "fp16", decoder="rnnt").tensor == "encoder"


@pytest.mark.parametrize(
    ("family", "precision", "decoder"),
    [("whisper", "fp32", "ctc"), ("fastconformer-tdt", "int4", "tdt"), ("fastconformer-tdt", "fp32", "ctc")],
)
def test_a_comparison_without_a_row_is_refused(family: str, precision: str, decoder: str) -> None:
    with pytest.raises(UsageError, match="no tolerance"):
        tolerance_for(family, precision, decoder=decoder)

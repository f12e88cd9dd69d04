"""Every level of a comparison can fail, for the right reason; an equal candidate passes all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nemotrt.bench.compare import compare, compare_recorded
from nemotrt.bench.results import Comparison
from nemotrt.bench.system import System
from nemotrt.bench.tolerances import Tolerance, tolerance_for
from nemotrt.bench.utterance import Utterance, ragged_batches
from nemotrt.engines.audio import Recorded
from nemotrt.errors import UsageError

Altered = Callable[..., System]
Outputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def tolerance() -> Tolerance:
    return tolerance_for("fastconformer-ctc", "fp32", decoder="ctc")


def failed_checks(comparison: Comparison) -> set[str]:
    return {check.name for check in comparison.checks if check.state == "fail"}


def finding(comparison: Comparison, name: str) -> str:
    return next(check.finding for check in comparison.checks if check.name == name)


def test_the_same_model_passes_every_level(reference, utterances, tolerance) -> None:
    result = compare(reference, System("again", reference.transcriber), utterances, tolerance=tolerance)
    assert result.verdict == "pass"
    assert result.reasons == ()
    assert {check.state for check in result.checks} == {"pass"}
    assert [row.clip for row in result.clips] == [u.clip.name for u in utterances]
    assert result.differing == ()
    assert result.between_wer.errors == 0
    assert result.candidate_wer.rate == 0.0


def test_the_tiny_model_says_enough_to_prove_anything(reference, utterances) -> None:
    tokens = [reference.transcriber.transcribe([u.waveform])[0].hypothesis.token_ids for u in utterances]
    assert min(map(len, tokens)) >= 5
    assert len(set(tokens)) == len(tokens)


def test_weights_rounded_to_half_precision_pass_the_half_precision_limits(reference, utterances, system_of) -> None:
    limits = tolerance_for("fastconformer-ctc", "fp16", decoder="ctc")
    result = compare(reference, system_of(half=True), utterances, tolerance=limits)
    assert result.verdict == "pass", result.reasons
    assert max(row.frames.max_abs for row in result.clips) > 0


def test_frames_shifted_by_one_fail_the_frame_level(reference, utterances, tolerance, altered) -> None:
    def shift(outputs: Outputs) -> Outputs:
        return outputs | {"logprobs": np.roll(outputs["logprobs"], 1, axis=1)}

    result = compare(reference, altered(shift), utterances, tolerance=tolerance)
    assert result.verdict == "fail"
    assert "frames" in failed_checks(result)
    assert "lengths" not in failed_checks(result)
    assert "lowest cosine" in finding(result, "frames")


def test_swapped_rows_fail_the_row_level_only(reference, utterances, tolerance, altered) -> None:
    def swap(outputs: Outputs) -> Outputs:
        return {name: values[::-1].copy() for name, values in outputs.items()}

    result = compare(reference, altered(swap), utterances, tolerance=tolerance)
    assert failed_checks(result) == {"rows"}
    assert result.reasons[0].startswith("encoded length depends on the batch neighbours for clip")


def test_rows_swapped_with_their_lengths_kept_fail_the_row_level(reference, utterances, tolerance, altered) -> None:
    def swap(outputs: Outputs) -> Outputs:
        return outputs | {"logprobs": outputs["logprobs"][::-1].copy()}

    result = compare(reference, altered(swap), utterances, tolerance=tolerance)
    assert failed_checks(result) == {"rows"}
    assert "tokens depend on the batch neighbours" in result.reasons[0]


def test_a_missing_padding_mask_fails_the_row_level_only(reference, utterances, tolerance, system_of) -> None:
    leaky = system_of(masked=False)
    result = compare(reference, leaky, utterances, tolerance=tolerance)
    assert failed_checks(result) == {"rows"}


def test_a_wrong_length_fails_the_length_level_and_says_which(reference, utterances, tolerance, altered) -> None:
    def shorten(outputs: Outputs) -> Outputs:
        return outputs | {"encoded_lengths": outputs["encoded_lengths"] - 1}

    result = compare(reference, altered(shorten), utterances, tolerance=tolerance)
    assert "lengths" in failed_checks(result)
    assert "frames" not in failed_checks(result)
    first = result.clips[0]
    expected = f"{first.clip}: {first.reference_length - 1} frames, {first.reference_length} expected"
    assert expected in finding(result, "lengths")


def test_a_length_beyond_the_frames_is_a_failed_comparison_not_a_crash(
    reference, utterances, tolerance, altered
) -> None:
    def lengthen(outputs: Outputs) -> Outputs:
        return outputs | {"encoded_lengths": outputs["encoded_lengths"] + 10_000}

    result = compare(reference, altered(lengthen), utterances, tolerance=tolerance)
    assert result.verdict == "fail"
    assert result.clips == ()
    assert "cannot be decoded" in result.reasons[0]
    assert failed_checks(result) == {check.name for check in result.checks}


def test_nan_in_one_frame_fails_the_finite_level(reference, utterances, tolerance, altered) -> None:
    def poison(outputs: Outputs) -> Outputs:
        logprobs = outputs["logprobs"].copy()
        logprobs[:, 2, -1] = np.nan
        return outputs | {"logprobs": logprobs}

    result = compare(reference, altered(poison), utterances, tolerance=tolerance)
    assert "finite" in failed_checks(result)
    assert f"{len(utterances)} of {len(utterances)} clips" in finding(result, "finite")
    assert None in result.clips[0].frames.profile


def test_nan_in_padded_rows_of_a_batch_only_fails_the_finite_level(reference, utterances, tolerance, altered) -> None:
    def poison_batches(outputs: Outputs) -> Outputs:
        logprobs = outputs["logprobs"].copy()
        if len(logprobs) > 1:
            logprobs[0, 0] = np.nan
        return outputs | {"logprobs": logprobs}

    result = compare(reference, altered(poison_batches), utterances, tolerance=tolerance)
    assert "finite" in failed_checks(result)
    assert "frames" not in failed_checks(result)


def test_all_nan_leaves_no_frame_level_to_pass(reference, utterances, tolerance, altered) -> None:
    def poison(outputs: Outputs) -> Outputs:
        return outputs | {"logprobs": np.full_like(outputs["logprobs"], np.nan)}

    result = compare(reference, altered(poison), utterances, tolerance=tolerance)
    assert {"finite", "frames", "rows"} <= failed_checks(result)
    assert "no finite frame" in finding(result, "frames")


def test_permuted_labels_fail_the_token_and_text_levels(reference, utterances, tolerance, altered) -> None:
    def permute(outputs: Outputs) -> Outputs:
        logprobs = outputs["logprobs"]
        return outputs | {"logprobs": np.concatenate([logprobs[..., :-1][..., ::-1], logprobs[..., -1:]], -1)}

    result = compare(reference, altered(permute), utterances, tolerance=tolerance)
    assert {"tokens", "text"} <= failed_checks(result)
    assert len(result.differing) == len(utterances)


def test_a_permuted_vocabulary_fails_the_text_level_only(reference, utterances, tolerance, system_of) -> None:
    result = compare(reference, system_of(pieces="hgfedcba "), utterances, tolerance=tolerance)
    assert failed_checks(result) == {"text"}
    assert result.candidate_wer.rate > 0
    assert result.clips[0].changes


def test_a_difference_inside_of_the_limit_passes_and_just_outside_of_it_fails(
    reference, utterances, tolerance, altered
) -> None:
    def nudge(amount: float) -> Callable[[Outputs], Outputs]:
        return lambda outputs: outputs | {"logprobs": outputs["logprobs"] + np.float32(amount)}

    inside = compare(reference, altered(nudge(tolerance.max_abs * 0.9)), utterances, tolerance=tolerance)
    outside = compare(reference, altered(nudge(tolerance.max_abs * 1.1)), utterances, tolerance=tolerance)
    assert inside.verdict == "pass"
    assert failed_checks(outside) == {"frames"}


def test_a_single_clip_gets_a_neighbour_to_be_padded_by(reference, utterances, tolerance, system_of) -> None:
    result = compare(reference, reference, utterances[:1], tolerance=tolerance)
    assert result.verdict == "pass"
    assert result.clips[0].alone_and_batched.batch_size == 2


@pytest.mark.parametrize(("count", "size"), [(1, 4), (2, 2), (3, 2), (5, 4), (5, 2), (5, 16)])
def test_ragged_batches_hold_every_clip_once_with_neighbours(utterances, count: int, size: int) -> None:
    batches = ragged_batches(utterances[:count], size=size)
    names = [u.clip.name for batch in batches for u in batch if not u.clip.name.startswith("first half")]
    assert sorted(names) == sorted(u.clip.name for u in utterances[:count])
    for batch in batches:
        assert 2 <= len(batch) <= size
        assert len({len(u.waveform.samples) for u in batch}) > 1


def test_recorded_tokens_of_the_same_model_are_equal(reference, utterances) -> None:
    result = compare_recorded(reference, utterances)
    assert result.verdict == "pass"
    assert {c.name for c in result.checks if c.state == "not checked"} == {"lengths", "frames", "rows"}
    assert result.tolerance is None


def test_one_recorded_token_that_differs_fails_and_names_the_clip(reference, utterances) -> None:
    broken = with_recorded(utterances[1], lambda r: replace(r, token_ids=(*r.token_ids[:-1], 0)))
    result = compare_recorded(reference, [utterances[0], broken])
    assert failed_checks(result) == {"tokens"}
    assert broken.clip.name in result.reasons[0]


def test_a_recorded_text_that_differs_fails_the_text_level(reference, utterances) -> None:
    broken = with_recorded(utterances[1], lambda r: replace(r, text=f"{r.text} more"))
    assert failed_checks(compare_recorded(reference, [broken])) == {"text"}


def test_clips_without_a_record_are_named_and_none_at_all_is_an_error(reference, utterances) -> None:
    bare = replace(utterances[0], clip=replace(utterances[0].clip, recorded={}))
    assert compare_recorded(reference, [bare, *utterances[1:]]).left_out == (bare.clip.name,)
    with pytest.raises(UsageError, match="no clip has recorded ctc tokens"):
        compare_recorded(reference, [bare])


def test_requests_that_prove_nothing_are_refused(reference, utterances, tolerance) -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        compare(reference, reference, [], tolerance=tolerance)
    with pytest.raises(UsageError, match="neighbours"):
        compare(reference, reference, utterances, tolerance=tolerance, batch_size=1)
    with pytest.raises(UsageError, match="same name"):
        compare(reference, reference, [utterances[0], utterances[0]], tolerance=tolerance)


def test_progress_goes_from_nothing_to_done(reference, utterances, tolerance) -> None:
    seen: list[float] = []
    compare(reference, reference, utterances, tolerance=tolerance, on_progress=lambda _, done: seen.append(done))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


def with_recorded(utterance: Utterance, change: Callable[[Recorded], Recorded]) -> Utterance:
    recorded = {decoder: change(record) for decoder, record in utterance.clip.recorded.items()}
    return replace(utterance, clip=replace(utterance.clip, recorded=recorded))

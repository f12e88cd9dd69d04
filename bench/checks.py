"""The verdict: clip rows and a tolerance in, one check per level out.

    decodes   lengths and shapes a decoder accepts        rows     a clip alone = the same clip in a batch
    lengths   exact, always                               tokens   edits per reference token
    finite    no NaN, no Inf                              text     edits per reference word
    frames    cosine and absolute difference

A check that found nothing to look at fails; ``not checked`` is only for levels a record of tokens cannot
show, and for rows where there is but one. Each finding names the clip that decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nemotrt.bench.results import Check, CheckName, ClipRow, ErrorCount
from nemotrt.bench.tolerances import Tolerance
from nemotrt.bench.word_errors import NO_ERRORS, word_errors


def check_decodable(undecodable: Mapping[str, str], clips: int) -> Check:
    """Nothing may have been refused by the decoder; ``undecodable`` has clip or batch to reason."""
    if not undecodable:
        return Check(name="decodes", state="pass", finding=f"{_clips(clips)} decoded")
    what, why = next(iter(undecodable.items()))
    more = f", and {len(undecodable) - 1} more" if len(undecodable) > 1 else ""
    return Check(name="decodes", state="fail", finding=f"output cannot be decoded for {what}: {why}{more}")


def check_lengths(rows: Sequence[ClipRow]) -> Check:
    """Encoded lengths are integers and must be equal on every clip."""
    if not rows:
        return _nothing("lengths")
    wrong = [row for row in rows if row.candidate_length != row.reference_length]
    if not wrong:
        return Check(name="lengths", state="pass", finding=f"encoded lengths equal on {_clips(len(rows))}")
    first = wrong[0]
    return Check(
        name="lengths",
        state="fail",
        finding=(
            f"encoded length differs on {len(wrong)} of {_clips(len(rows))}; "
            f"{first.clip}: {first.candidate_length} frames, {first.reference_length} expected"
        ),
    )


def check_finite(rows: Sequence[ClipRow]) -> Check:
    """No NaN and no Inf in any valid frame, alone or batched."""
    if not rows:
        return _nothing("finite")
    broken = [row.clip for row in rows if not row.finite]
    if not broken:
        return Check(name="finite", state="pass", finding=f"no NaN or Inf on {_clips(len(rows))}")
    return Check(
        name="finite",
        state="fail",
        finding=f"NaN or Inf in the frames of {len(broken)} of {_clips(len(rows))}: {_names(broken)}",
    )


def check_frames(rows: Sequence[ClipRow], tolerance: Tolerance) -> Check:
    """Every valid frame of every clip within ``min_cosine`` and ``max_abs``."""
    measured = [(row.clip, row.frames.min_cosine, row.frames.max_abs) for row in rows if row.frames]
    return _check_agreement("frames", "frames", measured, tolerance.min_cosine, tolerance.max_abs)


def check_rows(rows: Sequence[ClipRow], tolerance: Tolerance) -> Check:
    """A clip alone and the same clip in a padded batch: equal length, tokens and frames within ``row_*``."""
    batched = [(row.clip, row.alone_and_batched) for row in rows if row.alone_and_batched]
    if not batched:
        return Check(name="rows", state="fail", finding="no clip was run both alone and in a batch")
    lengths = [clip for clip, row in batched if not row.same_length]
    if lengths:
        finding = f"encoded length depends on the batch neighbours for {_names(lengths)}"
        return Check(name="rows", state="fail", finding=finding)
    tokens = sum((row.tokens for _, row in batched), start=NO_ERRORS)
    if not tokens.within(tolerance.token_error_rate):
        changed = [clip for clip, row in batched if row.tokens.errors]
        finding = f"tokens depend on the batch neighbours for {_names(changed)} ({_edits(tokens, 'tokens')})"
        return Check(name="rows", state="fail", finding=finding)
    measured = [(clip, row.min_cosine, row.max_abs) for clip, row in batched]
    label = "alone against batched, frames"
    return _check_agreement("rows", label, measured, tolerance.row_min_cosine, tolerance.row_max_abs)


def check_tokens(rows: Sequence[ClipRow], *, limit: float) -> Check:
    """Token edits over all clips at most ``limit`` per reference token."""
    if not rows:
        return _nothing("tokens")
    equal = sum(not row.tokens.errors for row in rows)
    total = sum((row.tokens for row in rows), start=NO_ERRORS)
    changed = [row.clip for row in rows if row.tokens.errors]
    tail = f"; different on {_names(changed)}" if changed else ""
    return Check(
        name="tokens",
        state="pass" if total.within(limit) else "fail",
        finding=(
            f"token ids equal on {equal} of {_clips(len(rows))}, {_edits(total, 'tokens')}, limit {limit:.2%}{tail}"
        ),
    )


def check_text(rows: Sequence[ClipRow], *, limit: float) -> Check:
    """Word edits between the two texts at most ``limit`` per word, which bounds the rise of WER as well."""
    if not rows:
        return _nothing("text")
    total = word_errors((row.reference_text, row.candidate_text) for row in rows)
    changed = [row.clip for row in rows if row.reference_text != row.candidate_text]
    tail = f"; different on {_names(changed)}" if changed else ""
    exact_only = limit == 0.0 and bool(changed)
    return Check(
        name="text",
        state="pass" if total.within(limit) and not exact_only else "fail",
        finding=f"{_edits(total, 'words')} between the texts, limit {limit:.2%}{tail}",
    )


def one_row_only() -> Check:
    """The row check of a candidate that takes no batch."""
    return Check(name="rows", state="not checked", finding="the candidate takes one clip at a time")


def tokens_only(name: CheckName) -> Check:
    """The check of a level that a record of tokens says nothing about."""
    return Check(name=name, state="not checked", finding="the record holds tokens and text only")


def _check_agreement(
    name: CheckName,
    label: str,
    measured: Sequence[tuple[str, float | None, float | None]],
    min_cosine: float,
    max_abs: float,
) -> Check:
    """``measured``: clip, lowest cosine, largest absolute difference; ``None`` where nothing was finite."""
    cosines = [(cosine, clip) for clip, cosine, _ in measured if cosine is not None]
    differences = [(difference, clip) for clip, _, difference in measured if difference is not None]
    if not cosines or not differences:
        return Check(name=name, state="fail", finding=f"{label}: no finite frame on both sides to compare")
    (cosine, cosine_clip), (difference, difference_clip) = min(cosines), max(differences)
    if difference == 0:
        return Check(name=name, state="pass", finding=f"{label}: equal bit for bit")
    within = cosine >= min_cosine and difference <= max_abs
    return Check(
        name=name,
        state="pass" if within else "fail",
        finding=(
            f"{label}: lowest cosine {cosine:.7f} ({cosine_clip}), limit {min_cosine}; "
            f"largest difference {difference:.2e} ({difference_clip}), limit {max_abs:g}"
        ),
    )


def _nothing(name: CheckName) -> Check:
    return Check(name=name, state="fail", finding=f"{name}: no clip left to look at")


def _clips(count: int) -> str:
    return f"{count} clip" if count == 1 else f"{count} clips"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _edits(count: ErrorCount, unit: str) -> str:
    rate = "" if count.rate is None else f" ({count.rate:.2%})"
    return f"{count.errors} of {count.length} {unit} changed{rate}"

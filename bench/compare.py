"""The same audio through two transcribers, level by level.

    utterances --+-- reference, each alone ------+
                 +-- candidate, each alone ------+--> lengths, frames, tokens, text, word changes per clip
                 +-- candidate, ragged batches --+--> rows: alone = in a batch            --> checks --> verdict

TensorRT has built wrong encoders and reported success, wrong rows of a batch only, and lengths computed in half
precision: hence one check for each, and exact lengths before any cosine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemotrt.bench import checks
from nemotrt.bench.frames import frame_agreement
from nemotrt.bench.results import Check, ClipRow, Comparison, ErrorCount, RowAgreement, WordChange
from nemotrt.bench.system import Progress, System, silent
from nemotrt.bench.tolerances import Tolerance
from nemotrt.bench.utterance import Utterance, padding_fraction, ragged_batches
from nemotrt.bench.word_errors import align_words, character_errors, token_errors, word_errors
from nemotrt.engines.audio import Recorded
from nemotrt.engines.transcriber import Transcription
from nemotrt.errors import GraphError, UsageError


def compare(
    reference: System,
    candidate: System,
    utterances: Sequence[Utterance],
    *,
    tolerance: Tolerance,
    batch_size: int | None = 4,
    on_progress: Progress = silent,
) -> Comparison:
    """Judge ``candidate`` by ``reference`` on every utterance, within ``tolerance``.

    Ragged batches of up to ``batch_size`` rows (at least 2) must lie inside of the candidate's profile; ``None``
    says that it takes one row only, and rows are not checked. A difference is a result, not an error: see
    ``verdict`` and ``reasons``. Output of the candidate that cannot even be decoded (a length beyond the frames,
    say) fails the comparison by name.

    Raises:
        UsageError: no utterances, a batch of one, or two sides that decode differently.
        AudioError, ProfileError: an utterance lies outside of what the model or an engine takes.
        GraphError: the reference's own output cannot be decoded.
    """
    _check_request(reference, candidate, utterances, batch_size)
    outputs = _Outputs(candidate)
    on_progress(f"{candidate.name}: batches", 0.0)
    batched = {} if batch_size is None else _batched_by_name(outputs, utterances, batch_size)
    rows = []
    for number, utterance in enumerate(utterances):
        on_progress(utterance.clip.name, number / len(utterances))
        expected = reference.transcriber.transcribe([utterance.waveform])[0]
        alone = outputs.alone(utterance)
        if alone is not None:
            rows.append(_clip_row(utterance, expected, alone, batched.get(utterance.clip.name)))
    on_progress("done", 1.0)
    return _conclude(
        reference=reference.name,
        candidate=candidate,
        tolerance=tolerance,
        rows=tuple(rows),
        left_out=(),
        levels=(
            checks.check_decodable(outputs.undecodable, len(utterances)),
            checks.check_lengths(rows),
            checks.check_finite(rows),
            checks.check_frames(rows, tolerance),
            checks.one_row_only() if batch_size is None else checks.check_rows(rows, tolerance),
            checks.check_tokens(rows, limit=tolerance.token_error_rate),
            checks.check_text(rows, limit=tolerance.word_error_rate),
        ),
    )


def compare_recorded(
    candidate: System,
    utterances: Sequence[Utterance],
    *,
    recorded_by: str = "NeMo (recorded)",
    on_progress: Progress = silent,
) -> Comparison:
    """Judge ``candidate`` by the token ids another toolkit wrote beside each clip: equal, with no tolerance.

    Clips without a record for the candidate's decoder are named in ``left_out``.

    Raises:
        UsageError: no clip has a record for this decoder.
    """
    decoder = candidate.transcriber.decoder
    recorded = [(u, r) for u in utterances if (r := u.clip.recorded.get(decoder)) is not None]
    if not recorded:
        raise UsageError(
            f"no clip has recorded {decoder} tokens to compare with",
            found=f"{len(utterances)} clips without a record for this decoder",
            fix=f"give a manifest with nemo_{decoder} and nemo_{decoder}_ids on its lines",
        )
    outputs = _Outputs(candidate)
    rows = []
    for number, (utterance, record) in enumerate(recorded):
        on_progress(utterance.clip.name, number / len(recorded))
        found = outputs.alone(utterance)
        if found is not None:
            rows.append(_recorded_row(utterance, record, found))
    on_progress("done", 1.0)
    return _conclude(
        reference=recorded_by,
        candidate=candidate,
        tolerance=None,
        rows=tuple(rows),
        left_out=tuple(u.clip.name for u in utterances if decoder not in u.clip.recorded),
        levels=(
            checks.check_decodable(outputs.undecodable, len(recorded)),
            checks.tokens_only("lengths"),
            checks.check_finite(rows),
            checks.tokens_only("frames"),
            checks.tokens_only("rows"),
            checks.check_tokens(rows, limit=0.0),
            checks.check_text(rows, limit=0.0),
        ),
    )


def _check_request(
    reference: System, candidate: System, utterances: Sequence[Utterance], batch_size: int | None
) -> None:
    if not utterances:
        raise UsageError("there is nothing to compare", found="no clips", fix="give at least one clip")
    names = [utterance.clip.name for utterance in utterances]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UsageError("two clips have the same name", found=", ".join(twice), fix="rename one of them")
    if batch_size is not None and batch_size < 2:
        raise UsageError(
            "a clip needs neighbours to show that it does not depend on them",
            found=f"batch size {batch_size}",
            fix="give a batch size of 2 or more",
        )
    decoders = (reference.transcriber.decoder, candidate.transcriber.decoder)
    if decoders[0] != decoders[1]:
        raise UsageError(
            "the two sides decode differently",
            found=f"{decoders[0]} against {decoders[1]}",
            fix="choose the same decoder for both",
        )


class _Outputs:
    """The candidate's transcriptions; collects what it could not decode, instead of stopping at it."""

    def __init__(self, candidate: System) -> None:
        self._transcriber = candidate.transcriber
        self.undecodable: dict[str, str] = {}

    def alone(self, utterance: Utterance) -> Transcription | None:
        return self.batch([utterance], what=utterance.clip.name)[0]

    def batch(self, batch: Sequence[Utterance], *, what: str) -> Sequence[Transcription | None]:
        """One transcription a row; all ``None`` where the batch could not be decoded."""
        try:
            return self._transcriber.transcribe([utterance.waveform for utterance in batch])
        except GraphError as exc:
            self.undecodable[what] = f"{exc.what} ({exc.found})" if exc.found else exc.what
            return [None] * len(batch)


@dataclass(frozen=True, eq=False)
class _Batched:
    """A clip's transcription as row ``row`` of a batch; ``padding`` is a fraction."""

    batch_size: int
    row: int
    padding: float
    transcription: Transcription


def _batched_by_name(outputs: _Outputs, utterances: Sequence[Utterance], batch_size: int) -> Mapping[str, _Batched]:
    by_name: dict[str, _Batched] = {}
    for batch in ragged_batches(utterances, size=batch_size):
        longest = max(len(utterance.waveform.samples) for utterance in batch)
        transcriptions = outputs.batch(batch, what=f"the batch of {', '.join(u.clip.name for u in batch)}")
        for row, (utterance, transcription) in enumerate(zip(batch, transcriptions, strict=True)):
            if transcription is not None:
                padding = padding_fraction(len(utterance.waveform.samples), longest)
                by_name[utterance.clip.name] = _Batched(len(batch), row, padding, transcription)
    return by_name


def _clip_row(utterance: Utterance, expected: Transcription, alone: Transcription, batched: _Batched | None) -> ClipRow:
    seen = [expected, alone] if batched is None else [expected, alone, batched.transcription]
    return ClipRow(
        clip=utterance.clip.name,
        seconds=utterance.waveform.seconds,
        truth=utterance.clip.text,
        reference_text=expected.text,
        candidate_text=alone.text,
        reference_length=expected.encoded_length,
        candidate_length=alone.encoded_length,
        tokens=token_errors(expected.hypothesis.token_ids, alone.hypothesis.token_ids),
        finite=all(map(_is_finite, seen)),
        frames=frame_agreement(expected.encoder_output, alone.encoder_output),
        alone_and_batched=None if batched is None else _row_agreement(alone, batched),
        changes=_word_changes(expected.text, alone.text),
    )


def _recorded_row(utterance: Utterance, record: Recorded, found: Transcription) -> ClipRow:
    return ClipRow(
        clip=utterance.clip.name,
        seconds=utterance.waveform.seconds,
        truth=utterance.clip.text,
        reference_text=record.text,
        candidate_text=found.text,
        reference_length=None,
        candidate_length=found.encoded_length,
        tokens=token_errors(record.token_ids, found.hypothesis.token_ids),
        finite=_is_finite(found),
        frames=None,
        alone_and_batched=None,
        changes=_word_changes(record.text, found.text),
    )


def _row_agreement(alone: Transcription, batched: _Batched) -> RowAgreement:
    row = batched.transcription
    agreement = frame_agreement(alone.encoder_output, row.encoder_output)
    return RowAgreement(
        batch_size=batched.batch_size,
        row=batched.row,
        padding=batched.padding,
        same_length=alone.encoded_length == row.encoded_length,
        tokens=token_errors(alone.hypothesis.token_ids, row.hypothesis.token_ids),
        min_cosine=agreement.min_cosine,
        max_abs=agreement.max_abs,
    )


def _is_finite(transcription: Transcription) -> bool:
    return bool(np.isfinite(transcription.encoder_output).all())


def _word_changes(reference: str, candidate: str) -> tuple[WordChange, ...]:
    return tuple(
        WordChange(kind=span.kind, reference=span.reference, candidate=span.hypothesis)
        for span in align_words(reference, candidate)
        if span.kind != "equal"
    )


def _conclude(
    *,
    reference: str,
    candidate: System,
    tolerance: Tolerance | None,
    rows: tuple[ClipRow, ...],
    left_out: tuple[str, ...],
    levels: tuple[Check, ...],
) -> Comparison:
    reasons = tuple(check.finding for check in levels if check.state == "fail")
    between = [(row.reference_text, row.candidate_text) for row in rows]
    reference_and_truth = [(row.truth, row.reference_text) for row in rows if row.truth is not None]
    candidate_and_truth = [(row.truth, row.candidate_text) for row in rows if row.truth is not None]
    return Comparison(
        verdict="fail" if reasons else "pass",
        reasons=reasons,
        reference=reference,
        candidate=candidate.name,
        decoder=candidate.transcriber.decoder,
        tolerance=tolerance,
        checks=levels,
        reference_wer=_known(word_errors(reference_and_truth)),
        candidate_wer=_known(word_errors(candidate_and_truth)),
        between_wer=word_errors(between),
        reference_cer=_known(character_errors(reference_and_truth)),
        candidate_cer=_known(character_errors(candidate_and_truth)),
        between_cer=character_errors(between),
        clips=rows,
        left_out=left_out,
    )


def _known(count: ErrorCount) -> ErrorCount | None:
    """``None`` where no clip has a transcript."""
    return count if count.length else None

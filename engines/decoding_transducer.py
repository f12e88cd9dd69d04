"""Greedy transducer decoding: RNNT (Graves 2012) and TDT (Xu et al. 2023, arXiv:2304.06795).

    encoder_output [B, D, T] --- frame t of each row ---+
                                                        +--> joint --> V+1 token logits [+ duration logits]
    last token --> predictor --> predictor_output ------+

Every active row is at a frame of its own. One step evaluates the joint once for the batch, then for each row:

    token = argmax of the V+1 token logits;   duration = durations[argmax of the duration logits]   (RNNT: 0)
    token is blank  -> frame += max(duration, 1); predictor state untouched
    otherwise       -> token is emitted, predictor takes it; frame += duration, and one frame more
                       after max_symbols tokens on a frame that the duration does not leave

These are the rules of NeMo's batched greedy decoders (``greedy_batch``: ``GreedyBatchedRNNTInfer`` and
``GreedyBatchedTDTInfer``). NeMo's one-by-one ``GreedyTDTInfer`` differs in a corner: it also skips a frame
when the ``max_symbols``-th step on a frame has a duration of its own. Here a duration is never added to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nemotrt.bundle import TransducerSpec
from nemotrt.engines.hypothesis import Hypothesis, check_lengths
from nemotrt.engines.runner import Array, Runner
from nemotrt.errors import GraphError


class GreedyTransducer:
    """Greedy search over a predictor and a joint, RNNT or TDT as the spec says (``durations`` empty or not).

    Rows do not influence each other: a batch gives what each utterance gives alone.
    """

    def __init__(self, predictor: Runner, joint: Runner, *, spec: TransducerSpec, blank_id: int) -> None:
        self._predictor = predictor
        self._joint = joint
        self._spec = spec
        self._blank_id = blank_id
        self._durations = np.asarray(spec.durations, dtype=np.int64)

    def decode(self, encoder_output: Array, lengths: Array) -> tuple[Hypothesis, ...]:
        """The best path of every utterance.

        Args:
            encoder_output: ``[batch, D, encoder_frames]`` float32.
            lengths: ``[batch]``, valid frames of each row; what lies beyond is never read.

        Returns:
            One hypothesis a row. Of equal logits the lowest index wins, as in NeMo.

        Raises:
            GraphError: a length outside of the encoder's output, or a joint of another width than the spec's.
        """
        batch, _, frames = encoder_output.shape
        check_lengths(lengths, frames=frames)
        search = _Search(lengths.astype(np.int64), max_symbols=self._spec.max_symbols_per_frame)
        if search.is_active.any():
            by_frame = np.ascontiguousarray(encoder_output.transpose(0, 2, 1))
            prediction = self._predict_first(batch)
            while search.is_active.any():
                tokens, durations = self._best(by_frame[search.rows, search.readable_frames], prediction)
                emitted = search.advance(tokens, durations, blank_id=self._blank_id)
                # A row that has just ended needs no further prediction.
                takes_token = emitted & search.is_active
                if takes_token.any():
                    prediction = self._predict(tokens, prediction, takes_token)
        return search.hypotheses()

    def _best(self, encoder_frames: Array, prediction: _Prediction) -> tuple[Array, Array]:
        """Best token and its duration, both ``[batch]``, for ``encoder_frames`` ``[batch, D]``."""
        logits = self._joint.run({"encoder_output": encoder_frames[:, :, None], "predictor_output": prediction.output})[
            "joint_output"
        ]
        pieces, batch = self._blank_id + 1, encoder_frames.shape[0]
        expected = (batch, 1, 1, pieces + self._durations.size)
        if logits.shape != expected:
            raise GraphError(
                "the joint's output does not fit the bundle's vocabulary and durations",
                where="joint_output",
                found=f"shape {logits.shape}, {expected} expected",
                fix="export the checkpoint again",
            )
        row_logits = logits[:, 0, 0]
        tokens = row_logits[:, :pieces].argmax(axis=1)
        if not self._durations.size:
            return tokens, np.zeros(batch, dtype=np.int64)
        return tokens, self._durations[row_logits[:, pieces:].argmax(axis=1)]

    def _predict_first(self, batch: int) -> _Prediction:
        """Prime the predictor as in training: blank (an embedding of zeros) and a state of zeros."""
        shape = (self._spec.predictor_layers, batch, self._spec.predictor_hidden)
        zeros = np.zeros(shape, dtype=np.float32)
        return self._run_predictor(np.full(batch, self._blank_id), h=zeros, c=zeros)

    def _predict(self, tokens: Array, last: _Prediction, takes_token: Array) -> _Prediction:
        """The next prediction of the rows in ``takes_token``; the other rows keep their last one."""
        new = self._run_predictor(np.where(takes_token, tokens, self._blank_id), h=last.h, c=last.c)
        is_row = takes_token[:, None]
        return _Prediction(
            output=np.where(is_row[:, :, None], new.output, last.output),
            h=np.where(is_row, new.h, last.h),
            c=np.where(is_row, new.c, last.c),
        )

    def _run_predictor(self, tokens: Array, *, h: Array, c: Array) -> _Prediction:
        outputs = self._predictor.run({"y": tokens.astype(np.int64)[:, None], "h": h, "c": c})
        return _Prediction.from_outputs(outputs)


@dataclass(frozen=True, eq=False)
class _Prediction:
    """After the last emitted token: predictor output ``[batch, H, 1]``, LSTM state ``[layers, batch, H]``."""

    output: Array
    h: Array
    c: Array

    @classmethod
    def from_outputs(cls, outputs: Mapping[str, Array]) -> _Prediction:
        return cls(output=outputs["g"], h=outputs["h_out"], c=outputs["c_out"])


class _Search:
    """Where every row of a batch stands: the one mutable state of a decode, made and dropped inside of it."""

    def __init__(self, lengths: Array, *, max_symbols: int) -> None:
        batch = len(lengths)
        self.rows = np.arange(batch)
        self._lengths = lengths
        self._max_symbols = max_symbols
        self._frames = np.zeros(batch, dtype=np.int64)
        self._symbols_on_frame = np.zeros(batch, dtype=np.int64)
        self._found: list[tuple[list[int], list[int]]] = [([], []) for _ in range(batch)]

    @property
    def is_active(self) -> Array:
        active: Array = self._frames < self._lengths
        return active

    @property
    def readable_frames(self) -> Array:
        """Each row's frame; rows that have ended read a frame that exists, and nothing comes of it."""
        return np.where(self.is_active, self._frames, 0)

    def advance(self, tokens: Array, durations: Array, *, blank_id: int) -> Array:
        """Record the tokens and move on. Returns which rows emitted, ``[batch]`` bool."""
        is_active = self.is_active
        is_blank = tokens == blank_id
        emitted: Array = is_active & ~is_blank
        for row in np.flatnonzero(emitted):
            token_ids, frames = self._found[row]
            token_ids.append(int(tokens[row]))
            frames.append(int(self._frames[row]))
        symbols = self._symbols_on_frame + emitted
        must_move = is_blank | (symbols >= self._max_symbols)
        steps = np.where(is_active, np.where(must_move, np.maximum(durations, 1), durations), 0)
        self._frames = self._frames + steps
        self._symbols_on_frame = np.where(steps > 0, 0, symbols)
        return emitted

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        return tuple(Hypothesis(tuple(token_ids), tuple(frames)) for token_ids, frames in self._found)

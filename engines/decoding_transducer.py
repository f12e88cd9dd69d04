"""Greedy transducer decoding: RNNT (Graves 2012) and TDT (Xu et al. 2023, arXiv:2304.06795).

    encoder_output [B, D, T] --- frame t of each row ---+
                                                        +--> joint --> V+1 token logits [+ duration logits]
    last token --> predictor --> predictor_output ------+

Every active row is at a frame of its own. One step evaluates the joint once for the batch, then for each row:

    token = argmax of the V+1 token logits;   duration = durations[argmax of the duration logits]   (RNNT: 0)
    token is blank  -> frame += max(duration, 1); predictor state untouched
    otherwise       -> token is emitted, predictor takes it; frame += duration, and one frame more
                       after max_symbols tokens on a frame that the duration does not leave

A search goes on where it stopped when more frames come: the state, the last token and what is left of a duration that
reaches beyond the frames so far are kept.

These are the rules of NeMo's batched greedy decoders (``greedy_batch``: ``GreedyBatchedRNNTInfer`` and
``GreedyBatchedTDTInfer``). NeMo's one-by-one ``GreedyTDTInfer`` differs in a corner: it also skips a frame
when the ``max_symbols``-th step on a frame has a duration of its own. Here a duration is never added to.
"""

from __future__ import annotations

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
        return self.start(len(encoder_output)).push(encoder_output, lengths)

    def start(self, batch: int) -> TransducerSearch:
        """A search over ``batch`` rows whose frames are still to come."""
        shape = (self._spec.predictor_layers, batch, self._spec.predictor_hidden)
        zeros = np.zeros(shape, dtype=np.float32)
        nothing = _Prediction(output=zeros[0][:, :, None], h=zeros, c=zeros)
        return TransducerSearch(self, nothing, blank_id=self._blank_id, max_symbols=self._spec.max_symbols_per_frame)

    def best(self, encoder_frames: Array, prediction: _Prediction) -> tuple[Array, Array]:
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

    def predict(self, tokens: Array, last: _Prediction, takes_token: Array) -> _Prediction:
        """The next prediction of the rows in ``takes_token``; the other rows keep their last one."""
        fed = np.where(takes_token, tokens, self._blank_id).astype(np.int64)
        outputs = self._predictor.run({"y": fed[:, None], "h": last.h, "c": last.c})
        is_row = takes_token[:, None]
        return _Prediction(
            output=np.where(is_row[:, :, None], outputs["g"], last.output),
            h=np.where(is_row, outputs["h_out"], last.h),
            c=np.where(is_row, outputs["c_out"], last.c),
        )


@dataclass(frozen=True, eq=False)
class _Prediction:
    """After the last emitted token: predictor output ``[batch, H, 1]``, LSTM state ``[layers, batch, H]``."""

    output: Array
    h: Array
    c: Array


class TransducerSearch:
    """Where every row of a batch stands in its audio. Made by :meth:`GreedyTransducer.start`.

    Whatever the frames are cut into, all pushes together give what one push of all of them gives.
    """

    def __init__(self, model: GreedyTransducer, prediction: _Prediction, *, blank_id: int, max_symbols: int) -> None:
        batch = prediction.h.shape[1]
        self._model = model
        self._prediction = prediction
        self._blank_id = blank_id
        self._max_symbols = max_symbols
        # Primed as in training: blank (an embedding of zeros) on a state of zeros.
        self._last_tokens = np.full(batch, blank_id)
        self._is_unpredicted = np.ones(batch, dtype=bool)
        self._pushed = np.zeros(batch, dtype=np.int64)
        self._frames = np.zeros(batch, dtype=np.int64)
        self._symbols_on_frame = np.zeros(batch, dtype=np.int64)

    def push(self, encoder_output: Array, lengths: Array) -> tuple[Hypothesis, ...]:
        """The tokens of further frames; shapes and errors as :meth:`GreedyTransducer.decode`.

        ``frames`` of the hypotheses count from the first frame of the first push.
        """
        check_lengths(lengths, frames=encoder_output.shape[2])
        by_frame = np.ascontiguousarray(encoder_output.transpose(0, 2, 1))
        first, rows = self._pushed, np.arange(len(lengths))
        self._pushed = first + lengths
        found: list[tuple[list[int], list[int]]] = [([], []) for _ in rows]
        while (is_active := self._frames < self._pushed).any():
            self._predict(is_active)
            # Rows that have ended read a frame that exists, and nothing comes of it.
            frames = by_frame[rows, np.where(is_active, self._frames - first, 0)]
            tokens, durations = self._model.best(frames, self._prediction)
            for row in np.flatnonzero(is_active & (tokens != self._blank_id)):
                found[row][0].append(int(tokens[row]))
                found[row][1].append(int(self._frames[row]))
            self._advance(tokens, durations, is_active)
        return tuple(Hypothesis(tuple(token_ids), tuple(frames)) for token_ids, frames in found)

    def _predict(self, is_active: Array) -> None:
        """Give the predictor the last tokens, but not of rows that have ended: they may have heard all there is."""
        takes_token = self._is_unpredicted & is_active
        if takes_token.any():
            self._prediction = self._model.predict(self._last_tokens, self._prediction, takes_token)
            self._is_unpredicted = self._is_unpredicted & ~takes_token

    def _advance(self, tokens: Array, durations: Array, is_active: Array) -> None:
        is_blank = tokens == self._blank_id
        emitted = is_active & ~is_blank
        self._last_tokens = np.where(emitted, tokens, self._last_tokens)
        self._is_unpredicted = self._is_unpredicted | emitted
        symbols = self._symbols_on_frame + emitted
        must_move = is_blank | (symbols >= self._max_symbols)
        steps = np.where(is_active, np.where(must_move, np.maximum(durations, 1), durations), 0)
        self._frames = self._frames + steps
        self._symbols_on_frame = np.where(steps > 0, 0, symbols)

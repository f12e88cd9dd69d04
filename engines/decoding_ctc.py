"""Greedy CTC decoding (Graves et al. 2006, "best path").

    logprobs [B, T, V+1] -> best label of each frame -> runs of one label become one token -> blanks go

NeMo's ``GreedyBatchedCTCInfer``, folded, gives the same tokens. The last label is kept for the frames that come later:
its run may go on in them.
"""

from __future__ import annotations

import numpy as np

from nemotrt.engines.hypothesis import Hypothesis, check_lengths
from nemotrt.engines.runner import Array
from nemotrt.errors import GraphError


def greedy_ctc(logprobs: Array, lengths: Array, *, blank_id: int) -> tuple[Hypothesis, ...]:
    """The best path of every utterance.

    Args:
        logprobs: ``[batch, encoder_frames, V+1]``. Raw logits do as well, as only their order in a frame
            counts.
        lengths: ``[batch]``, valid frames of each row; what lies beyond is never read.
        blank_id: ``V``, the last label.

    Returns:
        One hypothesis a row. A token's frame is the first of its run. Of equal labels the lowest id wins, as
        in NeMo.

    Raises:
        GraphError: the logprobs are not of this shape, or a length lies outside of them.
    """
    return CtcSearch(len(logprobs), blank_id=blank_id).push(logprobs, lengths)


class CtcSearch:
    """Where every row of a batch stands in its audio: all pushes together give what one push of all frames gives."""

    def __init__(self, batch: int, *, blank_id: int) -> None:
        self._blank_id = blank_id
        self._last_labels = np.full(batch, blank_id)
        self._pushed = np.zeros(batch, dtype=np.int64)

    def push(self, logprobs: Array, lengths: Array) -> tuple[Hypothesis, ...]:
        """The tokens of further frames; shapes and errors as :func:`greedy_ctc`.

        ``frames`` of the hypotheses count from the first frame of the first push.
        """
        self._check(logprobs, lengths)
        labels = np.concatenate([self._last_labels[:, None], logprobs.argmax(axis=2)], axis=1)
        is_valid = np.arange(logprobs.shape[1]) < lengths[:, None]
        is_token = (labels[:, 1:] != labels[:, :-1]) & is_valid & (labels[:, 1:] != self._blank_id)
        found = tuple(
            _hypothesis(row, frames, first=first)
            for row, frames, first in zip(labels[:, 1:], is_token, self._pushed.tolist(), strict=True)
        )
        self._last_labels = labels[np.arange(len(labels)), lengths]
        self._pushed = self._pushed + lengths
        return found

    def _check(self, logprobs: Array, lengths: Array) -> None:
        rows, width = self._last_labels.shape, self._blank_id + 1
        if logprobs.ndim != 3 or logprobs.shape[2] != width or not rows == lengths.shape == logprobs.shape[:1]:
            raise GraphError(
                "the CTC graph's outputs do not fit the bundle's vocabulary",
                where="logprobs, encoded_lengths",
                found=f"{logprobs.shape}, {lengths.shape}; (batch, frames, {width}), (batch,) expected",
                fix="export the checkpoint again",
            )
        check_lengths(lengths, frames=logprobs.shape[1])


def _hypothesis(labels: Array, is_token: Array, *, first: int) -> Hypothesis:
    frames = np.flatnonzero(is_token)
    return Hypothesis(token_ids=tuple(labels[frames].tolist()), frames=tuple((first + frames).tolist()))

"""Greedy CTC decoding (Graves et al. 2006, "best path").

    logprobs [B, T, V+1] -> best label of each frame -> runs of one label become one token -> blanks go

NeMo's ``GreedyBatchedCTCInfer``, folded, gives the same tokens.
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
    fits = logprobs.ndim == 3 and logprobs.shape[2] == blank_id + 1 and lengths.shape == logprobs.shape[:1]
    if not fits:
        raise GraphError(
            "the CTC graph's outputs do not fit the bundle's vocabulary",
            where="logprobs, encoded_lengths",
            found=f"{logprobs.shape}, {lengths.shape}; (batch, frames, {blank_id + 1}), (batch,) expected",
            fix="export the checkpoint again",
        )
    check_lengths(lengths, frames=logprobs.shape[1])
    labels = logprobs.argmax(axis=2)
    begins_run = np.ones(labels.shape, dtype=bool)
    begins_run[:, 1:] = labels[:, 1:] != labels[:, :-1]
    is_valid = np.arange(labels.shape[1]) < lengths[:, None]
    is_token = begins_run & is_valid & (labels != blank_id)
    return tuple(_hypothesis(row, frames) for row, frames in zip(labels, is_token, strict=True))


def _hypothesis(labels: Array, is_token: Array) -> Hypothesis:
    frames = np.flatnonzero(is_token)
    return Hypothesis(token_ids=tuple(labels[frames].tolist()), frames=tuple(frames.tolist()))

"""Greedy CTC: collapse repeats, drop blanks, never read padding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotrt.engines.decoding_ctc import CtcSearch, greedy_ctc
from nemotrt.engines.hypothesis import Hypothesis
from nemotrt.errors import GraphError

BLANK = 3


def logprobs_from_labels(*rows: list[int], frames: int | None = None) -> np.ndarray:
    """One-hot scores whose best path is ``rows``; padding, if any, shouts token 0."""
    frames = frames or max(map(len, rows))
    scores = np.zeros((len(rows), frames, BLANK + 1), dtype=np.float32)
    scores[:, :, 0] = 100.0
    for row, labels in zip(scores, rows, strict=True):
        row[: len(labels)] = np.eye(BLANK + 1)[labels] if labels else 0
    return scores


def lengths_of(*rows: list[int]) -> np.ndarray:
    return np.array([len(row) for row in rows], dtype=np.int64)


def decode(*rows: list[int], frames: int | None = None) -> tuple[Hypothesis, ...]:
    return greedy_ctc(logprobs_from_labels(*rows, frames=frames), lengths_of(*rows), blank_id=BLANK)


def test_a_run_of_one_label_is_one_token_at_its_first_frame():
    assert decode([BLANK, 1, 1, 1, 2, 2, BLANK]) == (Hypothesis((1, 2), (1, 4)),)


def test_a_blank_between_equal_labels_makes_them_two_tokens():
    assert decode([1, BLANK, 1]) == (Hypothesis((1, 1), (0, 2)),)


def test_padding_is_never_read():
    rows = ([1, 2], [2, 2, BLANK, 1], [])
    assert (
        decode(*rows, frames=9)
        == decode(*rows)
        == (
            Hypothesis((1, 2), (0, 1)),
            Hypothesis((2, 1), (0, 3)),
            Hypothesis((), ()),
        )
    )


def test_of_equal_scores_the_lowest_id_wins():
    assert greedy_ctc(np.zeros((1, 2, BLANK + 1)), np.array([2]), blank_id=BLANK)[0].token_ids == (0,)


@given(
    rows=st.lists(st.lists(st.integers(0, BLANK), max_size=12), min_size=1, max_size=4).filter(any),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
)
def test_frames_in_any_pieces_decode_as_all_at_once(rows: list[list[int]], sizes: list[int]):
    logprobs, lengths = logprobs_from_labels(*rows), lengths_of(*rows)
    search, found, start = CtcSearch(len(rows), blank_id=BLANK), [], 0
    for size in itertools.cycle(sizes):
        found.append(search.push(logprobs[:, start : start + size], np.clip(lengths - start, 0, size).clip(0)))
        start += size
        if start >= logprobs.shape[1]:
            break
    whole = greedy_ctc(logprobs, lengths, blank_id=BLANK)
    assert [sum((h.token_ids for h in row), ()) for row in zip(*found, strict=True)] == [h.token_ids for h in whole]
    assert [sum((h.frames for h in row), ()) for row in zip(*found, strict=True)] == [h.frames for h in whole]


def test_a_run_that_goes_on_in_the_next_piece_is_one_token_and_would_be_two_without_its_label():
    logprobs = logprobs_from_labels([1, 2, 2, 1])
    search, two = CtcSearch(1, blank_id=BLANK), np.array([2])
    pieces = [search.push(logprobs[:, :2], two)[0], search.push(logprobs[:, 2:], two)[0]]
    assert pieces == [Hypothesis((1, 2), (0, 1)), Hypothesis((1,), (3,))]
    assert greedy_ctc(logprobs[:, 2:], two, blank_id=BLANK)[0].token_ids == (2, 1)


@pytest.mark.parametrize("length", [-1, 4])
def test_a_length_outside_of_the_output_is_refused(length: int):
    with pytest.raises(GraphError, match="encoded length") as caught:
        greedy_ctc(np.zeros((2, 3, BLANK + 1)), np.array([3, length]), blank_id=BLANK)
    assert caught.value.where == "encoded_lengths, row 1"


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [((1, 3, BLANK), [3]), ((1, 3, BLANK + 2), [3]), ((3, BLANK + 1), [3]), ((2, 3, 4), [3])],
)
def test_shapes_that_do_not_fit_the_vocabulary_are_refused(shape: tuple[int, ...], lengths: list[int]):
    with pytest.raises(GraphError, match="vocabulary"):
        greedy_ctc(np.zeros(shape), np.array(lengths), blank_id=BLANK)


@settings(deadline=None)  # the first example imports NeMo
@given(st.lists(st.lists(st.integers(0, BLANK), max_size=12), min_size=1, max_size=4).filter(any))
def test_labels_equal_nemos_best_path(rows: list[list[int]]):
    torch = pytest.importorskip("torch")
    nemo = pytest.importorskip("nemo.collections.asr.parts.submodules.ctc_greedy_decoding")
    lengths = lengths_of(*rows)
    (paths,) = nemo.GreedyBatchedCTCInfer(blank_id=BLANK)(
        decoder_output=torch.from_numpy(logprobs_from_labels(*rows)),
        decoder_lengths=torch.from_numpy(lengths),
    )
    for hypothesis, path, length in zip(decode(*rows), paths, lengths, strict=True):
        labels = torch.unique_consecutive(path.y_sequence[:length])
        assert list(hypothesis.token_ids) == labels[labels != BLANK].tolist()

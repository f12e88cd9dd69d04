"""What a greedy decoder found in one utterance, and what must hold before it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nemotrt.bundle import Decoder
from nemotrt.engines.runner import Array
from nemotrt.errors import GraphError

DECODERS: tuple[Decoder, ...] = ("ctc", "rnnt", "tdt")


@dataclass(frozen=True)
class Hypothesis:
    """Tokens in the order they were spoken, without blanks.

    ``frames[i]`` is the encoder frame that emitted ``token_ids[i]``; it never decreases. Multiplied by
    ``subsampling_factor * hop_samples`` it is a position in the waveform.
    """

    token_ids: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.frames):
            raise ValueError(f"{len(self.token_ids)} tokens but {len(self.frames)} frames")


class Search(Protocol):
    """A greedy search over the rows of a batch whose frames come in pieces."""

    def push(self, encoded: Array, lengths: Array, /) -> tuple[Hypothesis, ...]:
        """The new tokens of every row; ``frames`` count from the beginning of the row's audio."""
        ...


def check_lengths(lengths: Array, *, frames: int) -> None:
    """Prove that every length is one of 0..``frames``: what an engine got wrong must not be decoded.

    Raises:
        GraphError: naming the first row whose length is not.
    """
    outside = np.flatnonzero((lengths < 0) | (lengths > frames))
    if outside.size:
        row = int(outside[0])
        raise GraphError(
            "an encoded length lies outside of the encoder's output",
            where=f"encoded_lengths, row {row}",
            found=f"{int(lengths[row])}, the output has {frames} frames",
            fix="the encoder's graph or engine is wrong: export or build it again, then compare it",
        )

"""A clip with its audio in memory: read once, then compared and timed any number of times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nemotrt.engines.audio import Clip, Waveform, read_waveform


@dataclass(frozen=True)
class Utterance:
    """One clip and its samples."""

    clip: Clip
    waveform: Waveform


def read_utterances(clips: Iterable[Clip], *, sample_rate: int) -> tuple[Utterance, ...]:
    """Read every clip at ``sample_rate`` hertz, in order.

    Raises:
        AudioError: a file that is missing or not audio.
    """
    return tuple(Utterance(clip, read_waveform(clip.path, sample_rate=sample_rate)) for clip in clips)


def ragged_batches(utterances: Sequence[Utterance], *, size: int) -> tuple[tuple[Utterance, ...], ...]:
    """Every utterance once, in batches of at most ``size`` that mix short and long ones.

    Each batch takes every n-th utterance by length, so that its rows are padded by different amounts, and is
    rotated by its number, so that the longest utterance does not always sit in the last row. A batch that would
    hold one utterance gets a neighbour: the first half of itself.
    """
    by_length = sorted(utterances, key=lambda u: u.waveform.samples.size)
    count = -(-len(by_length) // size)
    batches = (by_length[start::count] for start in range(count))
    return tuple(_with_neighbour(_rotated(batch, number)) for number, batch in enumerate(batches))


def padding_fraction(samples: int, longest: int) -> float:
    """The part of a row of ``longest`` samples that is not audio."""
    return 1.0 - samples / longest if longest else 0.0


def _rotated(batch: list[Utterance], steps: int) -> tuple[Utterance, ...]:
    cut = steps % len(batch)
    return (*batch[cut:], *batch[:cut])


def _with_neighbour(batch: tuple[Utterance, ...]) -> tuple[Utterance, ...]:
    if len(batch) > 1:
        return batch
    whole = batch[0]
    half = whole.waveform.samples[: max(1, whole.waveform.samples.size // 2)]
    clip = replace(whole.clip, name=f"first half of {whole.clip.name}")
    return (whole, Utterance(clip, replace(whole.waveform, samples=half)))

"""Waveform in pieces to the log-mel frames that no further sample can change.

    samples [B,n] --buffer--> piece of waveform --preprocessor--> audio_signal [B,F,T] --final ones--> [B,F,m]

Frame t is centred on sample ``t * hop``: it is final when half a window follows there. Before the next frame as many
samples are kept as its window reaches back, and one more for pre-emphasis. Frames that the front end makes of what is
kept only for that, or of the zeros beyond the piece, are dropped. All rows of a batch advance together.
"""

from __future__ import annotations

import numpy as np

from nemotrt.bundle import Bundle
from nemotrt.engines.runner import Array, Runner
from nemotrt.errors import AudioError, UnsupportedModelError, UsageError


class StreamingFeatures:
    """The front end of ``batch`` streams, over a ``runner`` of the bundle's ``preprocessor``.

    What all pushes and :meth:`finish` return together is what the preprocessor returns for the whole waveform, whatever
    the pieces.

    Raises:
        UnsupportedModelError: the model's features depend on the whole utterance.
    """

    def __init__(self, bundle: Bundle, runner: Runner, *, batch: int = 1) -> None:
        mel = bundle.meta.audio_front_end()
        if mel.normalize != "none":
            raise UnsupportedModelError(
                "the model's features cannot be streamed: mean and variance are those of the whole utterance",
                where=bundle.path,
                found=f"mel.normalize {mel.normalize}",
                fix="transcribe whole clips, or use a checkpoint with preprocessor.normalize NA",
            )
        self._runner = runner
        self._mel = mel
        before = mel.window_samples // 2
        self._samples_from_centre = mel.window_samples - before
        self._context_frames = -(-(before + 1) // mel.hop_samples)
        self._pending = np.zeros((batch, 0), np.float32)
        self._returned = 0  # frames of the pending samples
        self._finished = False

    def push(self, samples: Array) -> Array:
        """``samples`` float32 ``[batch, n]``, n >= 0 -> the frames that became final, ``[batch, F, m]``.

        Raises:
            UsageError: the stream was finished.
            AudioError: another shape or type, or samples that are not finite; none of them was taken.
        """
        if self._finished:
            raise UsageError("the stream was finished", fix="open another one")
        self._check(samples)
        self._pending = np.concatenate([self._pending, samples], axis=1)
        count, hop = self._pending.shape[1], self._mel.hop_samples
        return self._up_to(min(count // hop, (count - self._samples_from_centre) // hop + 1))

    def finish(self) -> Array:
        """The frames that were waiting for samples, ``[batch, F, m]``: zeros follow. The second time, none."""
        self._finished = True
        return self._up_to(self._pending.shape[1] // self._mel.hop_samples)

    def _up_to(self, end: int) -> Array:
        """The frames of the pending samples before ``end`` that were not returned yet."""
        batch, count = self._pending.shape
        if end <= self._returned:
            return np.zeros((batch, self._mel.features, 0), np.float32)
        outputs = self._runner.run({"waveform": self._pending, "waveform_length": np.full(batch, count, np.int64)})
        features = outputs["audio_signal"][:, :, self._returned : end]
        self._returned = min(end, self._context_frames)
        self._pending = self._pending[:, (end - self._returned) * self._mel.hop_samples :]
        return features

    def _check(self, samples: Array) -> None:
        batch = len(self._pending)
        fits = samples.ndim == 2 and len(samples) == batch and samples.dtype == np.float32
        if not fits or not np.isfinite(samples).all():
            raise AudioError(
                "the samples do not fit the stream",
                found=f"{samples.dtype} of shape {list(samples.shape)}" + (", not all finite" if fits else ""),
                fix=f"push finite float32 samples [{batch}, n] at {self._mel.sample_rate} Hz",
            )

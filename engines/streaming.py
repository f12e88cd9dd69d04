"""Chunks of features through the streaming encoder, caches carried from one to the next.

    features [B,F,n] --buffer--> windows [B,F,W] + caches --runner--> encoder_output [B,D,T] + caches

A window holds the end of what came before and the chunk's own frames. The first window begins with zeros, and the last
one may be short; ``length`` tells the graph where the audio ends. All rows of a batch advance together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nemotrt.bundle import BATCH, Bundle, StreamingSpec
from nemotrt.engines.runner import Array, Runner
from nemotrt.errors import BundleError, UsageError

COMPONENT = "encoder_streaming"
_OUT = "_out"


class StreamingEncoder:
    """One stream of ``batch`` rows. Push features as they come, then finish.

    What all pushes return together equals what the offline encoder returns for the same features, whatever their sizes.
    Where chunks overlap (``cache_drop_frames``), a frame is returned by the chunk that keeps it.

    Raises:
        BundleError: the bundle was exported without the streaming encoder.
    """

    def __init__(self, bundle: Bundle, runner: Runner, *, batch: int = 1) -> None:
        bundle.component(COMPONENT)
        if bundle.meta.streaming is None:
            raise BundleError(
                "the bundle does not say how it is streamed",
                where=bundle.path,
                fix="export the checkpoint again with --component all",
            )
        self._spec: StreamingSpec = bundle.meta.streaming
        self._runner = runner
        self._caches = {
            spec.name: np.zeros([batch if axis == BATCH else int(axis) for axis in spec.shape], spec.dtype)
            for spec in runner.inputs
            if spec.name.startswith("cache")
        }
        self._d_model = bundle.meta.encoder.d_model
        lead = self._spec.window_feature_frames - self._spec.first_chunk_feature_frames
        self._pending = np.zeros((batch, bundle.meta.encoder.features, lead), np.float32)
        self._wanted = self._spec.first_chunk_feature_frames
        self._began = self._finished = False

    def push(self, features: Array) -> Array:
        """``features`` ``[batch, F, n]``, n >= 0 -> the encoder frames of every chunk that is full, ``[batch, D, m]``.

        Raises:
            UsageError: the stream was finished, or another batch size or number of features.
        """
        if self._finished:
            raise UsageError("the stream was finished", fix="open another one")
        batch, bins, _ = self._pending.shape
        if features.ndim != 3 or features.shape[:2] != (batch, bins):
            raise UsageError(
                "the features do not fit the stream",
                found=f"shape {list(features.shape)}",
                fix=f"push float32 [{batch}, {bins}, n], or open a stream with another batch",
            )
        self._pending = np.concatenate([self._pending, features], axis=2)
        return self._joined(self._full_chunks())

    def finish(self) -> Array:
        """The frames of the short last chunk, ``[batch, D, m]``; m is 0 if the audio ended with a full one."""
        outputs = []
        new = self._pending.shape[2] - (self._spec.window_feature_frames - self._wanted)
        owed = self._began and self._spec.cache_drop_frames > 0
        if not self._finished and (new > 0 or owed):
            outputs.append(self._run(self._pending, last=True))
        self._finished = True
        return self._joined(iter(outputs))

    def _full_chunks(self) -> Iterator[Array]:
        window, chunk = self._spec.window_feature_frames, self._spec.chunk_feature_frames
        while self._pending.shape[2] >= window:
            yield self._run(self._pending[:, :, :window], last=False)
            # The next window begins so that its new frames are its last ones.
            self._pending = self._pending[:, :, chunk:]
            self._wanted, self._began = chunk, True

    def _run(self, features: Array, *, last: bool) -> Array:
        batch, bins, frames = features.shape
        audio_signal = np.zeros((batch, bins, self._spec.window_feature_frames), np.float32)
        audio_signal[:, :, :frames] = features
        length = np.full(batch, frames, np.int64)
        outputs = self._runner.run({"audio_signal": audio_signal, "length": length, **self._caches})
        self._caches = {name: outputs[f"{name}{_OUT}"] for name in self._caches}
        frames = int(outputs["encoded_lengths"][0])
        if not last:
            frames -= self._spec.cache_drop_frames
        return outputs["encoder_output"][:, :, :frames]

    def _joined(self, outputs: Iterator[Array]) -> Array:
        batch = self._pending.shape[0]
        return np.concatenate([np.zeros((batch, self._d_model, 0), np.float32), *outputs], axis=2)

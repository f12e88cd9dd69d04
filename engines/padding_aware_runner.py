"""The encoder without masks wherever nothing is padded: the same numbers, a third faster.

    audio_signal [B,F,T], length [B]   every length is T -> the variant without masks; lengths follow from T
                                       otherwise         -> the component itself

A clip alone is never padded. So the session with masks is opened when the first ragged batch comes, if one comes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nemotrt.bundle import EncoderSpec, TensorSpec
from nemotrt.engines.feeds import check_feeds
from nemotrt.engines.runner import Array, Arrays, Runner

VARIANT_SUFFIX = "_nomask"


class PaddingAwareRunner:
    """A :class:`~nemotrt.engines.runner.Runner` of ``encoder`` or ``ctc`` over two graphs with the same weights.

    Args:
        unmasked: the variant, of which this runner is the owner from now on.
        open_masked: opens the component itself, when it is needed.
        inputs, outputs: the component's contract.
        spec: gives the output length.
    """

    def __init__(
        self,
        unmasked: Runner,
        open_masked: Callable[[], Runner],
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        spec: EncoderSpec,
    ) -> None:
        self._unmasked, self._open_masked, self._spec = unmasked, open_masked, spec
        self._masked: Runner | None = None
        self.inputs, self.outputs = inputs, outputs

    @property
    def label(self) -> str:
        """That of the variant: both run on the same backend."""
        return self._unmasked.label

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """One inference.

        Raises: as the runners of the two graphs.
        """
        check_feeds(feeds, self.inputs, where=f"{self.label}: encoder")
        audio_signal, length = feeds["audio_signal"], feeds["length"]
        frames = audio_signal.shape[2]
        if (length == frames).all():
            encoded_length = self._spec.encoder_frames_from_feature_frames(frames)
            outputs = self._unmasked.run({"audio_signal": audio_signal})
            return {**outputs, "encoded_lengths": np.full(len(length), encoded_length, np.int64)}
        if self._masked is None:
            self._masked = self._open_masked()
        return self._masked.run(feeds)

    def close(self) -> None:
        """Close what was opened. Safe to call twice."""
        self._unmasked.close()
        if self._masked is not None:
            self._masked.close()

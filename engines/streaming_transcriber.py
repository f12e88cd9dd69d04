"""Speech to text while it is spoken, over any runners.

    samples --> preprocessor --> encoder_streaming --> predictor + joint --> new token ids --> text so far    rnnt, tdt
                                                   --> ctc_head          --> new token ids --> text so far    ctc

Each arrow keeps what it needs of the past. The whole text equals the one that the offline components with the same
look-ahead give for the whole waveform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np

from nemotrt.bundle import Bundle, BundleMeta, ComponentName, Decoder
from nemotrt.engines.component_runners import ComponentRunners
from nemotrt.engines.decoding_ctc import CtcSearch
from nemotrt.engines.decoding_transducer import GreedyTransducer
from nemotrt.engines.hypothesis import Hypothesis, Search
from nemotrt.engines.runner import Array, Runner
from nemotrt.engines.streaming import StreamingEncoder
from nemotrt.engines.streaming_features import StreamingFeatures
from nemotrt.engines.tokenizer import Tokenizer, tokenizer_from_bundle
from nemotrt.errors import UsageError


@dataclass(frozen=True)
class LiveText:
    """What was heard in a row so far; ``new_token_ids`` are the last ones of ``hypothesis``, found just now."""

    text: str = ""
    hypothesis: Hypothesis = field(default_factory=Hypothesis)
    new_token_ids: tuple[int, ...] = ()


def streaming_components_of(decoder: Decoder) -> tuple[ComponentName, ...]:
    """The components that a stream with ``decoder`` runs, in the order of the data."""
    if decoder == "ctc":
        return "preprocessor", "encoder_streaming", "ctc_head"
    return "preprocessor", "encoder_streaming", "predictor", "joint"


def streaming_decoders_of(meta: BundleMeta) -> tuple[Decoder, ...]:
    """The decoders a bundle can be streamed with, the best first: tdt or rnnt, then ctc; or none."""
    decoders: list[Decoder] = ["ctc"]
    if meta.transducer is not None:
        decoders.insert(0, "tdt" if meta.transducer.durations else "rnnt")
    return tuple(name for name in decoders if set(streaming_components_of(name)) <= meta.components.keys())


class StreamingTranscriber:
    """Opens streams of one decoder of a bundle. Streams share its runners, and are used from one thread at a time.

    Args:
        bundle: decides front end, chunks and vocabulary, and holds the graphs.
        decoder: one of :func:`streaming_decoders_of`; the first if ``None``.
        runners, threads: as of :class:`~nemotrt.engines.transcriber.Transcriber`.

    Raises:
        UsageError: the bundle has not the components for it, or a runner for a component that does not exist.
        BundleError, GraphError: the bundle's files cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        decoder: Decoder | None = None,
        runners: Mapping[str, Runner] = MappingProxyType({}),
        threads: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.decoder = _chosen_decoder(bundle, decoder)
        self._tokenizer = tokenizer_from_bundle(bundle)
        names = streaming_components_of(self.decoder)
        self._runners = ComponentRunners(bundle, names, given=runners, threads=threads)
        self.label = self._runners.label

    @property
    def chunk_seconds(self) -> float:
        """Audio of one chunk of the encoder: smaller pieces give no earlier text."""
        meta = self.bundle.meta
        frames = meta.streaming.chunk_feature_frames if meta.streaming else 0
        return meta.geometry.seconds_from_feature_frames(frames)

    def stream(self, *, batch: int = 1) -> TextStream:
        """A stream of ``batch`` rows.

        Raises:
            UnsupportedModelError: the model's features depend on the whole utterance.
        """
        return TextStream(
            StreamingFeatures(self.bundle, self._runners["preprocessor"], batch=batch),
            StreamingEncoder(self.bundle, self._runners["encoder_streaming"], batch=batch),
            ctc_head=self._runners["ctc_head"] if self.decoder == "ctc" else None,
            search=self._search(batch),
            tokenizer=self._tokenizer,
            batch=batch,
        )

    def close(self) -> None:
        """Close the sessions opened here. Safe to call twice."""
        self._runners.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _search(self, batch: int) -> Search:
        meta = self.bundle.meta
        if self.decoder == "ctc" or meta.transducer is None:
            return CtcSearch(batch, blank_id=meta.blank_id)
        predictor, joint = self._runners["predictor"], self._runners["joint"]
        return GreedyTransducer(predictor, joint, spec=meta.transducer, blank_id=meta.blank_id).start(batch)


class TextStream:
    """Waveform in, text out: the rows of a batch, advancing together. Made by :meth:`StreamingTranscriber.stream`."""

    def __init__(
        self,
        features: StreamingFeatures,
        encoder: StreamingEncoder,
        *,
        ctc_head: Runner | None,
        search: Search,
        tokenizer: Tokenizer,
        batch: int,
    ) -> None:
        self._features = features
        self._encoder = encoder
        self._ctc_head = ctc_head
        self._search = search
        self._tokenizer = tokenizer
        self._heard = (LiveText(),) * batch

    def push(self, samples: Array) -> tuple[LiveText, ...]:
        """``samples`` float32 ``[batch, n]``, n >= 0, at the model's rate -> what was heard so far, by row.

        Raises:
            UsageError: the stream was finished.
            AudioError: another shape or type, or samples that are not finite; none of them was taken.
        """
        return self._hear(self._encoder.push(self._features.push(samples)))

    def finish(self) -> tuple[LiveText, ...]:
        """What was heard in all of the audio; the second time the same. Nothing in less than one feature frame."""
        features = self._features.finish()
        encoded = [self._encoder.push(features)] if features.shape[2] else []
        return self._hear(np.concatenate([*encoded, self._encoder.finish()], axis=2))

    def _hear(self, encoder_output: Array) -> tuple[LiveText, ...]:
        rows, frames = len(self._heard), encoder_output.shape[2]
        news = self._decode(encoder_output, np.full(rows, frames)) if frames else (Hypothesis(),) * rows
        self._heard = tuple(self._extended(heard, new) for heard, new in zip(self._heard, news, strict=True))
        return self._heard

    def _decode(self, encoder_output: Array, lengths: Array) -> tuple[Hypothesis, ...]:
        if self._ctc_head is None:
            return self._search.push(encoder_output, lengths)
        return self._search.push(self._ctc_head.run({"encoder_output": encoder_output})["logprobs"], lengths)

    def _extended(self, heard: LiveText, new: Hypothesis) -> LiveText:
        if not new.token_ids:
            return LiveText(heard.text, heard.hypothesis)
        old = heard.hypothesis
        whole = Hypothesis(old.token_ids + new.token_ids, old.frames + new.frames)
        return LiveText(self._tokenizer.text(whole.token_ids), whole, new.token_ids)


def _chosen_decoder(bundle: Bundle, decoder: Decoder | None) -> Decoder:
    for available in streaming_decoders_of(bundle.meta):
        if decoder in (None, available):
            return available
    raise UsageError(
        f"the bundle has not the components of a stream{f' decoded by {decoder}' if decoder else ''}",
        where=bundle.path,
        found=", ".join(bundle.meta.components),
        fix="export a cache-aware checkpoint with: nemotrt export MODEL.nemo -o BUNDLE --component all",
    )

"""Speech to text over any runners.

    waveforms --pad--> preprocessor --> encoder --> predictor + joint --> token ids --> text      rnnt, tdt
                                    --> ctc     --> best path         --> token ids --> text      ctc

Each stage is a method, so that a benchmark can time it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np

from nemotrt.bundle import Bundle, BundleMeta, ComponentName, Decoder
from nemotrt.engines.audio import Waveform
from nemotrt.engines.component_runners import ComponentRunners
from nemotrt.engines.decoding_ctc import greedy_ctc
from nemotrt.engines.decoding_transducer import GreedyTransducer
from nemotrt.engines.hypothesis import Hypothesis
from nemotrt.engines.runner import Array, Runner
from nemotrt.engines.tokenizer import tokenizer_from_bundle
from nemotrt.errors import AudioError, BundleError, UsageError

__all__ = ["Decoder", "Transcriber", "Transcription", "components_of", "decoders_of"]


@dataclass(frozen=True, eq=False)
class Transcription:
    """What was heard in one waveform.

    ``encoder_output`` holds the valid frames only: ``[D, encoded_length]`` from the encoder, or with the ctc
    decoder the log probabilities ``[V+1, encoded_length]``.
    """

    text: str
    hypothesis: Hypothesis
    encoder_output: Array
    encoded_length: int


def decoders_of(meta: BundleMeta) -> tuple[Decoder, ...]:
    """The decoders a bundle can be run with, the best first: tdt or rnnt, then ctc. Never empty.

    Raises:
        BundleError: the bundle has components for none.
    """
    decoders: list[Decoder] = []
    if meta.transducer is not None and {"encoder", "predictor", "joint"} <= meta.components.keys():
        decoders.append("tdt" if meta.transducer.durations else "rnnt")
    if "ctc" in meta.components:
        decoders.append("ctc")
    if not decoders:
        raise BundleError(
            "the bundle has no components to decode with",
            where=meta.name,
            found=", ".join(meta.components) or "none",
            fix="export it with encoder, predictor and joint, or with ctc: nemotrt export without --component",
        )
    return tuple(decoders)


def components_of(decoder: Decoder) -> tuple[ComponentName, ...]:
    """The components that ``decoder`` runs, in the order of the data."""
    return ("preprocessor", "ctc") if decoder == "ctc" else ("preprocessor", "encoder", "predictor", "joint")


class Transcriber:
    """Transcribes batches of waveforms with one decoder of a bundle.

    Args:
        bundle: decides front end, vocabulary and limits, and holds the graphs.
        decoder: one of :func:`decoders_of`; the first if ``None``.
        runners: by component name, used in place of ONNX Runtime on the bundle's graph. Whoever made them
            closes them. Runners of components that the decoder does not need stay unused.
        threads: threads of the ONNX Runtime sessions opened here; ``None`` leaves it to ONNX Runtime.

    Raises:
        UsageError: a decoder that the bundle does not have, or a runner for a component that does not exist.
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
        self._runners = ComponentRunners(bundle, components_of(self.decoder), given=runners, threads=threads)
        self.label = self._runners.label
        self._transducer = self._greedy_transducer()

    def transcribe(self, waveforms: Sequence[Waveform]) -> tuple[Transcription, ...]:
        """Text of every waveform, as one batch padded to the longest. None for none.

        Raises:
            AudioError: a waveform of another sample rate, shorter than one feature frame, or longer than the
                encoder's position table.
        """
        if self.bundle.meta.fixed_feature_frames is not None:
            return tuple(self._transcribed(*self.features([waveform]))[0] for waveform in waveforms)
        return self._transcribed(*self.features(waveforms)) if waveforms else ()

    def transcribe_features(self, features: Sequence[Array]) -> tuple[Transcription, ...]:
        """Text of every array of features, float32 ``[F, frames]``, as one batch: for models that do not take audio.

        Raises:
            UsageError: another number of features, none or too many frames, or another dtype.
        """
        for index, array in enumerate(features):
            self._check_features(array, where=f"features {index + 1} of {len(features)}")
        fixed = self.bundle.meta.fixed_feature_frames
        if fixed is not None:
            return tuple(self._transcribed(*_padded_features([array], frames=fixed))[0] for array in features)
        return self._transcribed(*_padded_features(features)) if features else ()

    def _transcribed(self, audio_signal: Array, length: Array) -> tuple[Transcription, ...]:
        encoded, lengths = self.encode(audio_signal, length)
        hypotheses = self.decode(encoded, lengths)
        by_channel = encoded.transpose(0, 2, 1) if self.decoder == "ctc" else encoded
        return tuple(
            Transcription(
                text=self._tokenizer.text(hypothesis.token_ids),
                hypothesis=hypothesis,
                encoder_output=row[:, :length].copy(),
                encoded_length=int(length),
            )
            for hypothesis, row, length in zip(hypotheses, by_channel, lengths, strict=True)
        )

    def features(self, waveforms: Sequence[Waveform]) -> tuple[Array, Array]:
        """``audio_signal`` ``[batch, F, frames]`` and ``length`` ``[batch]`` of at least one waveform.

        Raises:
            AudioError: as :meth:`transcribe`.
        """
        for index, waveform in enumerate(waveforms):
            self._check(waveform, where=f"waveform {index + 1} of {len(waveforms)}")
        mel, fixed = self.bundle.meta.audio_front_end(), self.bundle.meta.fixed_feature_frames
        samples = None if fixed is None else fixed * mel.hop_samples
        outputs = self._runners["preprocessor"].run(_padded(waveforms, samples=samples))
        return outputs["audio_signal"], outputs["length"]

    def encode(self, audio_signal: Array, length: Array) -> tuple[Array, Array]:
        """``encoder_output`` ``[batch, D, encoder_frames]``, or with the ctc decoder ``logprobs``
        ``[batch, encoder_frames, V+1]``; and ``encoded_lengths`` ``[batch]``."""
        component: ComponentName = "ctc" if self.decoder == "ctc" else "encoder"
        outputs = self._runners[component].run({"audio_signal": audio_signal, "length": length})
        return outputs["logprobs" if self.decoder == "ctc" else "encoder_output"], outputs["encoded_lengths"]

    def decode(self, encoded: Array, lengths: Array) -> tuple[Hypothesis, ...]:
        """The best path of every row of what :meth:`encode` returned.

        Raises:
            GraphError: lengths or shapes that do not fit each other.
        """
        if self._transducer is None:
            return greedy_ctc(encoded, lengths, blank_id=self.bundle.meta.blank_id)
        return self._transducer.decode(encoded, lengths)

    def close(self) -> None:
        """Close the sessions opened here. Safe to call twice."""
        self._runners.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _greedy_transducer(self) -> GreedyTransducer | None:
        meta = self.bundle.meta
        if self.decoder == "ctc" or meta.transducer is None:
            return None
        return GreedyTransducer(
            self._runners["predictor"], self._runners["joint"], spec=meta.transducer, blank_id=meta.blank_id
        )

    def _check_features(self, array: Array, *, where: str) -> None:
        features, longest = self.bundle.meta.encoder.features, self.bundle.meta.geometry.max_feature_frames
        is_fit = array.ndim == 2 and array.shape[0] == features and array.dtype == np.float32
        if not is_fit or not 1 <= array.shape[1] <= longest:
            raise UsageError(
                "the features do not fit the model",
                where=where,
                found=f"{array.dtype} {list(array.shape)}",
                fix=f"give float32 [{features}, 1 to {longest}]",
            )

    def _check(self, waveform: Waveform, *, where: str) -> None:
        mel, limit = self.bundle.meta.audio_front_end(), self.bundle.meta.geometry.max_feature_frames
        frame_seconds = mel.hop_samples / mel.sample_rate
        if waveform.sample_rate != mel.sample_rate:
            raise AudioError(
                "the waveform has another sample rate than the model",
                where=where,
                found=f"{waveform.sample_rate} Hz, {mel.sample_rate} Hz expected",
                fix="let read_waveform resample it",
            )
        frames = len(waveform.samples) // mel.hop_samples
        if frames < 1:
            raise AudioError(
                "the audio is too short",
                where=where,
                found=f"{waveform.seconds:.4f} s, a feature frame is {frame_seconds:g} s",
                fix="leave it out, or pad it with silence",
            )
        if frames > limit:
            raise AudioError(
                "the audio is longer than the model takes",
                where=where,
                found=f"{waveform.seconds:.2f} s, the limit is {limit * frame_seconds:g} s",
                fix="cut it into shorter pieces, at pauses",
            )


def _chosen_decoder(bundle: Bundle, decoder: Decoder | None) -> Decoder:
    available = decoders_of(bundle.meta)
    if decoder is None:
        return available[0]
    if decoder not in available:
        raise UsageError(
            f"the bundle has no {decoder} decoder",
            where=bundle.path,
            found=", ".join(available),
            fix="choose one of those found",
        )
    return decoder


def _padded_features(features: Sequence[Array], *, frames: int | None = None) -> tuple[Array, Array]:
    """One batch ``[batch, F, frames]``, padded with zeros, and the lengths ``[batch]``."""
    lengths = np.asarray([array.shape[1] for array in features], dtype=np.int64)
    batch = np.zeros((len(features), features[0].shape[0], frames or int(lengths.max())), dtype=np.float32)
    for row, array in zip(batch, features, strict=True):
        row[:, : array.shape[1]] = array
    return batch, lengths


def _padded(waveforms: Sequence[Waveform], *, samples: int | None) -> dict[str, Array]:
    """One batch, padded with zeros: ``waveform`` ``[batch, samples]``, ``waveform_length`` ``[batch]``.

    Where ``samples`` is fixed, what is beyond is less than a frame.
    """
    lengths = np.asarray([len(waveform.samples) for waveform in waveforms], dtype=np.int64)
    width = samples or int(lengths.max())
    lengths = np.minimum(lengths, width)
    batch = np.zeros((len(waveforms), width), dtype=np.float32)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform.samples)] = waveform.samples[:width]
    return {"waveform": batch, "waveform_length": lengths}

"""What stands behind ``nemotrt quantize``: a bundle and audio in, a quantized bundle out.

    clips --> the float32 bundle decodes them, calibrating runners in the place of its components --> amplitudes
                                                                                                   --> quantized bundle

Each component sees what it sees in use: the encoder features, the joint the search's own predictions, the streaming
encoder its caches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nemotrt.bundle import Bundle, ComponentName, Decoder, sha256_of_file
from nemotrt.engines.audio import Clip, read_clips
from nemotrt.engines.streaming_transcriber import (
    StreamingTranscriber,
    streaming_components_of,
    streaming_decoders_of,
)
from nemotrt.engines.transcriber import Transcriber, components_of, decoders_of
from nemotrt.errors import AudioError, UsageError
from nemotrt.trt.quantization.amplitudes import Amplitude
from nemotrt.trt.quantization.calibration import CalibratingRunner
from nemotrt.trt.quantization.quantized_bundle import Calibrated, Products, QuantizationOrder, quantize_bundle
from nemotrt.verbs import ClipText, stream_clip, transcribe_clips

Progress = Callable[[str, float], None]
"""Called with what is at hand and the fraction of it that is done, 0 to 1."""


def quantize(
    source: Bundle,
    destination: Path,
    order: QuantizationOrder,
    *,
    audio: Path | None,
    threads: int | None = None,
    overwrite: bool = False,
    on_progress: Progress,
) -> Bundle:
    """Write the quantized twin of ``source``, calibrated on the clips of ``audio`` (a manifest, folder or file).

    Of a model that takes its own features a clip is an ``.npy`` file of them, named by a manifest.

    Raises:
        UsageError: no audio for activations, or audio for weights alone; a source that is not in float32; a scope that
            does not exist; a component that nothing in the bundle runs.
        AudioError: clips that cannot be used, or in which the model hears nothing.
        GraphError, MachineError: as ``quantize_bundle``.
    """
    clips = () if audio is None else read_clips(audio)
    return quantize_bundle(
        source,
        destination,
        order,
        calibrate=(lambda products: calibrate(source, products, clips, threads=threads, on_progress=on_progress))
        if clips
        else None,
        overwrite=overwrite,
        on_component=lambda name: on_progress(f"wrote {name}", 1.0),
    )


def calibrate(
    source: Bundle,
    products: Products,
    clips: Sequence[Clip],
    *,
    threads: int | None = None,
    on_progress: Progress,
) -> Calibrated:
    """Decode ``clips`` in every way that runs one of ``products``, and observe what goes into them.

    Raises: as :func:`quantize`.
    """
    amplitudes: dict[str, Mapping[str, Amplitude]] = {}
    for decoding in _decodings(source):
        names = [name for name in decoding.components if name in products.keys() - amplitudes.keys()]
        if names:
            with ExitStack() as stack:
                runners: dict[str, CalibratingRunner] = {
                    name: CalibratingRunner(
                        source.graph_path(name), source.component(name), products=products[name], threads=threads
                    )
                    for name in names
                }
                for runner in runners.values():
                    stack.callback(runner.close)
                _hear(decoding.texts(source, clips, runners, threads), clips, decoding.title, on_progress)
            amplitudes |= {name: runner.amplitudes for name, runner in runners.items()}
    missing = sorted(products.keys() - amplitudes.keys())
    if missing:
        raise UsageError(
            "nothing in the bundle runs this component, so it cannot be calibrated",
            where=source.path,
            found=", ".join(missing),
            fix=f"export with --component all, or keep it in float32: --keep {missing[0]}",
        )
    return Calibrated(amplitudes, len(clips), _digest(clips))


@dataclass(frozen=True)
class _Decoding:
    """One way to run components of a bundle on audio."""

    decoder: Decoder
    is_streamed: bool

    @property
    def title(self) -> str:
        return f"{self.decoder}{', streamed' if self.is_streamed else ''}"

    @property
    def components(self) -> tuple[ComponentName, ...]:
        return streaming_components_of(self.decoder) if self.is_streamed else components_of(self.decoder)

    def texts(
        self, source: Bundle, clips: Sequence[Clip], runners: Mapping[str, CalibratingRunner], threads: int | None
    ) -> Iterator[ClipText]:
        if not self.is_streamed:
            with Transcriber(source, decoder=self.decoder, runners=runners, threads=threads) as transcriber:
                yield from transcribe_clips(transcriber, clips)
            return
        with StreamingTranscriber(source, decoder=self.decoder, runners=runners, threads=threads) as streams:
            for clip in clips:
                yield stream_clip(streams, clip, chunk_seconds=None, on_partial=lambda _: None).heard


def _decodings(source: Bundle) -> tuple[_Decoding, ...]:
    whole = [_Decoding(decoder, is_streamed=False) for decoder in decoders_of(source.meta)]
    return (*whole, *(_Decoding(decoder, is_streamed=True) for decoder in streaming_decoders_of(source.meta)))


def _hear(texts: Iterator[ClipText], clips: Sequence[Clip], title: str, on_progress: Progress) -> None:
    """Run through ``texts``; noise and silence, in which the model hears no word, are nothing to calibrate on."""
    heard = 0
    on_progress(f"calibrating {title}", 0.0)
    for number, text in enumerate(texts, start=1):
        heard += len(text.token_ids)
        on_progress(f"calibrating {title}: {text.clip.name}", number / len(clips))
    if not heard:
        raise AudioError(
            "the model hears no word in the audio to calibrate on",
            where=clips[0].path,
            found=f"no token in {len(clips)} clips, decoder {title}",
            fix="give speech of the kind that the model will hear",
        )


def _digest(clips: Sequence[Clip]) -> str:
    """SHA-256 over the digests of the files, in order."""
    return hashlib.sha256("".join(sha256_of_file(clip.path) for clip in clips).encode()).hexdigest()

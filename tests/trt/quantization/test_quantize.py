"""From audio to amplitudes: what is refused before, during and after calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemotrt.bundle import Bundle
from nemotrt.engines.audio import Clip
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import AudioError, UsageError
from nemotrt.export import ExportOptions, export_checkpoint
from nemotrt.quantize import quantize
from nemotrt.trt.quantization.calibration import CalibratingRunner
from nemotrt.trt.quantization.quantized_bundle import QuantizationOrder
from nemotrt.trt.quantization.selection import select_from_bundle

Quantize = Callable[..., Bundle]


def refused(source: Bundle, folder: Path, audio: Path | None, error: type[Exception], **order: object) -> str:
    with pytest.raises(error) as caught:
        quantize(
            source, folder / "out", QuantizationOrder(**order), audio=audio, threads=1, on_progress=lambda *_: None
        )
    assert not list(folder.glob("*out*"))
    return str(caught.value)


def test_activations_without_audio_are_refused_and_so_are_weights_with_audio(
    tdt_bundle: Bundle, demo_manifest: Path, tmp_path: Path
) -> None:
    assert "--audio" in refused(tdt_bundle, tmp_path, None, UsageError)
    assert "audio, and weights only" in refused(tdt_bundle, tmp_path, demo_manifest, UsageError, weight_only=True)


def test_a_manifest_without_clips_is_refused(tdt_bundle: Bundle, tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text("\n", encoding="utf-8")
    assert "names no clips" in refused(tdt_bundle, tmp_path, empty, AudioError)


def test_a_bundle_that_is_quantized_or_typed_already_is_refused(
    tdt_bundle: Bundle, quantized: Quantize, demo_manifest: Path, tmp_path: Path
) -> None:
    assert "precision int8" in refused(quantized(tdt_bundle), tmp_path, demo_manifest, UsageError)


def test_an_unknown_scope_is_refused_before_anything_is_calibrated(
    tdt_bundle: Bundle, demo_manifest: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match="lies in this scope"):
        quantize(
            tdt_bundle,
            tmp_path / "out",
            QuantizationOrder(keep=("layers.99",)),
            audio=demo_manifest,
            on_progress=lambda what, _: said.append(what),
        )
    assert said == []


def test_an_output_that_is_there_is_refused_before_anything_is_calibrated(
    tdt_bundle: Bundle, demo_manifest: Path, quantized: Quantize
) -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match="already there"):
        quantize(
            tdt_bundle,
            quantized(tdt_bundle).path,
            QuantizationOrder(),
            audio=demo_manifest,
            on_progress=lambda what, _: said.append(what),
        )
    assert said == []


def test_silence_in_which_no_word_is_heard_is_refused(hybrid_bundle: Bundle, tmp_path: Path) -> None:
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(48000, np.float32), 16000)
    assert "hears no word" in refused(hybrid_bundle, tmp_path, silence, AudioError)


def test_a_component_that_nothing_runs_is_refused_by_name(
    hybrid_checkpoint: Path, demo_manifest: Path, tmp_path: Path
) -> None:
    options = ExportOptions(components=("preprocessor", "ctc", "encoder_streaming"))
    bundle = export_checkpoint(hybrid_checkpoint, tmp_path / "partial", options=options)
    message = refused(bundle, tmp_path, demo_manifest, UsageError)
    assert "nothing in the bundle runs this component" in message
    assert "--keep encoder_streaming" in message


def test_progress_names_every_decoder_and_clip(
    streaming_bundle: Bundle, clips: tuple[Clip, ...], tmp_path: Path
) -> None:
    said: list[tuple[str, float]] = []
    quantize(
        streaming_bundle,
        tmp_path / "out",
        QuantizationOrder(),
        audio=clips[3].path,
        threads=1,
        on_progress=lambda what, fraction: said.append((what, fraction)),
    )
    titles = ["rnnt", "ctc", "rnnt, streamed"]
    assert [what for what, _ in said if "00003" in what] == [f"calibrating {title}: 00003" for title in titles]
    assert {what for what, _ in said if "wrote" in what} == {
        f"wrote {name}" for name in ("encoder", "ctc", "encoder_streaming", "joint")
    }
    assert all(0 <= fraction <= 1 for _, fraction in said)


def test_the_same_audio_gives_the_same_bytes(
    tdt_bundle: Bundle, quantized: Quantize, demo_manifest: Path, tmp_path: Path
) -> None:
    again = quantize(
        tdt_bundle, tmp_path / "out", QuantizationOrder(), audio=demo_manifest, threads=1, on_progress=lambda *_: None
    )
    assert again.meta.files == quantized(tdt_bundle).meta.files


def test_the_calibrating_runner_says_what_the_component_says(tdt_bundle: Bundle) -> None:
    products = select_from_bundle(tdt_bundle, ())["encoder"]
    runner = CalibratingRunner(tdt_bundle.graph_path("encoder"), tdt_bundle.component("encoder"), products=products)
    with Transcriber(tdt_bundle, threads=1) as plain:
        signal = np.random.default_rng(0).standard_normal((1, tdt_bundle.meta.encoder.features, 200), np.float32)
        feeds = signal, np.asarray([200])
        wanted = plain.encode(*feeds)
    found = runner.run(dict(zip(("audio_signal", "length"), feeds, strict=True)))
    assert set(found) == {"encoder_output", "encoded_lengths"}
    np.testing.assert_allclose(found["encoder_output"], wanted[0], atol=1e-4)
    assert len(runner.amplitudes) == len(products)  # no two of them read the same value
    assert all(amplitude.largest > 0 for amplitude in runner.amplitudes.values())
    runner.close()

"""The whole way from audio to text, on the demo checkpoints; NeMo's recorded decode is the oracle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nemotrt.bundle import Bundle, TensorSpec
from nemotrt.engines.audio import Clip, Waveform, read_clips, read_waveform
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Array, Arrays
from nemotrt.engines.transcriber import Decoder, Transcriber, decoders_of
from nemotrt.errors import AudioError, BundleError, GraphError, UsageError

RATE = 16000


@pytest.fixture(scope="module", params=["tdt", "rnnt", "ctc"])
def transcriber(request: pytest.FixtureRequest, tdt_bundle: Bundle, hybrid_bundle: Bundle) -> Iterator[Transcriber]:
    decoder: Decoder = request.param
    with Transcriber(tdt_bundle if decoder == "tdt" else hybrid_bundle, decoder=decoder, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def demo_clips(demo_manifest: Path) -> tuple[Clip, ...]:
    return read_clips(demo_manifest)


@pytest.fixture(scope="module")
def waveforms(demo_clips: tuple[Clip, ...]) -> tuple[Waveform, ...]:
    return tuple(read_waveform(clip.path, sample_rate=RATE) for clip in demo_clips)


def silence(seconds: float) -> Waveform:
    return Waveform(np.zeros(round(seconds * RATE), dtype=np.float32), RATE)


def test_every_demo_clip_decodes_as_nemo_recorded(
    transcriber: Transcriber, demo_clips: tuple[Clip, ...], waveforms: tuple[Waveform, ...]
):
    for clip, waveform in zip(demo_clips, waveforms, strict=True):
        (heard,) = transcriber.transcribe([waveform])
        recorded = clip.recorded[transcriber.decoder]
        assert (heard.hypothesis.token_ids, heard.text) == (recorded.token_ids, recorded.text), clip.name


def test_a_batch_gives_what_each_clip_gives_alone(transcriber: Transcriber, waveforms: tuple[Waveform, ...]):
    for row, (waveform, heard) in enumerate(zip(waveforms, transcriber.transcribe(waveforms), strict=True)):
        (alone,) = transcriber.transcribe([waveform])
        assert heard.hypothesis == alone.hypothesis, row
        assert heard.text == alone.text
        np.testing.assert_allclose(heard.encoder_output, alone.encoder_output, atol=1e-4)


def test_only_the_valid_frames_are_returned(transcriber: Transcriber, waveforms: tuple[Waveform, ...]):
    meta = transcriber.bundle.meta
    width = meta.vocabulary_size + 1 if transcriber.decoder == "ctc" else meta.encoder.d_model
    for waveform, heard in zip(waveforms, transcriber.transcribe(waveforms), strict=True):
        feature_frames = len(waveform.samples) // meta.mel.hop_samples
        assert heard.encoded_length == meta.encoder.encoder_frames_from_feature_frames(feature_frames)
        assert heard.encoder_output.shape == (width, heard.encoded_length)
        assert all(0 <= frame < heard.encoded_length for frame in heard.hypothesis.frames)


def test_the_stages_apart_give_what_transcribe_gives(transcriber: Transcriber, waveforms: tuple[Waveform, ...]):
    audio_signal, length = transcriber.features(waveforms[:3])
    encoded, lengths = transcriber.encode(audio_signal, length)
    heard = transcriber.transcribe(waveforms[:3])
    assert transcriber.decode(encoded, lengths) == tuple(one.hypothesis for one in heard)


def test_no_waveforms_give_no_transcriptions(transcriber: Transcriber):
    assert transcriber.transcribe([]) == ()


def test_one_hop_is_enough_and_silence_is_finite(transcriber: Transcriber):
    (heard,) = transcriber.transcribe([silence(0.01)])
    assert heard.encoded_length == 1
    assert np.isfinite(heard.encoder_output).all()


def test_less_than_one_hop_is_refused(transcriber: Transcriber):
    with pytest.raises(AudioError, match="too short") as caught:
        transcriber.transcribe([silence(1), silence(0.009)])
    assert caught.value.where == "waveform 2 of 2"


def test_the_longest_audio_runs_and_one_frame_more_is_refused(transcriber: Transcriber):
    limit = transcriber.bundle.meta.encoder.max_feature_frames
    audio_signal, length = transcriber.features([silence(limit / 100)])
    assert length[0] == audio_signal.shape[2] == limit
    with pytest.raises(AudioError, match="longer than the model takes") as caught:
        transcriber.features([silence((limit + 1) / 100)])
    assert f"the limit is {limit / 100:g} s" in str(caught.value)


def test_another_sample_rate_is_refused(transcriber: Transcriber):
    with pytest.raises(AudioError, match="sample rate") as caught:
        transcriber.transcribe([Waveform(np.zeros(8000, np.float32), 8000)])
    assert "8000 Hz, 16000 Hz expected" in str(caught.value)


def test_the_label_names_each_backend_of_the_model_once(transcriber: Transcriber):
    assert transcriber.label.startswith("onnxruntime ")
    assert "+" not in transcriber.label


def test_decoders_are_those_the_components_allow(tdt_bundle: Bundle, hybrid_bundle: Bundle):
    assert decoders_of(tdt_bundle.meta) == ("tdt",)
    assert decoders_of(hybrid_bundle.meta) == ("rnnt", "ctc")
    with pytest.raises(BundleError, match="decode"):
        decoders_of(tdt_bundle.meta.model_copy(update={"transducer": None}))


def test_the_transducer_is_the_default(hybrid_bundle: Bundle):
    with Transcriber(hybrid_bundle, threads=1) as opened:
        assert opened.decoder == "rnnt"


def test_a_decoder_that_the_bundle_lacks_is_refused(tdt_bundle: Bundle):
    with pytest.raises(UsageError, match="no ctc decoder") as caught:
        Transcriber(tdt_bundle, decoder="ctc")
    assert caught.value.found == "tdt"


def test_only_the_graphs_of_the_decoder_are_opened(
    hybrid_bundle: Bundle, tmp_path: Path, waveforms: tuple[Waveform, ...]
):
    folder = tmp_path / "bundle"
    shutil.copytree(hybrid_bundle.path, folder)
    for name in ("encoder", "predictor", "joint"):
        (folder / f"{name}.onnx").write_bytes(b"")
    with Transcriber(Bundle(folder, hybrid_bundle.meta), decoder="ctc", threads=1) as opened:
        assert opened.transcribe(waveforms[:1])
    with pytest.raises(GraphError):
        Transcriber(Bundle(folder, hybrid_bundle.meta), decoder="rnnt", threads=1)


class WatchedRunner:
    """Another runner, with a memory of what happened to it."""

    def __init__(self, inner: OnnxRuntimeRunner) -> None:
        self._inner = inner
        self.label = "watched"
        self.runs = 0
        self.closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._inner.outputs

    def run(self, feeds: Arrays) -> dict[str, Array]:
        self.runs += 1
        return self._inner.run(feeds)

    def close(self) -> None:
        self.closed = True


def test_given_runners_are_used_and_left_open(tdt_bundle: Bundle, waveforms: tuple[Waveform, ...]):
    watched = WatchedRunner(OnnxRuntimeRunner(tdt_bundle.graph_path("encoder"), threads=1))
    with Transcriber(tdt_bundle, runners={"encoder": watched}, threads=1) as opened:
        assert opened.label.startswith("watched + onnxruntime")
        opened.transcribe(waveforms[:2])
    assert watched.runs == 1
    assert not watched.closed


def test_a_runner_for_no_component_is_refused(tdt_bundle: Bundle):
    runner = OnnxRuntimeRunner(tdt_bundle.graph_path("encoder"))
    with pytest.raises(UsageError, match="'encodr'"):
        Transcriber(tdt_bundle, runners={"encodr": runner})


def test_an_encoder_that_reports_wrong_lengths_is_refused(tdt_bundle: Bundle, waveforms: tuple[Waveform, ...]):
    class LyingRunner(WatchedRunner):
        def run(self, feeds: Arrays) -> dict[str, Array]:
            outputs = super().run(feeds)
            return outputs | {"encoded_lengths": outputs["encoded_lengths"] + 1}

    lying = LyingRunner(OnnxRuntimeRunner(tdt_bundle.graph_path("encoder"), threads=1))
    with (
        Transcriber(tdt_bundle, runners={"encoder": lying}, threads=1) as opened,
        pytest.raises(GraphError, match="encoded length"),
    ):
        opened.transcribe(waveforms[:1])

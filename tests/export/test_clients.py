"""Our graphs in other people's recognizers. Oracle: what NeMo's own greedy decoding says of each demo clip."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_sessions import Graph

from nemotrt.bundle import TOKENS_NAME, Bundle
from nemotrt.engines.audio import Clip, read_clips, read_waveform
from nemotrt.engines.decoding_ctc import greedy_ctc
from nemotrt.engines.tokenizer import tokenizer_from_bundle
from nemotrt.errors import UsageError
from nemotrt.export import ExportOptions, export_checkpoint
from nemotrt.export.client_layout import write_onnx_asr_layout

# sherpa-onnx computes its own features: kaldi's frames, whose centre is half a hop later than NeMo's, mirrored and not
# silent ends, and pre-emphasis within the frame. On a clip where NeMo itself mishears, that tips the balance.
HEARD_OTHERWISE_WITH_KALDI_FRAMES = {"off call gardge window": "off the c gardge window"}


@pytest.fixture(scope="module")
def clips(demo_manifest: Path) -> tuple[Clip, ...]:
    return read_clips(demo_manifest)


def samples(clip: Clip) -> NDArray[np.float32]:
    found: NDArray[np.float32] = read_waveform(clip.path, sample_rate=16000).samples
    return found


class TestSherpaOnnx:
    @pytest.fixture(scope="class")
    @classmethod
    def texts(cls, hybrid_bundle: Bundle, clips: tuple[Clip, ...]) -> list[str]:
        sherpa_onnx = pytest.importorskip("sherpa_onnx")
        recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
            model=str(hybrid_bundle.graph_path("ctc")),
            tokens=str(hybrid_bundle.path / TOKENS_NAME),
            feature_dim=hybrid_bundle.meta.mel.features,
            num_threads=1,
        )
        texts = []
        for clip in clips:
            stream = recognizer.create_stream()
            stream.accept_waveform(16000, samples(clip))
            recognizer.decode_stream(stream)
            texts.append(stream.result.text.strip())
        return texts

    def test_it_says_what_nemo_says(
        self, texts: list[str], clips: tuple[Clip, ...], figure: Callable[[str], None]
    ) -> None:
        nemo = [clip.recorded["ctc"].text for clip in clips]
        equal = sum(a == b for a, b in zip(texts, nemo, strict=True))
        figure(f"sherpa-onnx on the hybrid's CTC graph: NeMo's text on {equal} of {len(nemo)} demo clips")
        assert texts == [HEARD_OTHERWISE_WITH_KALDI_FRAMES.get(text, text) for text in nemo]
        assert equal == len(nemo) - len(HEARD_OTHERWISE_WITH_KALDI_FRAMES)

    def test_every_difference_comes_from_its_features(
        self, texts: list[str], clips: tuple[Clip, ...], hybrid_bundle: Bundle
    ) -> None:
        """Our graph, given kaldi's features of the same clips, says word for word what sherpa-onnx says."""
        graph, tokenizer = Graph.of(hybrid_bundle, "ctc"), tokenizer_from_bundle(hybrid_bundle)
        bank = mel_filters(hybrid_bundle)
        for clip, text in zip(clips, texts, strict=True):
            features = kaldi_features(samples(clip), bank)[None]
            logprobs, lengths = graph(audio_signal=features, length=np.array([features.shape[2]]))
            (hypothesis,) = greedy_ctc(logprobs, lengths, blank_id=hybrid_bundle.meta.blank_id)
            assert tokenizer.text(hypothesis.token_ids) == text


def mel_filters(bundle: Bundle) -> NDArray[np.float64]:
    """[F, n_fft / 2 + 1]; the graph holds them twice, for real and imaginary parts."""
    graph = onnx.load(str(bundle.graph_path("preprocessor"))).graph
    (tensor,) = (t for t in graph.initializer if t.name == "filter_bank")
    return numpy_helper.to_array(tensor)[:, : bundle.meta.mel.n_fft // 2 + 1].astype(np.float64)


def kaldi_features(waveform: NDArray[np.float32], bank: NDArray[np.float64]) -> NDArray[np.float32]:
    """Log-mel energies [F,T] as kaldi frames them (``snip_edges=false``): 25 ms around the middle of each 10 ms."""
    window, hop, samples = 400, 160, len(waveform)
    starts = np.arange((samples + hop // 2) // hop) * hop + hop // 2 - window // 2
    places = starts[:, None] + np.arange(window)
    places = np.where(places < 0, -places - 1, places)
    places = np.where(places >= samples, 2 * samples - 1 - places, places)
    frames = waveform[places].astype(np.float64)
    frames -= 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hanning(window), 512)) ** 2
    return np.log(np.maximum(power @ bank.T, np.finfo(np.float32).eps)).T.astype(np.float32)


def test_onnx_asr_says_what_nemo_says(
    hybrid_bundle: Bundle, clips: tuple[Clip, ...], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """With our front end: its own normalizes the features, and this model was trained on plain ones."""
    nemo_models = pytest.importorskip("onnx_asr.models.nemo")
    spec = hybrid_bundle.meta.components["ctc"]
    assert spec.data is not None
    shutil.copy(hybrid_bundle.path / spec.graph, tmp_path / "model.onnx")
    shutil.copy(hybrid_bundle.path / spec.data, tmp_path / spec.data)  # the name that the graph asks for
    shutil.copy(hybrid_bundle.path / TOKENS_NAME, tmp_path / "vocab.txt")  # onnx-asr's vocab.txt has ids
    front_end = Graph.of(hybrid_bundle, "preprocessor")
    recognizer = nemo_models.NemoConformerCtc(
        {"model": tmp_path / "model.onnx", "vocab": tmp_path / "vocab.txt"},
        lambda _name: lambda waveforms, lengths: front_end(waveform=waveforms, waveform_length=lengths),
        {},
    )
    found = []
    for clip in clips:
        waveform = samples(clip)[None]
        (result,) = recognizer.recognize_batch(waveform, np.array([waveform.shape[1]]))
        found.append(result.text)
    nemo = [clip.recorded["ctc"].text for clip in clips]
    figure(
        f"onnx-asr on the hybrid's CTC graph: NeMo's text on {sum(map(str.__eq__, found, nemo))} of {len(nemo)} clips"
    )
    assert found == nemo


def test_onnx_asr_loads_the_tdt_layout_unchanged_and_says_what_nemo_says(
    tdt_checkpoint: Path, clips: tuple[Clip, ...], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Loaded as a folder, by model type, with onnx-asr's own front end: nothing of ours but the files."""
    onnx_asr = pytest.importorskip("onnx_asr")
    bundle = export_checkpoint(tdt_checkpoint, tmp_path / "bundle", options=ExportOptions(components=("all",)))
    model_type = write_onnx_asr_layout(bundle, tmp_path / "model")
    recognizer = onnx_asr.load_model(model_type, tmp_path / "model")
    found = [recognizer.recognize(str(clip.path)) for clip in clips]
    nemo = [clip.recorded["tdt"].text for clip in clips]
    equal = sum(map(str.__eq__, found, nemo))
    figure(f"onnx-asr on the TDT layout, its own front end: NeMo's text on {equal} of {len(nemo)} demo clips")
    assert model_type == "nemo-conformer-tdt"
    assert found == nemo


def test_a_model_of_other_features_than_the_client_computes_gets_no_layout(
    hybrid_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="other features") as refusal:
        write_onnx_asr_layout(hybrid_bundle, tmp_path / "model")
    assert refusal.value.found == "normalize 'none', 'per_feature' there"
    assert list(tmp_path.iterdir()) == []


def test_a_layout_needs_the_fused_decoder_and_a_new_folder(tdt_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="predictor and joint in one graph"):
        write_onnx_asr_layout(tdt_bundle, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(UsageError, match="already there"):
        write_onnx_asr_layout(tdt_bundle, tmp_path)

"""Bundles in sherpa-onnx, loaded unchanged. Oracles: what NeMo's own greedy decoding says of each demo clip, and our
own graphs on sherpa-onnx's features."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from kaldi_features import kaldi_features, mel_filters
from onnx_sessions import Array, Graph

from nemotrt.bundle import TOKENS_NAME, Bundle, Decoder
from nemotrt.engines.audio import Clip, Waveform
from nemotrt.engines.decoding_ctc import greedy_ctc
from nemotrt.engines.tokenizer import tokenizer_from_bundle
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import UsageError
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint
from nemotrt.export.clients import write_sherpa_onnx_layout
from nemotrt.export.clients.sherpa_streaming import SherpaStream
from nemotrt.trt.precision import cast_bundle

sherpa_onnx = pytest.importorskip("sherpa_onnx")

TOLERANCE = 1e-5

# sherpa-onnx computes its own features: kaldi's frames, whose centre is half a hop later than NeMo's, mirrored and not
# silent ends, and pre-emphasis within the frame. On a clip where NeMo itself mishears, that tips the balance.
HEARD_OTHERWISE_WITH_KALDI_FRAMES = {"off call gardge window": "off the c gardge window"}


def loaded(folder: Path) -> Any:
    """The recognizer that the README of the folder tells to make."""
    call = (folder / "README.md").read_text(encoding="utf-8").split("```")[1].removeprefix("python\n")
    with contextlib.chdir(folder):
        return eval(call, {"sherpa_onnx": sherpa_onnx})


def offline_texts(recognizer: Any, waveforms: Sequence[Waveform]) -> list[str]:
    texts = []
    for waveform in waveforms:
        stream = recognizer.create_stream()
        stream.accept_waveform(16000, waveform.samples)
        recognizer.decode_stream(stream)
        texts.append(stream.result.text.strip())
    return texts


def online_text(recognizer: Any, samples: Array) -> str:
    """Fed in pieces of 0.2 s."""
    stream = recognizer.create_stream()
    for piece in np.split(samples, range(3200, len(samples), 3200)):
        stream.accept_waveform(16000, piece)
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    text: str = recognizer.get_result(stream)
    return text.strip()


@pytest.mark.parametrize("decoder", ["tdt", "rnnt", "ctc"])
def test_the_offline_layouts_say_what_nemo_says(
    complete_tdt_bundle: Bundle,
    complete_hybrid_bundle: Bundle,
    clips: tuple[Clip, ...],
    waveforms: tuple[Waveform, ...],
    tmp_path: Path,
    figure: Callable[[str], None],
    decoder: Decoder,
) -> None:
    bundle = complete_tdt_bundle if decoder == "tdt" else complete_hybrid_bundle
    write_sherpa_onnx_layout(bundle, tmp_path / "model", decoder=decoder)
    texts = offline_texts(loaded(tmp_path / "model"), waveforms)
    nemo = [clip.recorded[decoder].text for clip in clips]
    equal = sum(map(str.__eq__, texts, nemo))
    figure(f"sherpa-onnx on the {decoder} layout: NeMo's text on {equal} of {len(nemo)} demo clips")
    heard_otherwise = HEARD_OTHERWISE_WITH_KALDI_FRAMES if decoder == "ctc" else {}
    assert texts == [heard_otherwise.get(text, text) for text in nemo]
    assert equal == len(nemo) - len(heard_otherwise)


def test_every_difference_comes_from_its_features(
    complete_hybrid_bundle: Bundle, waveforms: tuple[Waveform, ...], tmp_path: Path
) -> None:
    """Our graph, given kaldi's features of the same clips, says word for word what sherpa-onnx says."""
    bundle = complete_hybrid_bundle
    write_sherpa_onnx_layout(bundle, tmp_path / "model", decoder="ctc")
    texts = offline_texts(loaded(tmp_path / "model"), waveforms)
    graph, tokenizer, bank = Graph.of(bundle, "ctc"), tokenizer_from_bundle(bundle), mel_filters(bundle)
    for waveform, text in zip(waveforms, texts, strict=True):
        features = kaldi_features(waveform.samples, bank)[None]
        logprobs, lengths = graph(audio_signal=features, length=np.array([features.shape[2]]))
        (hypothesis,) = greedy_ctc(logprobs, lengths, blank_id=bundle.meta.blank_id)
        assert tokenizer.text(hypothesis.token_ids) == text


def test_the_ctc_component_of_a_bundle_is_already_what_the_layout_holds(
    complete_hybrid_bundle: Bundle, waveforms: tuple[Waveform, ...], tmp_path: Path
) -> None:
    recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
        model=str(complete_hybrid_bundle.graph_path("ctc")), tokens=str(complete_hybrid_bundle.path / TOKENS_NAME)
    )
    write_sherpa_onnx_layout(complete_hybrid_bundle, tmp_path / "model", decoder="ctc")
    layout = loaded(tmp_path / "model")
    assert offline_texts(recognizer, waveforms) == offline_texts(layout, waveforms)


@pytest.mark.parametrize("key", ["url", "pred_hidden", "vocab_size"])
def test_without_its_metadata_sherpa_onnx_does_not_load_the_layout(
    complete_tdt_bundle: Bundle, tmp_path: Path, key: str
) -> None:
    """It ends the process, and so is loaded in one of its own."""
    write_sherpa_onnx_layout(complete_tdt_bundle, tmp_path / "model")
    assert loads_in_another_process(tmp_path / "model")
    path = tmp_path / "model" / "encoder.onnx"
    model = onnx.load(path, load_external_data=False)
    (entry,) = (entry for entry in model.metadata_props if entry.key == key)
    model.metadata_props.remove(entry)
    onnx.save(model, path)
    assert not loads_in_another_process(tmp_path / "model")


def loads_in_another_process(folder: Path) -> bool:
    program = (
        "import sherpa_onnx; sherpa_onnx.OfflineRecognizer.from_transducer(encoder='encoder.onnx', "
        "decoder='decoder.onnx', joiner='joiner.onnx', tokens='tokens.txt', model_type='nemo_transducer')"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, check=False)
    return ended.returncode == 0


class TestStreaming:
    @pytest.fixture(scope="class")
    @classmethod
    def bundles(cls, hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
        """By look-ahead: chunks of 14 encoder frames, and of one."""
        folder = tmp_path_factory.mktemp("streaming")
        return {
            lookahead: export_checkpoint(
                hybrid_checkpoint,
                folder / str(lookahead),
                options=ExportOptions(components=("all",), choices=ModelChoices(lookahead=lookahead)),
            )
            for lookahead in (13, 0)
        }

    @pytest.mark.parametrize("decoder", ["rnnt", "ctc"])
    @pytest.mark.parametrize("lookahead", [13, 0])
    def test_it_says_what_our_offline_encoder_says_of_the_same_features(
        self,
        bundles: dict[int, Bundle],
        clips: tuple[Clip, ...],
        waveforms: tuple[Waveform, ...],
        tmp_path: Path,
        figure: Callable[[str], None],
        lookahead: int,
        decoder: Decoder,
    ) -> None:
        bundle = bundles[lookahead]
        write_sherpa_onnx_layout(bundle, tmp_path / "model", decoder=decoder, streaming=True)
        recognizer = loaded(tmp_path / "model")
        silence = np.zeros(round(SherpaStream.of(bundle, decoder).silence_seconds * 16000), np.float32)
        padded = [np.concatenate([waveform.samples, silence]) for waveform in waveforms]
        found = [online_text(recognizer, samples) for samples in padded]
        with Transcriber(bundle, decoder=decoder, threads=1) as transcriber:
            ours = [decoded(transcriber, bundle, features_of(recognizer, samples)) for samples in padded]
        nemo = [clip.recorded[decoder].text for clip in clips]
        equal = sum(map(str.__eq__, found, ours))
        figure(
            f"sherpa-onnx on the streaming {decoder} layout, look-ahead {lookahead}: our text on {equal} of "
            f"{len(ours)} demo clips, NeMo's (look-ahead 13) on {sum(map(str.__eq__, found, nemo))}"
        )
        assert found == ours

    def test_without_silence_behind_it_the_end_of_a_stream_is_not_heard(
        self, bundles: dict[int, Bundle], waveforms: tuple[Waveform, ...], tmp_path: Path
    ) -> None:
        write_sherpa_onnx_layout(bundles[13], tmp_path / "model", streaming=True)
        recognizer = loaded(tmp_path / "model")
        silence = np.zeros(round(SherpaStream.of(bundles[13], "rnnt").silence_seconds * 16000), np.float32)
        assert f"with {len(silence) / 16000:.2f} s of silence" in (tmp_path / "model" / "README.md").read_text()
        shorter = [
            len(online_text(recognizer, waveform.samples))
            < len(online_text(recognizer, np.concatenate([waveform.samples, silence])))
            for waveform in waveforms
        ]
        assert any(shorter)

    def test_streams_that_are_decoded_together_say_what_each_says_alone(
        self, bundles: dict[int, Bundle], waveforms: tuple[Waveform, ...], tmp_path: Path
    ) -> None:
        """And begin one chunk after another."""
        write_sherpa_onnx_layout(bundles[13], tmp_path / "model", streaming=True)
        recognizer = loaded(tmp_path / "model")
        padded = [np.pad(waveform.samples, (0, 24000)) for waveform in waveforms[:4]]
        alone = [online_text(recognizer, samples) for samples in padded]
        streams: list[Any] = []
        for samples in padded:
            streams.append(recognizer.create_stream())
            streams[-1].accept_waveform(16000, samples)
            streams[-1].input_finished()
            recognizer.decode_streams([stream for stream in streams if recognizer.is_ready(stream)])
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
        assert [recognizer.get_result(stream).strip() for stream in streams] == alone

    @pytest.mark.parametrize("lookahead", [13, 0])
    def test_its_windows_give_the_frames_of_the_offline_encoder(
        self, bundles: dict[int, Bundle], tmp_path: Path, figure: Callable[[str], None], lookahead: int
    ) -> None:
        bundle = bundles[lookahead]
        write_sherpa_onnx_layout(bundle, tmp_path / "model", streaming=True)
        features = np.random.default_rng(0).standard_normal((2, 80, 1000)).astype(np.float32)
        found = np.concatenate(list(windowed(tmp_path / "model" / "encoder.onnx", features)), axis=2)
        (wanted, _) = Graph.of(bundle, "encoder")(audio_signal=features, length=np.array([1000, 1000]))
        difference = float(np.abs(found - wanted[:, :, : found.shape[2]]).max())
        figure(f"sherpa-onnx's windows, look-ahead {lookahead}: {difference:.1e} from the offline encoder")
        assert found.shape[2] > 100
        assert difference <= TOLERANCE

    def test_windows_without_the_frames_before_them_give_others(
        self, bundles: dict[int, Bundle], tmp_path: Path
    ) -> None:
        write_sherpa_onnx_layout(bundles[13], tmp_path / "model", streaming=True)
        features = np.random.default_rng(0).standard_normal((1, 80, 400)).astype(np.float32)
        lead = 80 * SherpaStream.of(bundles[13], "rnnt").lead
        path = tmp_path / "model" / "encoder.onnx"
        kept, forgotten = (list(windowed(path, features, forget=count)) for count in (0, lead))
        assert np.array_equal(kept[0], forgotten[0])
        assert np.abs(kept[1] - forgotten[1]).max() > 1000 * TOLERANCE


def windowed(path: Path, features: Array, *, forget: int = 0) -> Iterator[Array]:
    """What the graph gives window by window, fed as sherpa-onnx feeds it: by its metadata, and by position.

    The last ``forget`` numbers of a row's ``cache_last_time`` are zeroed before each window.
    """
    metadata = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    window, shift = int(metadata["window_size"]), int(metadata["chunk_shift"])
    batch = len(features)
    channel, time = (
        np.zeros([batch, *(int(metadata[f"{cache}_dim{axis}"]) for axis in (1, 2, 3))], np.float32)
        for cache in ("cache_last_channel", "cache_last_time")
    )
    cached, graph = np.zeros(batch, np.int64), Graph(path)
    for start in range(0, features.shape[2] - window, shift):
        time[..., time.shape[3] - forget :] = 0
        encoded, _, channel, time, cached = graph.positional(
            features[:, :, start : start + window], np.full(batch, window), channel, time, cached
        )
        yield encoded


def features_of(recognizer: Any, samples: Array) -> Array:
    """[F,T] as sherpa-onnx computed them."""
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, samples)
    stream.input_finished()
    frames = (len(samples) + 80) // 160
    return np.array(stream.get_frames(0, frames), np.float32).reshape(frames, -1).T


def decoded(transcriber: Transcriber, bundle: Bundle, features: Array) -> str:
    encoded, lengths = transcriber.encode(features[None], np.array([features.shape[1]]))
    (hypothesis,) = transcriber.decode(encoded, lengths)
    return tokenizer_from_bundle(bundle).text(hypothesis.token_ids)


def refused(bundle: Bundle, folder: Path, match: str, **options: Any) -> UsageError:
    with pytest.raises(UsageError, match=match) as refusal:
        write_sherpa_onnx_layout(bundle, folder / "model", **options)
    assert list(folder.iterdir()) == []
    return refusal.value


def test_a_stream_of_a_model_with_normalized_features_is_refused(complete_tdt_bundle: Bundle, tmp_path: Path) -> None:
    """sherpa-onnx would normalize window by window."""
    error = refused(complete_tdt_bundle, tmp_path, "other features", streaming=True)
    assert error.found == "normalize 'per_feature', 'none' there"


def test_features_of_another_window_are_refused(complete_tdt_bundle: Bundle, tmp_path: Path) -> None:
    meta = complete_tdt_bundle.meta
    mel = meta.mel.model_copy(update={"window_samples": 320, "preemphasis": None})
    bundle = Bundle(complete_tdt_bundle.path, meta.model_copy(update={"mel": mel}))
    error = refused(bundle, tmp_path, "other features")
    assert error.found == "window_samples 320, 400 there; preemphasis None, 0.97 there"


def test_what_the_bundle_lacks_is_named(hybrid_bundle: Bundle, tmp_path: Path) -> None:
    assert "encoder_streaming" in refused(hybrid_bundle, tmp_path, "does not have", streaming=True).what


def test_a_cache_of_keys_and_values_is_refused(hybrid_checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(components=("all",), cache="kv")
    bundle = export_checkpoint(hybrid_checkpoint, tmp_path / "bundles" / "kv", options=options)
    (tmp_path / "layouts").mkdir()
    error = refused(bundle, tmp_path / "layouts", "attention's inputs", streaming=True)
    assert (error.found, error.fix) == ("keys and values", "export the checkpoint with --cache inputs")


def test_durations_are_refused_where_sherpa_onnx_does_not_know_them(
    complete_hybrid_bundle: Bundle, tmp_path: Path
) -> None:
    """In a stream any; elsewhere those that are not 0, 1, 2, ..."""
    meta = complete_hybrid_bundle.meta
    assert meta.transducer is not None
    for durations, options, match in (((0, 1, 2), {"streaming": True}, "no TDT"), ((0, 2, 4), {}, "durations")):
        transducer = meta.transducer.model_copy(update={"durations": durations})
        bundle = Bundle(complete_hybrid_bundle.path, meta.model_copy(update={"transducer": transducer}))
        refused(bundle, tmp_path, match, **options)


@pytest.mark.parametrize("decoder", ["rnnt", "ctc"])
def test_a_bundle_in_half_precision_is_streamed_like_the_one_it_was_cast_from(
    complete_hybrid_bundle: Bundle, waveforms: tuple[Waveform, ...], tmp_path: Path, decoder: Decoder
) -> None:
    half = cast_bundle(complete_hybrid_bundle, tmp_path / "half")
    texts = []
    for name, bundle in (("single", complete_hybrid_bundle), ("half", half)):
        write_sherpa_onnx_layout(bundle, tmp_path / f"{name}-model", decoder=decoder, streaming=True)
        recognizer = loaded(tmp_path / f"{name}-model")
        texts.append([online_text(recognizer, np.pad(waveform.samples, (0, 24000))) for waveform in waveforms[:4]])
    assert texts[0] == texts[1]
    assert all(texts[0])


def test_a_decoder_that_the_bundle_does_not_have_is_refused(complete_hybrid_bundle: Bundle, tmp_path: Path) -> None:
    assert refused(complete_hybrid_bundle, tmp_path, "no tdt decoder", decoder="tdt").found == "rnnt, ctc"

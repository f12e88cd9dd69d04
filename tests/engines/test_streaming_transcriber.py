"""Streamed text equals the offline text of the same bundle. Oracle: ``Transcriber``, which its own tests hold against
what NeMo recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from nemotrt.bundle import Bundle, Decoder
from nemotrt.engines.audio import Waveform, read_clips, read_waveform
from nemotrt.engines.decoding_ctc import CtcSearch
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Array
from nemotrt.engines.streaming_transcriber import LiveText, StreamingTranscriber, TextStream, streaming_decoders_of
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import AudioError, UsageError
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint

LOOKAHEADS = (0, 1, 6, 13)
CACHES = ("inputs", "kv")
DECODERS: tuple[Decoder, ...] = ("rnnt", "ctc")
SIZES = (1777, 1, 160, 5003, 0, 23)
BundleOf = Callable[..., Bundle]


@pytest.fixture(scope="module")
def bundle_of(hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleOf:
    """The demo's hybrid with everything it can have, by look-ahead and cache; each is exported once."""
    made: dict[tuple[int, str], Bundle] = {}
    folder = tmp_path_factory.mktemp("streamed")

    def bundle(lookahead: int, cache: str = "inputs") -> Bundle:
        key = lookahead, cache
        if key not in made:
            options = ExportOptions(components=("all",), choices=ModelChoices(lookahead=lookahead), cache=cache)
            made[key] = export_checkpoint(hybrid_checkpoint, folder / f"{lookahead}-{cache}", options=options)
        return made[key]

    return bundle


@pytest.fixture(scope="module")
def speech(demo_manifest: Path) -> tuple[Waveform, ...]:
    return tuple(read_waveform(clip.path, sample_rate=16000) for clip in read_clips(demo_manifest))


def in_pieces(stream: TextStream, samples: Array, sizes: Sequence[int] = SIZES) -> tuple[LiveText, ...]:
    """``samples`` ``[batch, n]`` pushed in pieces of ``sizes``, repeated, to the end."""
    start = 0
    turns = cycle(sizes)
    while start < samples.shape[1]:
        size = next(turns)
        stream.push(samples[:, start : start + size])
        start += size
    return stream.finish()


def live_text_of(bundle: Bundle, decoder: Decoder, samples: Array, sizes: Sequence[int] = SIZES) -> LiveText:
    with StreamingTranscriber(bundle, decoder=decoder, threads=1) as transcriber:
        (live,) = in_pieces(transcriber.stream(), samples[None], sizes)
        return live


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_every_demo_clip_streamed_gives_the_offline_tokens_frames_and_text(
    bundle_of: BundleOf,
    speech: tuple[Waveform, ...],
    figure: Callable[[str], None],
    lookahead: int,
    cache: str,
    decoder: Decoder,
) -> None:
    bundle = bundle_of(lookahead, cache)
    with (
        Transcriber(bundle, decoder=decoder, threads=1) as offline,
        StreamingTranscriber(bundle, decoder=decoder, threads=1) as streaming,
    ):
        wanted = [offline.transcribe([waveform])[0] for waveform in speech]
        found = [in_pieces(streaming.stream(), waveform.samples[None])[0] for waveform in speech]
    equal = [
        (live.text, live.hypothesis) == (whole.text, whole.hypothesis)
        for live, whole in zip(found, wanted, strict=True)
    ]
    figure(f"streamed text, look-ahead {lookahead}, {cache} cache, {decoder}: {sum(equal)} of {len(equal)} clips equal")
    assert all(equal)
    assert all(live.text for live in found)


@pytest.mark.parametrize("decoder", DECODERS)
def test_two_halves_without_the_state_between_them_give_other_texts(
    bundle_of: BundleOf, speech: tuple[Waveform, ...], decoder: Decoder
) -> None:
    bundle = bundle_of(6)
    equal = 0
    for waveform in speech:
        whole = live_text_of(bundle, decoder, waveform.samples)
        halves = [live_text_of(bundle, decoder, half) for half in np.array_split(waveform.samples, 2)]
        equal += whole.hypothesis.token_ids == halves[0].hypothesis.token_ids + halves[1].hypothesis.token_ids
    assert equal < len(speech) / 2


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("sizes", [(1280,), (1281, 1279), (99999,), (7, 640)])
def test_the_pieces_decide_when_a_token_comes_but_not_which(
    bundle_of: BundleOf, speech: tuple[Waveform, ...], decoder: Decoder, sizes: tuple[int, ...]
) -> None:
    bundle, samples = bundle_of(1), speech[3].samples
    found = live_text_of(bundle, decoder, samples, sizes)
    with Transcriber(bundle, decoder=decoder, threads=1) as offline:
        (whole,) = offline.transcribe([speech[3]])
    assert (found.text, found.hypothesis) == (whole.text, whole.hypothesis)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("extra", [-161, -160, -1, 0, 1, 160])
@pytest.mark.parametrize("chunks", [0, 2])
def test_audio_of_whole_chunks_and_a_little_less_or_more_is_heard_to_its_end(
    bundle_of: BundleOf, speech: tuple[Waveform, ...], decoder: Decoder, chunks: int, extra: int
) -> None:
    bundle = bundle_of(6)
    assert bundle.meta.streaming is not None
    frames = bundle.meta.streaming.first_chunk_feature_frames + chunks * bundle.meta.streaming.chunk_feature_frames
    waveform = Waveform(speech[3].samples[: frames * 160 + extra], 16000)
    with Transcriber(bundle, decoder=decoder, threads=1) as offline:
        (whole,) = offline.transcribe([waveform])
    found = live_text_of(bundle, decoder, waveform.samples)
    assert (found.text, found.hypothesis) == (whole.text, whole.hypothesis)
    assert chunks == 0 or found.text


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("count", [0, 1, 159])
def test_less_than_one_feature_frame_is_heard_as_nothing(bundle_of: BundleOf, decoder: Decoder, count: int) -> None:
    assert live_text_of(bundle_of(6), decoder, np.ones(count, np.float32)) == LiveText()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("count", [160, 161, 400, 1280])
def test_very_short_audio_is_heard_as_offline(
    bundle_of: BundleOf, speech: tuple[Waveform, ...], decoder: Decoder, count: int
) -> None:
    waveform = Waveform(speech[0].samples[8000 : 8000 + count], 16000)
    with Transcriber(bundle_of(6), decoder=decoder, threads=1) as offline:
        (whole,) = offline.transcribe([waveform])
    assert live_text_of(bundle_of(6), decoder, waveform.samples).hypothesis == whole.hypothesis


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_new_tokens_of_all_pushes_are_the_tokens(
    bundle_of: BundleOf, speech: tuple[Waveform, ...], decoder: Decoder
) -> None:
    with StreamingTranscriber(bundle_of(1), decoder=decoder, threads=1) as transcriber:
        stream, news, texts = transcriber.stream(), [], []
        for piece in np.array_split(speech[0].samples, 20):
            (live,) = stream.push(piece[None])
            news += live.new_token_ids
            texts.append(live.text)
        before_the_end = len(news)
        (last,) = stream.finish()
    assert (*news, *last.new_token_ids) == last.hypothesis.token_ids
    assert before_the_end > 0
    assert len(set(texts)) > 5
    assert texts[0] == ""


def test_rows_of_a_batch_are_heard_as_each_alone(bundle_of: BundleOf, speech: tuple[Waveform, ...]) -> None:
    shortest = min(len(waveform.samples) for waveform in speech)
    rows = np.stack([waveform.samples[:shortest] for waveform in speech[:3]])
    for decoder in DECODERS:
        with StreamingTranscriber(bundle_of(6), decoder=decoder, threads=1) as transcriber:
            together = in_pieces(transcriber.stream(batch=3), rows)
            alone = [in_pieces(transcriber.stream(), row[None])[0] for row in rows]
        assert [live.hypothesis for live in together] == [live.hypothesis for live in alone]
        assert len({live.text for live in together}) == 3


def test_finishing_twice_says_the_same_and_a_finished_stream_takes_no_more(
    bundle_of: BundleOf, speech: tuple[Waveform, ...]
) -> None:
    with StreamingTranscriber(bundle_of(6), threads=1) as transcriber:
        stream = transcriber.stream()
        first = in_pieces(stream, speech[3].samples[None])[0]
        (second,) = stream.finish()
        assert (first.text, second.text) == ("set the light to red", "set the light to red")
        assert (second.hypothesis, second.new_token_ids) == (first.hypothesis, ())
        with pytest.raises(UsageError, match="finished"):
            stream.push(np.zeros((1, 10), np.float32))
        assert stream.finish() == (second,)


def test_samples_that_do_not_fit_are_refused(bundle_of: BundleOf) -> None:
    with (
        StreamingTranscriber(bundle_of(6), threads=1) as transcriber,
        pytest.raises(AudioError, match="do not fit the stream"),
    ):
        transcriber.stream().push(np.zeros(10, np.float32))


def test_the_head_alone_gives_what_the_whole_ctc_model_gives(bundle_of: BundleOf, speech: tuple[Waveform, ...]) -> None:
    bundle = bundle_of(6)
    head = OnnxRuntimeRunner(bundle.graph_path("ctc_head"), spec=bundle.component("ctc_head"), threads=1)
    with (
        Transcriber(bundle, decoder="rnnt", threads=1) as encoder,
        Transcriber(bundle, decoder="ctc", threads=1) as ctc,
    ):
        features = encoder.features(speech[:2])
        encoded, lengths = encoder.encode(*features)
        wanted, _ = ctc.encode(*features)
    found = head.run({"encoder_output": encoded})["logprobs"]
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5
    assert CtcSearch(2, blank_id=bundle.meta.blank_id).push(found, lengths)[0].token_ids


def test_a_chunk_is_as_long_as_the_encoder_s(bundle_of: BundleOf) -> None:
    for lookahead, seconds in ((0, 0.08), (6, 0.56)):
        with StreamingTranscriber(bundle_of(lookahead), threads=1) as transcriber:
            assert transcriber.chunk_seconds == pytest.approx(seconds)


def test_a_bundle_without_the_streaming_components_is_refused_with_the_command_that_makes_them(
    hybrid_bundle: Bundle, bundle_of: BundleOf
) -> None:
    assert streaming_decoders_of(hybrid_bundle.meta) == ()
    assert streaming_decoders_of(bundle_of(6).meta) == ("rnnt", "ctc")
    for bundle, decoder in ((hybrid_bundle, None), (hybrid_bundle, "ctc"), (bundle_of(6), "tdt")):
        with pytest.raises(UsageError, match="has not the components of a stream") as refusal:
            StreamingTranscriber(bundle, decoder=decoder)
        assert "nemotrt export MODEL.nemo -o BUNDLE --component all" in str(refusal.value.fix)


def test_given_runners_are_used_and_left_open(bundle_of: BundleOf, speech: tuple[Waveform, ...]) -> None:
    bundle = bundle_of(6)
    given = OnnxRuntimeRunner(bundle.graph_path("joint"), spec=bundle.component("joint"), threads=1)
    for _ in range(2):
        with StreamingTranscriber(bundle, runners={"joint": given}, threads=1) as transcriber:
            assert in_pieces(transcriber.stream(), speech[3].samples[None])[0].text == "set the light to red"
    with pytest.raises(UsageError, match="'joynt'"):
        StreamingTranscriber(bundle, runners={"joynt": given})

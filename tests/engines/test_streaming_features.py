"""Features of a waveform in pieces equal those of the whole. Oracle: the preprocessor run once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotrt.bundle import Bundle
from nemotrt.engines.audio import read_waveform
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Array
from nemotrt.engines.streaming_features import StreamingFeatures
from nemotrt.errors import AudioError, UnsupportedModelError, UsageError

TOLERANCE = 1e-5
ROUNDING = 4 * np.finfo(np.float32).eps
HOP, HALF_WINDOW = 160, 200


@pytest.fixture(scope="module")
def front_end(hybrid_bundle: Bundle) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(
        hybrid_bundle.graph_path("preprocessor"), spec=hybrid_bundle.component("preprocessor"), threads=1
    )


@pytest.fixture(scope="module")
def speech(demo_manifest: Path) -> Array:
    """Two rows of two seconds."""
    clips = [demo_manifest.parent / "clips" / f"0000{number}.wav" for number in (0, 1)]
    return np.stack([read_waveform(clip, sample_rate=16000).samples[:32000] for clip in clips])


def whole(front_end: OnnxRuntimeRunner, samples: Array) -> Array:
    lengths = np.full(len(samples), samples.shape[1], np.int64)
    return front_end.run({"waveform": samples, "waveform_length": lengths})["audio_signal"]


def difference(found: Array, wanted: Array) -> float:
    """The largest one of the log-mel energies, less what rounding explains: a sum over the window has the rounding
    error of the frame's strongest band, however little is left in its own."""
    strongest = wanted.max(axis=1, keepdims=True)
    return float((np.abs(found - wanted) - ROUNDING * np.exp((strongest - wanted) / 2)).max())


def streamed(stream: StreamingFeatures, samples: Array, sizes: Sequence[int]) -> Array:
    parts, start = [], 0
    turns = cycle(sizes)
    while start < samples.shape[1]:
        size = next(turns)
        parts.append(stream.push(samples[:, start : start + size]))
        start += size
    return np.concatenate([*parts, stream.finish()], axis=2)


@settings(deadline=None)
@given(
    length=st.integers(HOP, 9000),
    begin=st.integers(0, 20000),
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 20),
)
def test_features_in_any_pieces_are_those_of_the_whole(
    hybrid_bundle: Bundle, front_end: OnnxRuntimeRunner, speech: Array, length: int, begin: int, sizes: list[int]
) -> None:
    samples = speech[:, begin : begin + length]
    found = streamed(StreamingFeatures(hybrid_bundle, front_end, batch=2), samples, sizes)
    wanted = whole(front_end, samples)
    assert found.shape == wanted.shape
    assert difference(found, wanted) <= TOLERANCE


def test_features_sample_by_sample_are_those_of_the_whole(
    hybrid_bundle: Bundle, front_end: OnnxRuntimeRunner, speech: Array, figure: Callable[[str], None]
) -> None:
    samples = speech[:, :9001]
    wanted, worst = whole(front_end, samples), 0.0
    for size in (1, 7, HOP, 1777):
        found = streamed(StreamingFeatures(hybrid_bundle, front_end, batch=2), samples, [size])
        worst = max(worst, float(np.abs(found - wanted).max()))
        assert difference(found, wanted) <= TOLERANCE
    figure(f"streamed log-mel features, pieces of 1 to 1777 samples: {worst:.1e} from offline, rounding included")


def test_a_stream_that_forgets_its_last_samples_is_seen(
    hybrid_bundle: Bundle, front_end: OnnxRuntimeRunner, speech: Array
) -> None:
    samples = speech[:, : 50 * HOP]
    parts = [
        streamed(StreamingFeatures(hybrid_bundle, front_end, batch=2), part, [HOP])
        for part in np.split(samples, 2, axis=1)
    ]
    assert difference(np.concatenate(parts, axis=2), whole(front_end, samples)) > 1000 * TOLERANCE


def test_a_frame_comes_with_the_last_sample_of_its_window(
    hybrid_bundle: Bundle, front_end: OnnxRuntimeRunner, speech: Array
) -> None:
    stream = StreamingFeatures(hybrid_bundle, front_end, batch=2)
    end = 30 * HOP + HALF_WINDOW
    assert stream.push(speech[:, : end - 1]).shape[2] == 30
    assert stream.push(speech[:, end - 1 : end]).shape[2] == 1
    assert stream.push(speech[:, end:end]).shape[2] == 0


@pytest.mark.parametrize("count", [0, 1, HOP - 1])
def test_less_than_one_frame_of_audio_has_no_features(
    hybrid_bundle: Bundle, front_end: OnnxRuntimeRunner, count: int
) -> None:
    stream = StreamingFeatures(hybrid_bundle, front_end)
    assert stream.push(np.zeros((1, count), np.float32)).shape == (1, 80, 0)
    assert stream.finish().shape == (1, 80, 0)


def test_a_finished_stream_gives_nothing_more_and_takes_nothing_more(
    hybrid_bundle: Bundle, front_end: OnnxRuntimeRunner, speech: Array
) -> None:
    stream = StreamingFeatures(hybrid_bundle, front_end, batch=2)
    assert stream.push(speech[:, : 7 * HOP]).shape[2] == 6
    assert stream.finish().shape[2] == 1
    assert stream.finish().shape[2] == 0
    with pytest.raises(UsageError, match="finished"):
        stream.push(speech[:, :1000])


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(10, np.float32),
        np.zeros((2, 10), np.float32),
        np.zeros((1, 10), np.int16),
        np.full((1, 10), np.nan, np.float32),
    ],
)
def test_samples_that_do_not_fit_are_refused_and_none_is_taken(
    hybrid_bundle: Bundle, front_end: OnnxRuntimeRunner, speech: Array, samples: Array
) -> None:
    stream, row = StreamingFeatures(hybrid_bundle, front_end), speech[:1, :4000]
    first = stream.push(row[:, :2000])
    with pytest.raises(AudioError, match="do not fit the stream") as refusal:
        stream.push(samples)
    assert "[1, n] at 16000 Hz" in str(refusal.value.fix)
    rest = [first, stream.push(row[:, 2000:]), stream.finish()]
    assert difference(np.concatenate(rest, axis=2), whole(front_end, row)) <= TOLERANCE


def test_features_normalized_over_the_utterance_are_refused(
    hybrid_bundle: Bundle, front_end: OnnxRuntimeRunner
) -> None:
    mel = hybrid_bundle.meta.mel.model_copy(update={"normalize": "per_feature"})
    normalized = replace(hybrid_bundle, meta=hybrid_bundle.meta.model_copy(update={"mel": mel}))
    with pytest.raises(UnsupportedModelError, match="whole utterance") as refusal:
        StreamingFeatures(normalized, front_end)
    assert "per_feature" in str(refusal.value.found)

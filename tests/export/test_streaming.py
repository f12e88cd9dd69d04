"""Streamed equals offline: every look-ahead, both cache layouts, chunks of any size. Oracle: the offline encoder graph,
which ``test_parity.py`` holds against NeMo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from nemo_oracle import NemoModel
from numpy.typing import NDArray

from nemotrt.bundle import Bundle, CacheLayout
from nemotrt.engines.audio import Waveform, read_clips, read_waveform
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.streaming import StreamingEncoder
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import UnsupportedModelError, UsageError
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint

TOLERANCE = 1e-5
CHUNKS = 100
LOOKAHEADS = (13, 6, 1, 0)
COMPONENTS = ("preprocessor", "encoder", "predictor", "joint", "encoder_streaming")


@pytest.fixture(scope="module")
def speech(demo_manifest: Path) -> NDArray[np.float32]:
    """Demo clips one after another, 45 s."""
    return np.concatenate([read_waveform(clip.path, sample_rate=16000).samples for clip in read_clips(demo_manifest)])


def exported(checkpoint: Path, folder: Path, *, lookahead: int, cache: CacheLayout = "inputs") -> Bundle:
    options = ExportOptions(components=COMPONENTS, choices=ModelChoices(lookahead=lookahead), cache=cache)
    return export_checkpoint(checkpoint, folder / f"{lookahead}-{cache}", options=options)


def streamed(bundle: Bundle, features: NDArray[Any], sizes: list[int]) -> NDArray[np.float32]:
    """The features pushed in pieces of ``sizes`` frames, repeated."""
    runner = OnnxRuntimeRunner(
        bundle.graph_path("encoder_streaming"), spec=bundle.component("encoder_streaming"), threads=1
    )
    stream = StreamingEncoder(bundle, runner, batch=features.shape[0])
    outputs, start, turn = [], 0, 0
    while start < features.shape[2]:
        size = sizes[turn % len(sizes)]
        outputs.append(stream.push(features[:, :, start : start + size]))
        start, turn = start + size, turn + 1
    outputs.append(stream.finish())
    runner.close()
    return np.concatenate(outputs, axis=2)


@pytest.mark.parametrize("cache", ["inputs", "kv"])
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_a_hundred_chunks_of_speech_streamed_equal_the_offline_encoder(
    hybrid_checkpoint: Path,
    hybrid_nemo: NemoModel,
    tmp_path: Path,
    speech: NDArray[np.float32],
    figure: Callable[[str], None],
    lookahead: int,
    cache: CacheLayout,
) -> None:
    bundle = exported(hybrid_checkpoint, tmp_path, lookahead=lookahead, cache=cache)
    samples = (CHUNKS * (lookahead + 1) + 1) * 8 * 160 + 3 * 160  # a short last chunk
    waveform = Waveform(np.resize(speech, samples), 16000)
    with Transcriber(bundle, threads=1) as offline:
        features, length = offline.features([waveform])
        wanted, lengths = offline.encode(features, length)
        found = streamed(bundle, features, sizes=[1, 40, 0, 333, 7])
        assert found.shape == wanted.shape
        assert found.shape[2] > CHUNKS * (lookahead + 1)
        difference = float(np.abs(found - wanted).max())
        figure(f"{CHUNKS} streamed chunks, look-ahead {lookahead}, {cache} cache: {difference:.1e} from offline")
        assert difference <= TOLERANCE
        assert offline.decode(found, lengths) == offline.decode(wanted, lengths)
    trained = hybrid_nemo.encoder_module.att_context_size
    hybrid_nemo.encoder_module.set_default_att_context_size(list(bundle.meta.encoder.attention_context))
    nemos, nemo_lengths = hybrid_nemo.encoder(features, length)
    hybrid_nemo.encoder_module.set_default_att_context_size(trained)
    assert nemo_lengths.tolist() == lengths.tolist()
    difference = float(np.abs(found - nemos).max())
    figure(f"{CHUNKS} streamed chunks, look-ahead {lookahead}, {cache} cache: {difference:.1e} from NeMo's offline")
    assert difference <= TOLERANCE


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 16, 17, 104, 105, 106, 216, 217, 218, 330])
def test_audio_that_ends_anywhere_in_a_chunk_is_encoded_to_its_end(
    hybrid_checkpoint: Path, tmp_path: Path, frames: int
) -> None:
    bundle = exported(hybrid_checkpoint, tmp_path, lookahead=13)
    features = np.random.default_rng(frames).standard_normal((3, 80, frames)).astype(np.float32)
    with Transcriber(bundle, threads=1) as offline:
        wanted, lengths = offline.encode(features, np.full(3, frames))
    found = streamed(bundle, features, sizes=[frames])
    assert found.shape[2] == lengths[0]
    assert np.abs(found - wanted[:, :, : lengths[0]]).max() <= TOLERANCE


def test_a_stream_that_forgets_its_caches_is_seen(hybrid_checkpoint: Path, tmp_path: Path) -> None:
    bundle = exported(hybrid_checkpoint, tmp_path, lookahead=6)
    features = np.random.default_rng(0).standard_normal((1, 80, 400)).astype(np.float32)
    with Transcriber(bundle, threads=1) as offline:
        wanted, lengths = offline.encode(features, np.array([400]))
    found = np.concatenate([streamed(bundle, part, sizes=[400]) for part in np.split(features, 2, axis=2)], axis=2)
    assert np.abs(found[:, :, : lengths[0]] - wanted).max() > 1000 * TOLERANCE


@pytest.mark.parametrize("frames", [7, 35, 140])
def test_a_cache_of_another_size_streams_what_attention_of_that_reach_encodes(
    hybrid_checkpoint: Path, tmp_path: Path, frames: int
) -> None:
    choices = ModelChoices(lookahead=6, left_context=frames)
    options = ExportOptions(components=COMPONENTS, choices=choices)
    bundle = export_checkpoint(hybrid_checkpoint, tmp_path / "m", options=options)
    assert bundle.meta.streaming is not None
    assert bundle.meta.streaming.left_context_frames == frames
    features = np.random.default_rng(0).standard_normal((1, 80, 1500)).astype(np.float32)
    with Transcriber(bundle, threads=1) as offline:
        wanted, lengths = offline.encode(features, np.array([1500]))
    found = streamed(bundle, features, sizes=[100])
    assert found.shape[2] == lengths[0]
    assert np.abs(found - wanted[:, :, : lengths[0]]).max() <= TOLERANCE


def test_the_cache_length_grows_to_the_left_context_and_stays(hybrid_checkpoint: Path, tmp_path: Path) -> None:
    bundle = exported(hybrid_checkpoint, tmp_path, lookahead=13)
    spec = bundle.component("encoder_streaming")
    runner = OnnxRuntimeRunner(bundle.graph_path("encoder_streaming"), spec=spec, threads=1)
    shapes = {tensor.name: [2 if axis == "batch" else int(axis) for axis in tensor.shape] for tensor in spec.inputs}
    feeds = {tensor.name: np.zeros(shapes[tensor.name], tensor.dtype) for tensor in spec.inputs}
    feeds["length"][:] = 121
    lengths = []
    for _ in range(7):
        outputs = runner.run(feeds)
        feeds |= {name: outputs[f"{name}_out"] for name in feeds if name.startswith("cache")}
        lengths.append(outputs["cache_last_channel_len_out"].tolist())
    assert lengths == [[n, n] for n in (14, 28, 42, 56, 70, 70, 70)]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("att_context_style", "regular", "att_context_style"),
        ("causal_downsampling", False, "causal_downsampling"),
        ("conv_context_size", None, "conv_context_size"),
        ("att_context_size", [-1, 1], "att_context_size"),
    ],
)
def test_an_encoder_that_was_not_trained_for_streaming_is_refused_with_the_reason(
    hybrid_checkpoint: Path, tmp_path: Path, key: str, value: object, named: str
) -> None:
    members = archives.read_members(hybrid_checkpoint)
    config = archives.changed(archives.config_of(members), f"encoder.{key}", value)
    archives.write_archive(tmp_path / "m.nemo", archives.with_config(members, config))
    with pytest.raises(UnsupportedModelError, match="not trained for streaming") as refusal:
        export_checkpoint(tmp_path / "m.nemo", tmp_path / "m", options=ExportOptions(components=COMPONENTS))
    assert named in str(refusal.value.found)
    assert not (tmp_path / "m").exists()


def test_a_component_that_the_model_does_not_have_is_refused(tdt_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no component 'ctc'") as refusal:
        export_checkpoint(tdt_checkpoint, tmp_path / "m", options=ExportOptions(components=("encoder", "ctc")))
    assert "greedy_step" in str(refusal.value.fix)


def test_rows_of_a_batch_may_be_at_different_points_of_their_streams(hybrid_checkpoint: Path, tmp_path: Path) -> None:
    """A first window and a fourth one in one call give what each gives alone."""
    bundle = exported(hybrid_checkpoint, tmp_path, lookahead=6)
    spec = bundle.component("encoder_streaming")
    runner = OnnxRuntimeRunner(bundle.graph_path("encoder_streaming"), spec=spec, threads=1)
    shapes = {tensor.name: [1 if axis == "batch" else int(axis) for axis in tensor.shape] for tensor in spec.inputs}
    window = shapes["audio_signal"][2]
    first = {tensor.name: np.zeros(shapes[tensor.name], tensor.dtype) for tensor in spec.inputs}
    first |= {"length": np.array([window])}
    rng = np.random.default_rng(0)
    late = dict(first)
    for _ in range(3):
        signal = rng.standard_normal(shapes["audio_signal"]).astype(np.float32)
        outputs = runner.run({**late, "audio_signal": signal})
        late |= {name: outputs[f"{name}_out"] for name in late if name.startswith("cache")}
    signals = rng.standard_normal((2, *shapes["audio_signal"][1:])).astype(np.float32)
    alone = [runner.run({**state, "audio_signal": signals[i : i + 1]}) for i, state in enumerate((first, late))]
    axis_of_batch = {name: shape.index("batch") for name, shape in ((t.name, t.shape) for t in spec.inputs)}
    together = runner.run(
        {
            **{name: np.concatenate([first[name], late[name]], axis=axis) for name, axis in axis_of_batch.items()},
            "audio_signal": signals,
        }
    )
    for row, outputs in enumerate(alone):
        assert np.abs(together["encoder_output"][row] - outputs["encoder_output"][0]).max() <= TOLERANCE


def test_pushed_features_of_another_shape_are_refused(hybrid_checkpoint: Path, tmp_path: Path) -> None:
    bundle = exported(hybrid_checkpoint, tmp_path, lookahead=6)
    spec = bundle.component("encoder_streaming")
    runner = OnnxRuntimeRunner(bundle.graph_path("encoder_streaming"), spec=spec, threads=1)
    stream = StreamingEncoder(bundle, runner)
    for shape in ((2, 80, 10), (1, 64, 10), (80, 10)):
        with pytest.raises(UsageError, match="do not fit the stream"):
            stream.push(np.zeros(shape, np.float32))


def test_a_cache_layout_without_a_cache_is_refused(hybrid_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing that has a cache"):
        export_checkpoint(hybrid_checkpoint, tmp_path / "m", options=ExportOptions(cache="kv"))

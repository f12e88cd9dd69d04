"""The exported graphs against NeMo on the demo checkpoints. Oracle: NeMo, on the CPU, in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from nemo_oracle import NemoModel
from numpy.typing import NDArray
from onnx_sessions import Graph, worst_of_rows

from nemotrt.bundle import Bundle
from nemotrt.export.positions import position_table

# Float32 through 4 layers: rounding reaches a few 1e-6 where the outputs are of the order of 1.
ENCODER_TOLERANCE = 1e-5
PREDICTOR_TOLERANCE = 1e-5
# Logits and log probabilities are of the order of 10, log-mel energies too.
LOGITS_TOLERANCE = 1e-4
MEL_TOLERANCE = 1e-4
# The logarithm of a quiet bin beside loud ones is what float32 makes of it: NeMo's own FFT is off by 1.8e-4.
MEL_FLOAT64_TOLERANCE = 2e-4

# Lengths per batch, the longest first. 90 % padding, odd, multiples of 8 and their neighbours, one frame.
RAGGED = (
    (1,), (2, 1), (3, 2), (4, 3, 1), (5, 4), (6, 1), (7, 6), (8, 7, 5, 3, 1), (9, 8, 7), (17, 16, 15, 1),
    (97, 96, 95, 9), (111,), (112, 111, 105), (305, 304, 303, 40, 31), (640, 64), (1201, 803, 121),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    name: str
    bundle: Bundle
    nemo: NemoModel

    def graph(self, component: str) -> Graph:
        return Graph.of(self.bundle, component)

    def signal(self, lengths: tuple[int, ...], *, seed: int = 0) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Noise in the valid frames, zeros behind them."""
        rng = np.random.default_rng([seed, *lengths])
        signal = rng.standard_normal((len(lengths), self.bundle.meta.encoder.features, max(lengths)))
        return padded(signal.astype(np.float32), lengths, 0.0), np.array(lengths)


def padded(signal: NDArray[Any], lengths: tuple[int, ...], value: float) -> NDArray[Any]:
    result = signal.copy()
    for row, length in zip(result, lengths, strict=True):
        row[..., length:] = value
    return result


@pytest.fixture(scope="module", params=["tdt", "hybrid"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(
        request.param,
        request.getfixturevalue(f"{request.param}_bundle"),
        request.getfixturevalue(f"{request.param}_nemo"),
    )


@pytest.fixture(scope="module")
def clips(demo_manifest: Path) -> list[NDArray[np.float32]]:
    lines = demo_manifest.read_text(encoding="utf-8").splitlines()
    paths = [demo_manifest.parent / json.loads(line)["audio_filepath"] for line in lines]
    return [soundfile.read(path, dtype="float32")[0] for path in paths]


def test_the_encoder_agrees_on_ragged_batches(pair: Pair, figure: Callable[[str], None]) -> None:
    graph, worst = pair.graph("encoder"), 0.0
    for lengths in RAGGED:
        signal, valid = pair.signal(lengths)
        wanted, wanted_lengths = pair.nemo.encoder(signal, valid)
        found, found_lengths = graph(audio_signal=signal, length=valid)
        assert found_lengths.tolist() == wanted_lengths.tolist(), lengths
        assert found.shape == wanted.shape, lengths
        worst = np.maximum(worst, worst_of_rows(found, wanted, wanted_lengths, axis=2))
    figure(
        f"encoder of the {pair.name} demo against NeMo, {len(RAGGED)} ragged batches: "
        f"worst difference {worst:.1e} (bound {ENCODER_TOLERANCE:.0e}), lengths equal"
    )
    assert 0 < worst <= ENCODER_TOLERANCE


@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e30, "noise"])
def test_what_stands_in_the_padding_does_not_change_a_valid_frame(pair: Pair, junk: float | str) -> None:
    lengths = (305, 304, 150, 31, 1)
    signal, valid = pair.signal(lengths)
    noise = 100 * np.random.default_rng(1).standard_normal(signal.shape).astype(np.float32)
    dirty = (
        np.where(padded(np.ones_like(signal), lengths, 0) > 0, signal, noise)
        if isinstance(junk, str)
        else padded(signal, lengths, junk)
    )
    for component, axis in (("encoder", 2), ("ctc", 1)):
        if component in pair.bundle.meta.components:
            graph = pair.graph(component)
            clean_output, output_lengths = graph(audio_signal=signal, length=valid)
            dirty_output, _ = graph(audio_signal=dirty, length=valid)
            assert worst_of_rows(dirty_output, clean_output, output_lengths, axis=axis) == 0.0


def test_a_difference_in_a_valid_frame_is_seen(pair: Pair) -> None:
    signal, valid = pair.signal((80, 40))
    altered = signal.copy()
    altered[1, :, 39] += 0.01
    graph = pair.graph("encoder")
    (a, lengths), (b, _) = graph(audio_signal=signal, length=valid), graph(audio_signal=altered, length=valid)
    assert worst_of_rows(a, b, lengths, axis=2) > ENCODER_TOLERANCE


def test_a_row_is_the_same_alone_and_in_a_batch(pair: Pair) -> None:
    signal, valid = pair.signal((305, 200, 40, 9, 1))
    graph = pair.graph("encoder")
    together, lengths = graph(audio_signal=signal, length=valid)
    alone = [graph(audio_signal=signal[i : i + 1, :, :n], length=valid[i : i + 1])[0][0] for i, n in enumerate(valid)]
    for row, single, length in zip(together, alone, lengths, strict=True):
        assert np.abs(row[:, :length] - single).max() <= ENCODER_TOLERANCE


def test_the_predictor_agrees_for_one_and_for_many_tokens(pair: Pair, figure: Callable[[str], None]) -> None:
    graph, spec, worst = pair.graph("predictor"), pair.bundle.meta.transducer, 0.0
    assert spec is not None
    rng = np.random.default_rng(0)
    for batch, tokens in ((1, 1), (4, 1), (3, 7)):
        y = rng.integers(0, pair.bundle.meta.blank_id + 1, (batch, tokens))
        y[0, 0] = pair.bundle.meta.blank_id
        shape = (spec.predictor_layers, batch, spec.predictor_hidden)
        h, c = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        for found, wanted in zip(graph(y=y, h=h, c=c), pair.nemo.predictor(y, h, c), strict=True):
            assert found.shape == wanted.shape
            worst = np.maximum(worst, np.abs(found - wanted).max())
    figure(f"predictor of the {pair.name} demo against NeMo: worst difference {worst:.1e}")
    assert 0 < worst <= PREDICTOR_TOLERANCE


def test_blank_with_zero_states_is_how_nemo_starts(pair: Pair) -> None:
    spec = pair.bundle.meta.transducer
    assert spec is not None
    zeros = np.zeros((spec.predictor_layers, 1, spec.predictor_hidden), np.float32)
    found = pair.graph("predictor")(y=np.array([[pair.bundle.meta.blank_id]]), h=zeros, c=zeros)[0]
    start, _ = pair.nemo.decoder.predict(None, state=None, add_sos=False, batch_size=1)
    assert np.abs(found[:, :, 0] - start[:, 0].detach().numpy()).max() <= PREDICTOR_TOLERANCE


def test_the_joint_gives_the_raw_logits(pair: Pair, figure: Callable[[str], None]) -> None:
    meta, rng = pair.bundle.meta, np.random.default_rng(0)
    assert meta.transducer is not None
    encoder_output = rng.standard_normal((3, meta.encoder.d_model, 6)).astype(np.float32)
    predictor_output = rng.standard_normal((3, meta.transducer.predictor_hidden, 4)).astype(np.float32)
    found = pair.graph("joint")(encoder_output=encoder_output, predictor_output=predictor_output)[0]
    wanted = pair.nemo.joint(encoder_output, predictor_output)
    assert found.shape == wanted.shape == (3, 6, 4, meta.logits_width)
    worst = np.abs(found - wanted).max()
    figure(f"joint of the {pair.name} demo against NeMo, raw logits: worst difference {worst:.1e}")
    assert 0 < worst <= LOGITS_TOLERANCE


def test_the_ctc_graph_agrees(hybrid_bundle: Bundle, hybrid_nemo: NemoModel, figure: Callable[[str], None]) -> None:
    pair, worst = Pair("hybrid", hybrid_bundle, hybrid_nemo), 0.0
    graph = pair.graph("ctc")
    for lengths in ((1,), (8, 7, 1), (305, 304, 40), (640, 63)):
        signal, valid = pair.signal(lengths)
        encoder_output, wanted_lengths = hybrid_nemo.encoder(signal, valid)
        found, found_lengths = graph(audio_signal=signal, length=valid)
        assert found_lengths.tolist() == wanted_lengths.tolist()
        wanted = hybrid_nemo.ctc(encoder_output)
        worst = np.maximum(worst, worst_of_rows(found, wanted, wanted_lengths, axis=1))
    figure(f"CTC log probabilities of the hybrid demo against NeMo: worst difference {worst:.1e}")
    assert 0 < worst <= LOGITS_TOLERANCE


def test_the_mel_front_end_agrees_on_the_demo_clips(
    pair: Pair, clips: list[NDArray[np.float32]], figure: Callable[[str], None]
) -> None:
    graph, worst = pair.graph("preprocessor"), 0.0
    for start in range(0, len(clips), 4):
        group = clips[start : start + 4]
        lengths = np.array([len(clip) for clip in group])
        waveforms = np.stack([np.pad(clip, (0, lengths.max() - len(clip))) for clip in group])
        wanted, wanted_lengths = pair.nemo.features(waveforms, lengths)
        found, found_lengths = graph(waveform=waveforms, waveform_length=lengths)
        assert found_lengths.tolist() == wanted_lengths.tolist()
        worst = np.maximum(worst, worst_of_rows(found, wanted, wanted_lengths, axis=2))
    figure(f"mel front end of the {pair.name} demo against NeMo on {len(clips)} clips: worst difference {worst:.1e}")
    assert 0 < worst <= MEL_TOLERANCE


def test_the_mel_front_end_agrees_with_float64(
    pair: Pair, clips: list[NDArray[np.float32]], figure: Callable[[str], None]
) -> None:
    graph, worst, worst_nemo = pair.graph("preprocessor"), 0.0, 0.0
    for clip in clips:
        waveform, length = clip[None], np.array([len(clip)])
        found, frames = graph(waveform=waveform, waveform_length=length)
        wanted = float64_features(clip, pair)
        assert wanted.shape[1] == frames[0]
        worst = np.maximum(worst, np.abs(found[0] - wanted).max())
        nemo = pair.nemo.features(waveform, length)[0][0, :, : frames[0]]
        worst_nemo = np.maximum(worst_nemo, np.abs(nemo - wanted).max())
    figure(
        f"mel front end of the {pair.name} demo against float64 on {len(clips)} clips: "
        f"worst difference {worst:.1e} (NeMo's own: {worst_nemo:.1e})"
    )
    assert 0 < worst <= MEL_FLOAT64_TOLERANCE


def float64_features(clip: NDArray[np.float32], pair: Pair) -> NDArray[np.float64]:
    """Log-mel features from their definition, with NeMo's window and filter bank. Returns [F, N // hop]."""
    spec = pair.bundle.meta.mel
    buffers = pair.nemo.preprocessor.featurizer
    window, bank = buffers.window.double().numpy(), buffers.fb[0].double().numpy()
    x = clip.astype(np.float64)
    x = np.concatenate([x[:1], x[1:] - 0.97 * x[:-1]])
    half = spec.window_samples // 2
    x = np.pad(x, half)
    starts = np.arange(len(clip) // spec.hop_samples) * spec.hop_samples
    frames = np.stack([x[start : start + spec.window_samples] for start in starts]) * window
    log_mel = np.log(bank @ (np.abs(np.fft.rfft(frames, spec.n_fft)) ** 2).T + 2.0**-24)
    if spec.normalize == "none":
        return log_mel
    return (log_mel - log_mel.mean(1, keepdims=True)) / (log_mel.std(1, ddof=1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("samples", [160, 161, 319, 320, 400, 1599])
def test_the_mel_front_end_agrees_on_very_short_audio(pair: Pair, samples: int) -> None:
    waveform = 0.1 * np.random.default_rng(samples).standard_normal((1, samples)).astype(np.float32)
    wanted, wanted_lengths = pair.nemo.features(waveform, np.array([samples]))
    found, lengths = pair.graph("preprocessor")(waveform=waveform, waveform_length=np.array([samples]))
    assert lengths.tolist() == wanted_lengths.tolist()
    assert worst_of_rows(found, wanted, lengths, axis=2) <= MEL_TOLERANCE


def test_junk_behind_a_waveform_does_not_change_its_features(pair: Pair) -> None:
    waveforms = np.random.default_rng(0).standard_normal((2, 16000)).astype(np.float32)
    lengths = np.array([16000, 7001])
    graph = pair.graph("preprocessor")
    clean, frames = graph(waveform=padded(waveforms, (16000, 7001), 0.0), waveform_length=lengths)
    dirty, _ = graph(waveform=padded(waveforms, (16000, 7001), np.nan), waveform_length=lengths)
    assert worst_of_rows(dirty, clean, frames, axis=2) == 0.0
    assert (dirty[1, :, frames[1] :] == 0).all()


def test_the_position_table_is_nemos(pair: Pair, figure: Callable[[str], None]) -> None:
    """To one unit in the last place of a frequency: torch's float32 exp() is not correctly rounded, ours is."""
    limit, d_model = pair.bundle.meta.encoder.max_encoder_frames, pair.bundle.meta.encoder.d_model
    table = pair.nemo.encoder_module.pos_enc.pe[0].numpy()
    zero = len(table) // 2  # where position 0 stands; NeMo lengthens its table to the longest input it was shown
    wanted = table[zero - limit + 1 : zero + limit]
    found = position_table(limit, d_model)[1 : 2 * limit]  # position 0 stands at ``limit``
    assert found.shape == wanted.shape == (2 * limit - 1, d_model)
    positions = np.abs(np.arange(limit - 1, -limit, -1))
    angles = positions[:, None] * np.repeat(10000.0 ** (-np.arange(0, d_model, 2) / d_model), 2)
    difference = np.abs(found - wanted)
    figure(
        f"position table of the {pair.name} demo against NeMo's, {limit} frames: "
        f"{(difference > 1e-7).any(axis=0).sum()} of {d_model} columns differ by more than rounding, "
        f"at most {difference.max():.1e} ({difference[positions < 500].max():.1e} within 40 s)"
    )
    # One unit for the frequency, half of one for the angle in each of the two, one for the sine.
    assert (difference <= np.finfo(np.float32).eps * (1 + 2 * angles)).all()

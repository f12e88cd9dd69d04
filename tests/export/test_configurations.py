"""Configurations beyond the demo checkpoints, on tiny random models. Oracle: the NeMo modules they were saved from."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from onnx_sessions import Graph, worst_of_rows
from small_models import FEATURES, VOCABULARY, small_ctc, small_transducer

from nemotrt.bundle import Bundle
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint

ENCODER_TOLERANCE = 1e-5
LOGITS_TOLERANCE = 1e-4
MEL_TOLERANCE = 1e-4
CELLS = 40

# What the code takes apart. A sample of the 2 * 2 * 2 * 3 * 2 * 2 * 3 * 2 * 6 = 3456 combinations has to agree.
CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "bias": ({"use_bias": True}, {"use_bias": False}),
    "scaling": ({"xscaling": True}, {"xscaling": False}),
    "norm": ({"conv_norm_type": "batch_norm"}, {"conv_norm_type": "layer_norm"}),
    "convolution": ({"conv_context_size": None}, {"conv_context_size": "causal"}, {"conv_context_size": [3, 1]}),
    "architecture": ({"subsampling": "dw_striding"}, {"subsampling": "striding"}),
    "positions": ({"self_attention_model": "rel_pos"}, {"self_attention_model": "abs_pos"}),
    "subsampling": ({"causal_downsampling": False}, {"causal_downsampling": True}),
    "factor": ({"subsampling_factor": 2}, {"subsampling_factor": 4}, {"subsampling_factor": 8}),
    "attention": (
        {"att_context_size": [-1, -1]},
        {"att_context_size": [5, 3]},
        {"att_context_size": [-1, 2]},
        {"att_context_size": [4, -1]},
        {"att_context_size": [6, 2], "att_context_style": "chunked_limited"},
        {"att_context_size": [[-1, 1], [0, 3]], "att_context_style": "chunked_limited"},
    ),
}


def sampled_cells() -> list[dict[str, Any]]:
    every = list(product(*CHOICES.values()))
    cells = random.Random(0).sample(every, CELLS)
    for index, options in enumerate(CHOICES.values()):
        assert all(any(cell[index] is option for cell in cells) for option in options), "a choice is never sampled"
    return [{key: value for part in cell for key, value in part.items()} for cell in cells]


def encoder_difference(checkpoint: Path, options: dict[str, Any], *, seed: int) -> float:
    model = small_transducer(checkpoint, encoder=options, seed=seed)
    graph = Graph.of(export_checkpoint(checkpoint, checkpoint.with_suffix("")), "encoder")
    rng, worst = np.random.default_rng(seed), 0.0
    longest = 24 * options["subsampling_factor"] + 1
    for lengths in ([longest, longest - 1, longest // 2, 9, 1], [3, 2, 1], [longest - 8]):
        signal = 3 * rng.standard_normal((len(lengths), FEATURES, max(lengths))).astype(np.float32)
        wanted, wanted_lengths = model.nemo.encoder(signal, np.array(lengths))
        found, found_lengths = graph(audio_signal=signal, length=np.array(lengths))
        assert found_lengths.tolist() == wanted_lengths.tolist(), (options, lengths)
        worst = np.maximum(worst, worst_of_rows(found, wanted, wanted_lengths, axis=2))
    return float(worst)


def test_the_encoder_agrees_in_a_sample_of_all_configurations(tmp_path: Path, figure: Callable[[str], None]) -> None:
    cells = sampled_cells()
    found = [encoder_difference(tmp_path / f"{i}.nemo", options, seed=i) for i, options in enumerate(cells)]
    figure(f"encoder of {CELLS} random configurations against NeMo: worst difference {max(found):.1e}")
    wrong = [(options, value) for options, value in zip(cells, found, strict=True) if not value <= ENCODER_TOLERANCE]
    assert wrong == []
    assert min(found) > 0


@pytest.mark.parametrize(
    ("option", "built", "claimed"),
    [
        ("xscaling", True, False),
        ("conv_context_size", "causal", None),
        ("att_context_size", [5, 3], [-1, -1]),
        ("att_context_style", "regular", "chunked_limited"),
    ],
)
def test_a_config_that_tells_another_story_is_seen_in_the_numbers(
    tmp_path: Path, option: str, built: object, claimed: object
) -> None:
    """The weights fit either way; that the comparison above holds means that these options are obeyed."""
    base: dict[str, Any] = {"subsampling_factor": 4, "att_context_size": [6, 2]}
    model = small_transducer(tmp_path / "a.nemo", encoder=base | {option: built})
    members = archives.read_members(model.checkpoint)
    config = archives.changed(archives.config_of(members), f"encoder.{option}", claimed)
    archives.write_archive(tmp_path / "b.nemo", archives.with_config(members, config))
    graph = Graph.of(export_checkpoint(tmp_path / "b.nemo", tmp_path / "b"), "encoder")
    signal = np.random.default_rng(0).standard_normal((1, FEATURES, 80)).astype(np.float32)
    wanted, lengths = model.nemo.encoder(signal, np.array([80]))
    found, _ = graph(audio_signal=signal, length=np.array([80]))
    assert worst_of_rows(found, wanted, lengths, axis=2) > 100 * ENCODER_TOLERANCE


def test_loud_features_do_not_break_the_padding(tmp_path: Path) -> None:
    """Values a hundred times those of speech, next to padding of the same size."""
    model = small_transducer(tmp_path / "m.nemo", encoder={"causal_downsampling": True})
    graph = Graph.of(export_checkpoint(model.checkpoint, tmp_path / "m"), "encoder")
    signal = 500 * np.random.default_rng(0).standard_normal((3, FEATURES, 161)).astype(np.float32)
    lengths = np.array([161, 80, 17])
    wanted, wanted_lengths = model.nemo.encoder(signal, lengths)
    found, found_lengths = graph(audio_signal=signal, length=lengths)
    assert found_lengths.tolist() == wanted_lengths.tolist()
    assert worst_of_rows(found, wanted, wanted_lengths, axis=2) <= ENCODER_TOLERANCE


class TestTheEndOfThePositionTable:
    LIMIT = 16

    @pytest.fixture(params=[False, True], ids=["regular", "causal"])
    def bundle_and_nemo(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Bundle, Any]:
        options = {"pos_emb_max_len": self.LIMIT, "causal_downsampling": request.param}
        model = small_transducer(tmp_path / "m.nemo", encoder=options)
        return export_checkpoint(model.checkpoint, tmp_path / "m"), model.nemo

    def test_the_longest_input_of_the_contract_fills_the_table(self, bundle_and_nemo: tuple[Bundle, Any]) -> None:
        bundle, nemo = bundle_and_nemo
        frames = bundle.meta.encoder.max_feature_frames
        signal = np.random.default_rng(0).standard_normal((1, FEATURES, frames)).astype(np.float32)
        wanted, wanted_lengths = nemo.encoder(signal, np.array([frames]))
        found, lengths = Graph.of(bundle, "encoder")(audio_signal=signal, length=np.array([frames]))
        assert lengths.tolist() == wanted_lengths.tolist() == [self.LIMIT]
        assert worst_of_rows(found, wanted, lengths, axis=2) <= ENCODER_TOLERANCE

    @pytest.mark.parametrize("positions", ["rel_pos", "abs_pos"])
    def test_it_is_where_the_longest_input_asks_for(self, tmp_path: Path, positions: str) -> None:
        """NeMo computes more positions when it meets longer audio; a graph has as many as were asked for."""
        options = {"pos_emb_max_len": self.LIMIT, "self_attention_model": positions}
        model = small_transducer(tmp_path / "m.nemo", encoder=options)
        choices = ModelChoices(max_seconds=5)
        bundle = export_checkpoint(model.checkpoint, tmp_path / "m", options=ExportOptions(choices=choices))
        assert bundle.meta.encoder.max_encoder_frames == 63
        signal = np.random.default_rng(0).standard_normal((1, FEATURES, 500)).astype(np.float32)
        wanted, wanted_lengths = model.nemo.encoder(signal, np.array([500]))
        found, lengths = Graph.of(bundle, "encoder")(audio_signal=signal, length=np.array([500]))
        assert lengths.tolist() == wanted_lengths.tolist() == [63]
        assert worst_of_rows(found, wanted, lengths, axis=2) <= ENCODER_TOLERANCE

    def test_one_frame_more_fails_and_gives_no_numbers(self, bundle_and_nemo: tuple[Bundle, Any]) -> None:
        bundle, _ = bundle_and_nemo
        frames = bundle.meta.encoder.max_feature_frames + 1
        graph = Graph.of(bundle, "encoder")
        with pytest.raises(Exception, match="Non-zero status code"):
            graph(audio_signal=np.zeros((1, FEATURES, frames), np.float32), length=np.array([frames]))


@pytest.mark.parametrize(
    "options",
    [
        {"window_size": 0.02, "window_stride": 0.01},
        {"window_size": 0.025, "window_stride": 0.02, "n_fft": 512},
        {"window_size": 0.02, "window_stride": 0.02, "normalize": "NA"},
        {"window_size": 0.025, "n_fft": 1024, "window": "hamming", "preemph": None},
        {"sample_rate": 8000, "window_size": 0.025, "window": "blackman", "log_zero_guard_value": 1e-5},
        {"sample_rate": 22050, "window_size": 0.04, "window_stride": 0.0125, "preemph": 0.9, "mel_norm": None},
        {"lowfreq": 80, "highfreq": 7600, "window_size": 0.032, "window_stride": 0.008},
    ],
    ids=str,
)
def test_the_front_end_agrees_in_other_geometries(tmp_path: Path, options: dict[str, Any]) -> None:
    model = small_transducer(tmp_path / "m.nemo", preprocessor=options)
    graph = Graph.of(export_checkpoint(model.checkpoint, tmp_path / "m"), "preprocessor")
    lengths = np.array([16001, 15999, 5003, 700])
    waveforms = 0.1 * np.random.default_rng(0).standard_normal((4, 16001)).astype(np.float32)
    wanted, wanted_lengths = model.nemo.features(waveforms, lengths)
    found, found_lengths = graph(waveform=waveforms, waveform_length=lengths)
    assert found_lengths.tolist() == wanted_lengths.tolist()
    assert found.shape[2] == found_lengths[0]
    assert worst_of_rows(found, wanted, wanted_lengths, axis=2) <= MEL_TOLERANCE


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize(("durations", "dropout", "layers"), [((), 0.0, 1), ((0, 1, 2), 0.2, 3)], ids=["rnnt", "tdt"])
def test_predictor_and_joint_agree_in_every_form(
    tmp_path: Path, activation: str, durations: tuple[int, ...], dropout: float, layers: int
) -> None:
    """Without dropout NeMo's joint has one module less, so its last matrix another name."""
    model = small_transducer(
        tmp_path / "m.nemo",
        prednet={"pred_rnn_layers": layers},
        jointnet={"activation": activation, "dropout": dropout},
        durations=durations,
    )
    bundle = export_checkpoint(model.checkpoint, tmp_path / "m")
    assert bundle.meta.family == ("fastconformer-tdt" if durations else "fastconformer-rnnt")
    assert bundle.meta.tokenizer == "characters"
    assert bundle.vocabulary() == VOCABULARY
    rng = np.random.default_rng(0)
    y = rng.integers(0, len(VOCABULARY) + 1, (2, 4))
    h, c, encoder_output = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((layers, 2, 12), (layers, 2, 12), (2, 16, 5))
    )
    wanted = model.nemo.predictor(y, h, c)
    for a, b in zip(Graph.of(bundle, "predictor")(y=y, h=h, c=c), wanted, strict=True):
        assert np.abs(a - b).max() <= ENCODER_TOLERANCE
    logits = Graph.of(bundle, "joint")(encoder_output=encoder_output, predictor_output=wanted[0])[0]
    assert logits.shape[-1] == len(VOCABULARY) + 1 + len(durations)
    assert np.abs(logits - model.nemo.joint(encoder_output, wanted[0])).max() <= LOGITS_TOLERANCE


def test_a_ctc_model_becomes_a_front_end_and_one_graph(tmp_path: Path) -> None:
    model = small_ctc(tmp_path / "m.nemo")
    bundle = export_checkpoint(model.checkpoint, tmp_path / "m")
    assert bundle.meta.family == "fastconformer-ctc"
    assert sorted(bundle.meta.components) == ["ctc", "ctc_nomask", "preprocessor"]
    signal = np.random.default_rng(0).standard_normal((2, FEATURES, 90)).astype(np.float32)
    encoder_output, wanted_lengths = model.nemo.encoder(signal, np.array([90, 33]))
    found, lengths = Graph.of(bundle, "ctc")(audio_signal=signal, length=np.array([90, 33]))
    assert lengths.tolist() == wanted_lengths.tolist()
    assert worst_of_rows(found, model.nemo.ctc(encoder_output), lengths, axis=1) <= LOGITS_TOLERANCE

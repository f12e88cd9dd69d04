"""Decoding step by step equals the reference decode. Oracle: ``GreedyTransducer`` over predictor and joint, which its
own tests hold against NeMo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import small_transducer

from nemotrt.bundle import Bundle
from nemotrt.engines.audio import read_clips, read_waveform
from nemotrt.engines.decoding_transducer import GreedyTransducer
from nemotrt.engines.hypothesis import Hypothesis
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.transcriber import Transcriber
from nemotrt.export import ExportOptions, export_checkpoint

Feeds = dict[str, NDArray[Any]]


def runner_of(bundle: Bundle, component: str) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(bundle.graph_path(component), spec=bundle.component(component), threads=1)


def initial_state(bundle: Bundle, rows: int) -> Feeds:
    transducer = bundle.meta.transducer
    assert transducer is not None
    shape = (transducer.predictor_layers, rows, transducer.predictor_hidden)
    return {
        "frame": np.zeros(rows, np.int64),
        "symbols": np.zeros(rows, np.int64),
        "y": np.full(rows, bundle.meta.blank_id),
        "h": np.zeros(shape, np.float32),
        "c": np.zeros(shape, np.float32),
    }


def decoded_by_greedy_step(bundle: Bundle, encoded: NDArray[Any], lengths: NDArray[Any]) -> tuple[Hypothesis, ...]:
    runner, state = runner_of(bundle, "greedy_step"), initial_state(bundle, len(lengths))
    found: list[tuple[list[int], list[int]]] = [([], []) for _ in lengths]
    while (state["frame"] < lengths).any():
        outputs = runner.run({"encoder_output": encoded, "encoded_lengths": lengths, **state})
        for row, token in enumerate(outputs["token"]):
            if token != bundle.meta.blank_id:
                found[row][0].append(int(token))
                found[row][1].append(int(state["frame"][row]))
        state = {name: outputs[f"{name}_out"] for name in state}
    return tuple(Hypothesis(tuple(ids), tuple(frames)) for ids, frames in found)


def reference(bundle: Bundle, encoded: NDArray[Any], lengths: NDArray[Any]) -> tuple[Hypothesis, ...]:
    assert bundle.meta.transducer is not None
    predictor, joint = runner_of(bundle, "predictor"), runner_of(bundle, "joint")
    search = GreedyTransducer(predictor, joint, spec=bundle.meta.transducer, blank_id=bundle.meta.blank_id)
    return search.decode(encoded, lengths)


@pytest.mark.parametrize("checkpoint", ["tdt_checkpoint", "hybrid_checkpoint"])
def test_the_demo_clips_decode_alike_step_by_step(
    request: pytest.FixtureRequest, tmp_path: Path, demo_manifest: Path, checkpoint: str
) -> None:
    options = ExportOptions(components=("all",))
    bundle = export_checkpoint(request.getfixturevalue(checkpoint), tmp_path / "m", options=options)
    waveforms = [read_waveform(clip.path, sample_rate=16000) for clip in read_clips(demo_manifest)]
    with Transcriber(bundle, threads=1) as transcriber:
        encoded, lengths = transcriber.encode(*transcriber.features(waveforms))
        wanted = transcriber.decode(encoded, lengths)
    assert decoded_by_greedy_step(bundle, encoded, lengths) == wanted
    assert all(hypothesis.token_ids for hypothesis in wanted)


@pytest.mark.parametrize("durations", [(), (0, 1, 2), (0, 1, 4)])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_random_models_decode_alike_step_by_step(tmp_path: Path, durations: tuple[int, ...], layers: int) -> None:
    """Random joints emit wildly: many tokens a frame, blanks of duration zero, frames that only the limit leaves."""
    model = small_transducer(tmp_path / "m.nemo", durations=durations, prednet={"pred_rnn_layers": layers}, seed=layers)
    bundle = export_checkpoint(model.checkpoint, tmp_path / "m", options=ExportOptions(components=("all",)))
    rng = np.random.default_rng(layers)
    encoded = 4 * rng.standard_normal((4, bundle.meta.encoder.d_model, 12)).astype(np.float32)
    lengths = np.array([12, 7, 1, 0])
    wanted = reference(bundle, encoded, lengths)
    assert decoded_by_greedy_step(bundle, encoded, lengths) == wanted
    assert sum(len(hypothesis.token_ids) for hypothesis in wanted) > 3


@pytest.mark.parametrize("durations", [(), (0, 1, 2)])
def test_one_rnnt_step_is_one_call_of_predictor_and_joint(tmp_path: Path, durations: tuple[int, ...]) -> None:
    model = small_transducer(tmp_path / "m.nemo", durations=durations, prednet={"pred_rnn_layers": 2})
    bundle = export_checkpoint(model.checkpoint, tmp_path / "m", options=ExportOptions(components=("all",)))
    rng = np.random.default_rng(0)
    state = initial_state(bundle, 5)
    h, c = (rng.standard_normal(state[name].shape).astype(np.float32) for name in ("h", "c"))
    tokens, frame = rng.integers(0, bundle.meta.blank_id + 1, 5), rng.standard_normal((5, bundle.meta.encoder.d_model))
    frame = frame.astype(np.float32)
    predicted = runner_of(bundle, "predictor").run({"y": tokens[:, None], "h": h, "c": c})
    joint = runner_of(bundle, "joint").run({"encoder_output": frame[:, :, None], "predictor_output": predicted["g"]})
    stepped = runner_of(bundle, "rnnt_step").run({"y_prev": tokens, "h": h, "c": c, "enc_t": frame})
    for found, wanted in (
        (stepped["logits"], joint["joint_output"][:, 0, 0]),
        (stepped["h_out"], predicted["h_out"]),
        (stepped["c_out"], predicted["c_out"]),
    ):
        assert np.abs(found - wanted).max() <= 1e-5

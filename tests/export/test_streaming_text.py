"""Streams of models made of the demo's hybrid: CTC alone, and TDT; and windows of the front end that it does not have.
Oracle: the offline components of the same bundle."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from small_models import small_transducer

from nemotrt.bundle import Bundle
from nemotrt.engines.audio import Waveform, read_clips, read_waveform
from nemotrt.engines.hypothesis import Hypothesis
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.streaming_features import StreamingFeatures
from nemotrt.engines.streaming_transcriber import StreamingTranscriber
from nemotrt.engines.transcriber import Transcriber
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint

ALL = ExportOptions(components=("all",), choices=ModelChoices(lookahead=1))
DURATIONS = (0, 1, 2, 3, 4)


@pytest.fixture(scope="module")
def speech(demo_manifest: Path) -> tuple[Waveform, ...]:
    return tuple(read_waveform(clip.path, sample_rate=16000) for clip in read_clips(demo_manifest))


def streamed(bundle: Bundle, waveform: Waveform) -> Hypothesis:
    with StreamingTranscriber(bundle, threads=1) as transcriber:
        stream = transcriber.stream()
        for start in range(0, len(waveform.samples), 999):
            stream.push(waveform.samples[None, start : start + 999])
        return stream.finish()[0].hypothesis


def offline(bundle: Bundle, waveform: Waveform) -> Hypothesis:
    with Transcriber(bundle, threads=1) as transcriber:
        return transcriber.transcribe([waveform])[0].hypothesis


def ctc_alone(members: archives.Members) -> archives.Members:
    """The hybrid without its transducer."""
    config = archives.config_of(members)
    config |= {"decoder": config.pop("aux_ctc")["decoder"], "joint": None}
    kept = {
        name.removeprefix("ctc_"): tensor
        for name, tensor in archives.state_of(members).items()
        if not name.startswith(("decoder.", "joint."))
    }
    return archives.with_state(archives.with_config(members, config), kept)


def with_random_durations(members: archives.Members) -> archives.Members:
    """The hybrid as a TDT: its own tokens, and durations that depend on what is heard."""
    import torch

    torch.manual_seed(0)
    config = archives.config_of(members)
    config["joint"]["num_extra_outputs"] = len(DURATIONS)
    config["decoding"]["durations"] = list(DURATIONS)
    state = archives.state_of(members)
    (weight,) = (name for name in state if name.startswith("joint.joint_net.") and name.endswith(".weight"))
    bias = weight.replace(".weight", ".bias")
    state[weight] = torch.cat([state[weight], torch.randn(len(DURATIONS), state[weight].shape[1])])
    state[bias] = torch.cat([state[bias], torch.zeros(len(DURATIONS))])
    return archives.with_state(archives.with_config(members, config), state)


def test_a_ctc_model_without_a_transducer_is_streamed(
    hybrid_members: archives.Members, tmp_path: Path, speech: tuple[Waveform, ...]
) -> None:
    checkpoint = archives.write_archive(tmp_path / "m.nemo", ctc_alone(hybrid_members))
    bundle = export_checkpoint(checkpoint, tmp_path / "m", options=ALL)
    assert set(bundle.meta.components) == {"preprocessor", "ctc", "ctc_nomask", "ctc_head", "encoder_streaming"}
    for waveform in speech:
        found = streamed(bundle, waveform)
        assert found == offline(bundle, waveform)
        assert found.token_ids


def test_durations_that_leave_a_chunk_are_carried_into_the_next_ones(
    hybrid_members: archives.Members, tmp_path: Path, speech: tuple[Waveform, ...]
) -> None:
    checkpoint = archives.write_archive(tmp_path / "m.nemo", with_random_durations(hybrid_members))
    bundle = export_checkpoint(checkpoint, tmp_path / "m", options=ALL)
    assert bundle.meta.transducer is not None
    assert bundle.meta.transducer.durations == DURATIONS
    steps: set[int] = set()
    for waveform in speech:
        found = streamed(bundle, waveform)
        assert found == offline(bundle, waveform)
        steps |= {later - earlier for earlier, later in pairwise(found.frames)}
    assert steps >= set(DURATIONS), "the durations hardly varied, so this proved little"


@pytest.mark.parametrize(
    "preprocessor",
    [
        {"window_size": 0.01, "window_stride": 0.01},
        {"window_size": 0.025, "window_stride": 0.02},
        {"window_size": 0.032, "window_stride": 0.008, "preemph": None},
        {"sample_rate": 22050, "window_size": 0.04, "window_stride": 0.0125, "n_fft": 1024},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 170, 999])
def test_windows_of_one_to_four_hops_are_streamed(tmp_path: Path, preprocessor: dict[str, Any], size: int) -> None:
    model = small_transducer(tmp_path / "m.nemo", preprocessor={"normalize": "NA", **preprocessor})
    bundle = export_checkpoint(model.checkpoint, tmp_path / "m")
    front_end = OnnxRuntimeRunner(bundle.graph_path("preprocessor"), spec=bundle.component("preprocessor"), threads=1)
    samples = np.random.default_rng(size).normal(scale=0.1, size=(2, 4001)).astype(np.float32)
    wanted = front_end.run({"waveform": samples, "waveform_length": np.full(2, 4001)})["audio_signal"]
    stream = StreamingFeatures(bundle, front_end, batch=2)
    parts = [stream.push(samples[:, start : start + size]) for start in range(0, 4001, size)]
    found = np.concatenate([*parts, stream.finish()], axis=2)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5


def test_the_head_alone_is_written_when_it_is_asked_for_only(hybrid_checkpoint: Path, tmp_path: Path) -> None:
    default = export_checkpoint(hybrid_checkpoint, tmp_path / "default")
    assert "ctc_head" not in default.meta.components
    asked = ExportOptions(components=("preprocessor", "encoder_streaming", "ctc_head"))
    bundle = export_checkpoint(hybrid_checkpoint, tmp_path / "asked", options=asked)
    (output,) = bundle.component("ctc_head").outputs
    assert output.shape == ("batch", "encoder_frames", bundle.meta.vocabulary_size + 1)
    with StreamingTranscriber(bundle, threads=1) as transcriber:
        assert transcriber.decoder == "ctc"

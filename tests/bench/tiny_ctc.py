"""A tiny but real CTC model (two strided convolutions, random weights), and a way to break its outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nemotrt.bundle import (
    META_NAME,
    VOCAB_NAME,
    Bundle,
    BundleMeta,
    ComponentSpec,
    EncoderSpec,
    FileRecord,
    MelSpec,
    TensorSpec,
    load_bundle,
    sha256_of_file,
)
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Array, Arrays

PIECES = " abcdefgh"
FEATURES, HOP, RATE = 4, 160, 16000
WAVEFORM = TensorSpec(name="waveform", dtype="float32", shape=("batch", "samples"))
WAVEFORM_LENGTH = TensorSpec(name="waveform_length", dtype="int64", shape=("batch",))
SIGNAL = TensorSpec(name="audio_signal", dtype="float32", shape=("batch", FEATURES, "frames"))
LENGTH = TensorSpec(name="length", dtype="int64", shape=("batch",))
LOGPROBS = TensorSpec(name="logprobs", dtype="float32", shape=("batch", "encoder_frames", len(PIECES) + 1))
ENCODED = TensorSpec(name="encoded_lengths", dtype="int64", shape=("batch",))


def _save(path: Path, nodes: list, weights: dict, inputs: tuple, outputs: tuple) -> None:
    dtypes = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    values = [
        [helper.make_tensor_value_info(spec.name, dtypes[spec.dtype], spec.shape) for spec in specs]
        for specs in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, *values, initializer=initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _write_preprocessor(path: Path, rng: np.random.Generator) -> None:
    kernel = rng.normal(0, 0.5, (FEATURES, 1, HOP)).astype(np.float32)
    # The bias makes padded features nonzero: what a missing mask lets through.
    bias = np.full(FEATURES, 0.7, dtype=np.float32)
    nodes = [
        helper.make_node("Unsqueeze", ["waveform", "channel_axis"], ["channel"]),
        helper.make_node("Conv", ["channel", "kernel", "bias"], ["audio_signal"], strides=[HOP]),
        helper.make_node("Div", ["waveform_length", "hop"], ["length"]),
    ]
    weights = {"kernel": kernel, "bias": bias, "channel_axis": np.array([1]), "hop": np.array(HOP)}
    _save(path, nodes, weights, (WAVEFORM, WAVEFORM_LENGTH), (SIGNAL, LENGTH))


def _write_ctc(path: Path, rng: np.random.Generator, *, masked: bool, half: bool) -> None:
    weights = {"kernel": rng.normal(0, 1, (len(PIECES) + 1, FEATURES, 3)).astype(np.float32)}
    if half:
        weights["kernel"] = weights["kernel"].astype(np.float16).astype(np.float32)
    weights |= {name: np.array(value) for name, value in {"zero": 0, "one": 1, "two": 2}.items()}
    weights |= {"minus_one": np.array([1, -1]), "by_frame": np.array([1, 1, -1]), "silence": np.float32(0)}
    mask = [
        helper.make_node("Shape", ["audio_signal"], ["frames"], start=2, end=3),
        helper.make_node("Squeeze", ["frames"], ["frame_count"]),
        helper.make_node("Range", ["zero", "frame_count", "one"], ["positions"]),
        helper.make_node("Reshape", ["length", "column"], ["limits"]),
        helper.make_node("Less", ["positions", "limits"], ["is_valid"]),
        helper.make_node("Unsqueeze", ["is_valid", "feature_axis"], ["mask"]),
        helper.make_node("Where", ["mask", "audio_signal", "silence"], ["signal"]),
    ]
    weights |= {"column": np.array([-1, 1]), "feature_axis": np.array([1])}
    nodes = [
        *(mask if masked else [helper.make_node("Identity", ["audio_signal"], ["signal"])]),
        helper.make_node("Conv", ["signal", "kernel"], ["logits"], strides=[2], pads=[1, 1]),
        helper.make_node("Transpose", ["logits"], ["by_time"], perm=[0, 2, 1]),
        helper.make_node("LogSoftmax", ["by_time"], ["logprobs"], axis=-1),
        helper.make_node("Add", ["length", "one"], ["rounded"]),
        helper.make_node("Div", ["rounded", "two"], ["encoded_lengths"]),
    ]
    used = {name for node in nodes for name in node.input}
    _save(path, nodes, {n: w for n, w in weights.items() if n in used}, (SIGNAL, LENGTH), (LOGPROBS, ENCODED))


def write_tiny_bundle(
    folder: Path, *, masked: bool = True, half: bool = False, seed: int = 3, pieces: str = PIECES
) -> Bundle:
    """``half`` rounds the weights to FP16; ``masked=False`` leaves out the padding mask."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    _write_preprocessor(folder / "preprocessor.onnx", rng)
    _write_ctc(folder / "ctc.onnx", rng, masked=masked, half=half)
    (folder / VOCAB_NAME).write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    files = {
        entry.name: FileRecord(size_bytes=entry.stat().st_size, sha256=sha256_of_file(entry))
        for entry in folder.iterdir()
    }
    meta = BundleMeta(
        schema_version=1,
        name="tiny",
        family="fastconformer-ctc",
        precision="fp16" if half else "fp32",
        components={
            "preprocessor": ComponentSpec(
                graph="preprocessor.onnx",
                data=None,
                inputs=(WAVEFORM, WAVEFORM_LENGTH),
                outputs=(SIGNAL, LENGTH),
                parameters=0,
            ),
            "ctc": ComponentSpec(
                graph="ctc.onnx", data=None, inputs=(SIGNAL, LENGTH), outputs=(LOGPROBS, ENCODED), parameters=120
            ),
        },
        mel=MelSpec(
            sample_rate=RATE,
            features=FEATURES,
            n_fft=512,
            window_samples=400,
            hop_samples=HOP,
            normalize="none",
            preemphasis=None,
        ),
        encoder=EncoderSpec(
            layers=1,
            d_model=8,
            heads=1,
            feed_forward=16,
            conv_kernel=3,
            features=FEATURES,
            subsampling_factor=2,
            causal_subsampling=False,
            max_encoder_frames=500,
            max_feature_frames=1000,
            attention_context=(-1, -1),
            attention_style="regular",
        ),
        transducer=None,
        vocabulary_size=len(pieces),
        blank_id=len(pieces),
        tokenizer="characters",
        checkpoint_sha256="0" * 64,
        tools={},
        files=files,
    )
    (folder / META_NAME).write_text(meta.model_dump_json(), encoding="utf-8")
    return load_bundle(folder)


@dataclass
class AlteredRunner:
    """The real runner, with its outputs changed on the way out: a wrong engine that reports success."""

    inner: OnnxRuntimeRunner
    alter: Callable[[dict[str, Array]], dict[str, Array]]
    label: str = "altered"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.inner.outputs

    def run(self, feeds: Arrays) -> dict[str, Array]:
        return self.alter(self.inner.run(feeds))

    def close(self) -> None:
        self.inner.close()

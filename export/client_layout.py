"""A bundle as other clients expect a model folder to be: other file and tensor names, the same graphs and weights.

onnx-asr, transducers:  encoder-model.onnx  decoder_joint-model.onnx  vocab.txt  config.json
onnx-asr, CTC:          model.onnx                                    vocab.txt  config.json

Source: the model formats that onnx-asr documents (``nemo-conformer-tdt``, ``-rnnt``, ``-ctc``).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnx_ir as ir

from nemotrt.bundle import TOKENS_NAME, Bundle, ComponentName
from nemotrt.errors import UsageError

_INLINE_BYTES = 1024

# The front end that onnx-asr brings (its ``nemo80`` and ``nemo128``).
_ONNX_ASR_FEATURES = {
    "normalize": "per_feature",
    "sample_rate": 16000,
    "n_fft": 512,
    "window_samples": 400,
    "hop_samples": 160,
    "preemphasis": 0.97,
}
_ONNX_ASR_BINS = (80, 128)


def write_onnx_asr_layout(bundle: Bundle, folder: Path) -> str:
    """Write the folder for onnx-asr, by one rename, and return the model type to load it as.

    Raises:
        UsageError: the folder exists, the bundle lacks the component that onnx-asr decodes with, or the model expects
            other features than onnx-asr computes.
    """
    if folder.exists():
        raise UsageError("the output is already there", where=folder, fix="give another output")
    _refuse_other_features(bundle)
    model_type, components = _parts(bundle)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        for component, (name, renamed) in components.items():
            _copy_graph(bundle, component, partial / name, renamed)
        shutil.copyfile(bundle.path / TOKENS_NAME, partial / "vocab.txt")
        (partial / "config.json").write_text(json.dumps(_config(bundle, model_type), indent=1) + "\n", encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return model_type


def _refuse_other_features(bundle: Bundle) -> None:
    mel = bundle.meta.audio_front_end()
    differs = [
        f"{name} {getattr(mel, name)!r}, {value!r} there"
        for name, value in _ONNX_ASR_FEATURES.items()
        if getattr(mel, name) != value
    ]
    if mel.features not in _ONNX_ASR_BINS:
        differs.append(f"features {mel.features}, {' or '.join(map(str, _ONNX_ASR_BINS))} there")
    if differs:
        raise UsageError(
            "onnx-asr computes other features than this model was trained on, and would transcribe nonsense",
            where=bundle.path,
            found="; ".join(differs),
            fix="run this model with nemotrt, whose front end is part of the bundle",
        )


_Parts = dict[ComponentName, tuple[str, dict[str, str]]]


def _parts(bundle: Bundle) -> tuple[str, _Parts]:
    """Model type; and by component its file name and the outputs to rename."""
    transducer = bundle.meta.transducer
    if transducer is None:
        return "nemo-conformer-ctc", {"ctc": ("model.onnx", {})}
    if "decoder_joint" not in bundle.meta.components:
        raise UsageError(
            "onnx-asr decodes with predictor and joint in one graph, which the bundle does not have",
            where=bundle.path,
            found=", ".join(bundle.meta.components),
            fix="export the checkpoint with --component all",
        )
    return f"nemo-conformer-{'tdt' if transducer.durations else 'rnnt'}", {
        "encoder": ("encoder-model.onnx", {"encoder_output": "outputs"}),
        "decoder_joint": ("decoder_joint-model.onnx", {}),
    }


def _copy_graph(bundle: Bundle, component: ComponentName, path: Path, renamed: dict[str, str]) -> None:
    model = ir.load(bundle.graph_path(component))
    for value in model.graph.outputs:
        value.name = renamed.get(str(value.name), value.name)
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_INLINE_BYTES, max_workers=1)


def _config(bundle: Bundle, model_type: str) -> dict[str, object]:
    meta = bundle.meta
    config: dict[str, object] = {
        "model_type": model_type,
        "features_size": meta.audio_front_end().features,
        "subsampling_factor": meta.encoder.subsampling_factor,
    }
    if meta.transducer is not None:
        config["max_tokens_per_step"] = meta.transducer.max_symbols_per_frame
    return config

"""A bundle as other clients expect a model folder to be: other file and tensor names, the same graphs and weights.

onnx-asr, transducers:  encoder-model.onnx  decoder_joint-model.onnx  vocab.txt  config.json
onnx-asr, CTC:          model.onnx                                    vocab.txt  config.json

Source: the model formats that onnx-asr documents (``nemo-conformer-tdt``, ``-rnnt``, ``-ctc``).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_ir as ir

from nemotrt.bundle import TOKENS_NAME, Bundle, ComponentName
from nemotrt.errors import UsageError

_INLINE_BYTES = 1024


def write_onnx_asr_layout(bundle: Bundle, folder: Path) -> str:
    """Write the folder for onnx-asr and return the model type to load it as.

    Raises:
        UsageError: the folder exists, or the bundle lacks the component that onnx-asr decodes with.
    """
    if folder.exists():
        raise UsageError("the output is already there", where=folder, fix="give another output")
    model_type, components = _parts(bundle)
    folder.mkdir(parents=True)
    try:
        for component, (name, renamed) in components.items():
            _copy_graph(bundle, component, folder / name, renamed)
        shutil.copyfile(bundle.path / TOKENS_NAME, folder / "vocab.txt")
        (folder / "config.json").write_text(json.dumps(_config(bundle, model_type), indent=1) + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return model_type


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
        "features_size": meta.mel.features,
        "subsampling_factor": meta.encoder.subsampling_factor,
    }
    if meta.transducer is not None:
        config["max_tokens_per_step"] = meta.transducer.max_symbols_per_frame
    return config

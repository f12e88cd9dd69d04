"""The folder that onnx-asr loads:

    transducers   encoder-model.onnx  decoder_joint-model.onnx  vocab.txt  config.json
    CTC           model.onnx                                    vocab.txt  config.json

onnx-asr computes features as NeMo does and takes the tokens that a frame may carry from ``config.json``: its texts are
ours. But for CTC it counts encoder frames by itself, ceil(T / factor); where a causal encoder has one more, it leaves
that out. Source: the model formats that onnx-asr documents (``nemo-conformer-tdt``, ``-rnnt``, ``-ctc``).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from nemotrt.bundle import TOKENS_NAME, Bundle, Decoder
from nemotrt.export.clients.layout import (
    chosen_decoder,
    copy_graph,
    new_folder,
    refuse_other_durations,
    refuse_other_features,
    require_components,
)

_CLIENT = "onnx-asr"
_BINS = (80, 128)  # its front ends ``nemo80`` and ``nemo128``


def write_onnx_asr_layout(bundle: Bundle, folder: Path, *, decoder: Decoder | None = None) -> str:
    """Write the folder for onnx-asr, by one rename, and return the model type to load it as.

    ``decoder`` is the model's transducer if it is ``None``, or else its CTC head.

    Raises:
        UsageError: the folder exists, the bundle has no such decoder or lacks a component that onnx-asr decodes with,
            or the model expects other features or durations than onnx-asr computes.
    """
    decoder = chosen_decoder(bundle, decoder)
    refuse_other_features(bundle, _CLIENT, normalize=("per_feature",), bins=_BINS)
    model_type = f"nemo-conformer-{decoder}"
    require_components(bundle, _CLIENT, ("ctc",) if decoder == "ctc" else ("encoder", "decoder_joint"))
    if decoder == "tdt":
        refuse_other_durations(bundle, _CLIENT)
    with new_folder(folder) as partial:
        if decoder == "ctc":
            copy_graph(bundle, "ctc", partial / "model.onnx")
        else:
            copy_graph(bundle, "encoder", partial / "encoder-model.onnx", renamed={"encoder_output": "outputs"})
            copy_graph(bundle, "decoder_joint", partial / "decoder_joint-model.onnx")
        shutil.copyfile(bundle.path / TOKENS_NAME, partial / "vocab.txt")
        (partial / "config.json").write_text(json.dumps(_config(bundle, model_type), indent=1) + "\n", encoding="utf-8")
    return model_type


def _config(bundle: Bundle, model_type: str) -> dict[str, object]:
    meta = bundle.meta
    config: dict[str, object] = {
        "model_type": model_type,
        "features_size": meta.encoder.features,
        "subsampling_factor": meta.encoder.subsampling_factor,
    }
    if meta.transducer is not None:
        config["max_tokens_per_step"] = meta.transducer.max_symbols_per_frame
    return config

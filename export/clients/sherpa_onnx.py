"""The folder that sherpa-onnx loads as a NeMo model:

    ctc           model.onnx                               tokens.txt  README.md
    rnnt, tdt     encoder.onnx  decoder.onnx  joiner.onnx  tokens.txt  README.md

The same files for streams: ``sherpa_streaming.py`` writes their first graph. sherpa-onnx finds tensors by position, and
sizes in the metadata of the first graph, most of which every graph of a bundle carries:

    encoder   audio_signal [B,F,T], length [B] -> encoder_output [B,D,T'], encoded_lengths [B]
    decoder   targets int32 [B,U], target_length int32 [B], h, c [L,B,H] -> g [B,H,U], prednet_lengths [B], h_out, c_out
    joiner    encoder_output [B,D,T], predictor_output [B,H,U] -> joint_output [B,T,U,W]

The graphs compute what the bundle's do. What sherpa-onnx does otherwise, ``README.md`` in the folder says.

Source: sherpa-onnx 2.0 (``offline-transducer-nemo-model.cc``, ``offline-nemo-enc-dec-ctc-model.cc``) and its NeMo
export scripts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx_ir as ir

from nemotrt.bundle import BATCH, TOKENS, TOKENS_NAME, Bundle, ComponentName, Decoder
from nemotrt.export.clients.layout import (
    chosen_decoder,
    copy_graph,
    new_folder,
    refuse_other_durations,
    refuse_other_features,
    require_components,
    save_graph,
)
from nemotrt.export.clients.sherpa_streaming import SherpaStream, streaming_model
from nemotrt.export.graph import GraphBuilder

_CLIENT = "sherpa-onnx"


def write_sherpa_onnx_layout(
    bundle: Bundle, folder: Path, *, decoder: Decoder | None = None, streaming: bool = False
) -> str:
    """Write the folder for sherpa-onnx, by one rename, and return what loads it, a constructor of its Python package.

    ``decoder`` is the model's transducer if it is ``None``, or else its CTC head. ``streaming`` is for its
    ``OnlineRecognizer``.

    Raises:
        UsageError: the folder exists, the bundle has no such decoder or lacks a component of it, or the model expects
            other features, durations or caches than sherpa-onnx has.
    """
    decoder = chosen_decoder(bundle, decoder)
    # Of a stream, sherpa-onnx normalizes every window by itself.
    refuse_other_features(bundle, _CLIENT, normalize=("none",) if streaming else ("none", "per_feature"))
    require_components(bundle, _CLIENT, _components(decoder, streaming=streaming))
    if decoder == "tdt":
        refuse_other_durations(bundle, _CLIENT)
    stream = SherpaStream.of(bundle, decoder) if streaming else None
    with new_folder(folder) as partial:
        _write_graphs(bundle, partial, decoder, stream)
        shutil.copyfile(bundle.path / TOKENS_NAME, partial / TOKENS_NAME)
        (partial / "README.md").write_text(_notes(bundle, decoder, stream), encoding="utf-8")
    return _constructor(decoder, streaming=streaming)


def _components(decoder: Decoder, *, streaming: bool) -> tuple[ComponentName, ...]:
    if decoder == "ctc":
        return ("encoder_streaming", "ctc_head") if streaming else ("ctc",)
    return "encoder_streaming" if streaming else "encoder", "predictor", "joint"


def _write_graphs(bundle: Bundle, folder: Path, decoder: Decoder, stream: SherpaStream | None) -> None:
    first = folder / ("model.onnx" if decoder == "ctc" else "encoder.onnx")
    if stream is not None:
        save_graph(streaming_model(bundle, decoder, stream), first)
    elif decoder == "ctc":
        copy_graph(bundle, "ctc", first)
    else:
        # sherpa-onnx decodes as a TDT what comes from a ``url`` with tdt in it, and leaves the process at other logits.
        copy_graph(bundle, "encoder", first, metadata={"url": bundle.meta.family} if decoder == "tdt" else None)
    if decoder != "ctc":
        save_graph(_decoder_model(bundle), folder / "decoder.onnx")
        copy_graph(bundle, "joint", folder / "joiner.onnx")


def _decoder_model(bundle: Bundle) -> ir.Model:
    """The predictor behind the inputs and outputs of NeMo's own export of it."""
    component = bundle.component("predictor")
    _, *states = component.inputs
    predicted, *next_states = component.outputs
    g = GraphBuilder("decoder")
    with g.scope("client"):
        targets = g.input("targets", "int32", (BATCH, TOKENS))
        length = g.input("target_length", "int32", (BATCH,))
        inputs = {"y": g.op("Cast", targets, to=ir.DataType.INT64)}
        inputs |= {spec.name: g.input(spec.name, spec.dtype, spec.shape) for spec in states}
        outputs = g.inline(ir.load(bundle.graph_path("predictor")).graph, inputs)
        g.output(outputs[predicted.name], predicted.name, predicted.dtype, predicted.shape)
        g.output(g.op("Identity", length), "prednet_lengths", "int32", (BATCH,))
        for spec in next_states:
            g.output(outputs[spec.name], spec.name, spec.dtype, spec.shape)
    return g.model()


def _constructor(decoder: Decoder, *, streaming: bool) -> str:
    return f"{'Online' if streaming else 'Offline'}Recognizer.from_{'nemo_ctc' if decoder == 'ctc' else 'transducer'}"


def _notes(bundle: Bundle, decoder: Decoder, stream: SherpaStream | None) -> str:
    """The README of the folder: how to load it, and what is exact."""
    files = ["model"] if decoder == "ctc" else ["encoder", "decoder", "joiner"]
    arguments = [*(f'{name}="{name}.onnx"' for name in files), f'tokens="{TOKENS_NAME}"']
    if decoder != "ctc" and stream is None:
        arguments.append('model_type="nemo_transducer"')
    arguments.append(f"feature_dim={bundle.meta.encoder.features}")
    constructor = _constructor(decoder, streaming=stream is not None)
    lines = [
        f"# {bundle.meta.name} for sherpa-onnx",
        "",
        "```python",
        f"sherpa_onnx.{constructor}({', '.join(arguments)})",
        "```",
        "",
        "The graphs compute what the bundle's do. sherpa-onnx computes the features by itself, as kaldi does: its",
        "frames lie half a hop later than NeMo's, and the ends of the audio are mirrored. Where a model hesitates,",
        "that can change a word. It also has its own limit of tokens on a frame.",
    ]
    if decoder == "ctc" and stream is None:
        lines += [
            "Of a clip it decodes T // factor encoder frames: the last one is lost where the encoder has one more."
        ]
    if stream is not None:
        lines += [
            "",
            "What is streamed equals the offline encoder of the same features, the first frame included. Two encoder",
            f"frames ({stream.lead / 100:.2f} s) more than NeMo's own export are waited for.",
            f"sherpa-onnx runs whole windows only: end every stream with {stream.silence_seconds:.2f} s of silence.",
        ]
    return "\n".join(lines) + "\n"

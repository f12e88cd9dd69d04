"""The options of the command line, by name. Loaded with every command, so nothing slow is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Checkpoint = Annotated[Path, typer.Argument(metavar="MODEL.nemo", help="A NeMo checkpoint.", show_default=False)]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.", show_default=False)]
BundleOrGraph = Annotated[
    Path, typer.Argument(metavar="BUNDLE|GRAPH.onnx", help="A bundle folder, or one ONNX file.", show_default=False)
]
NewBundle = Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder for the bundle.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the bundle that is there.")]
Audio = Annotated[
    Path,
    typer.Option("--audio", metavar="CLIPS", help="NeMo manifest, folder of audio, or audio file.", show_default=False),
]
ProfileName = Annotated[
    str,
    typer.Option("--profile", metavar="NAME|FILE", help="Preset (demo, single-stream, server-offline) or YAML file."),
]
Runtime = Annotated[
    Literal["auto", "tensorrt", "tensorrt-rtx"],
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="tensorrt, tensorrt-rtx, or auto: TensorRT on a GPU host, else TensorRT-RTX.",
    ),
]
ComputeCapabilities = Annotated[
    list[str] | None,
    typer.Option(
        "--compute-capability",
        metavar="X.Y|current",
        help="GPU to build for, repeatable (TensorRT-RTX only). Default: the library's own list.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="ONNX Runtime threads.", show_default="all cores"),
]
NemoPython = Annotated[
    Path | None,
    typer.Option(
        "--nemo-python", metavar="PYTHON", help="Interpreter that has NeMo.", show_default="the one that runs nemotrt"
    ),
]
Decoder = Annotated[
    Literal["ctc", "rnnt", "tdt"] | None,
    typer.Option("--decoder", help="How to decode.", show_default="tdt or rnnt, else ctc"),
]
CastTo = Annotated[
    Literal["fp16", "bf16", "mixed"],
    typer.Option("--to", help="Precision to write into the graphs; mixed is fp16 with a keep list."),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        "--keep", metavar="KEEP.yaml", help="Nodes that stay float32: see precision-search.", show_default="none"
    ),
]
CastEngine = Annotated[
    Literal["native", "modelopt"],
    typer.Option("--engine", help="What types the graphs: nemotrt itself, or NVIDIA Model Optimizer."),
]
ModelOptPython = Annotated[
    Path | None,
    typer.Option(
        "--modelopt-python",
        metavar="PYTHON",
        help="Interpreter that has Model Optimizer.",
        show_default="the one that runs nemotrt",
    ),
]

# What a check may be asked for.

OnlyRules = Annotated[
    list[str] | None,
    typer.Option("--rule", metavar="ID", help="Rule to ask, repeatable.", show_default="all"),
]
IgnoredRules = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="ID", help="Rule to leave out, repeatable.", show_default=False),
]
Sarif = Annotated[
    Path | None,
    typer.Option("--sarif", metavar="FILE", help="Also write the findings as SARIF 2.1.0.", show_default=False),
]

# What an export may be asked for.

Components = Annotated[
    list[str] | None,
    typer.Option(
        "--component",
        metavar="NAME|all",
        help="Component to write, repeatable.",
        show_default="those that nemotrt decodes with",
    ),
]
OnlyDecoder = Annotated[
    Literal["ctc", "rnnt", "tdt"] | None,
    typer.Option("--decoder", help="Only the components of one decoder.", show_default="all that the model has"),
]
Lookahead = Annotated[
    int | None,
    typer.Option("--lookahead", metavar="FRAMES", help="Attention look-ahead.", show_default="the first trained"),
]
MaxSeconds = Annotated[
    float | None,
    typer.Option(
        "--max-seconds", metavar="S", help="Longest input: sizes the position table.", show_default="as trained"
    ),
]
StreamingCacheSize = Annotated[
    int | None,
    typer.Option(
        "--streaming-cache-size",
        metavar="FRAMES",
        help="Encoder frames that attention sees to the left.",
        show_default="as trained",
    ),
]
StreamingCacheDropSize = Annotated[
    int,
    typer.Option(
        "--streaming-cache-drop-size",
        metavar="FRAMES",
        min=0,
        help="Encoder frames of a chunk that come again with the next one.",
    ),
]
Cache = Annotated[
    Literal["inputs", "kv"],
    typer.Option("--cache", help="What encoder_streaming keeps of a layer: its inputs, or its keys and values."),
]
Fixed = Annotated[
    float | None,
    typer.Option(
        "--fixed", metavar="S", help="Fixed shapes: one clip of S seconds.", show_default="any batch and length"
    ),
]
Opset = Annotated[int, typer.Option("--opset", metavar="N", help="ONNX opset version, 18 to 23.")]
FrontEnd = Annotated[
    Literal["native", "nemo"],
    typer.Option("--frontend", help="What makes the graphs: nemotrt itself, or NeMo's own modules."),
]
Device = Annotated[
    Literal["cpu", "cuda"] | None,
    typer.Option("--device", help="Where NeMo's modules are traced.", show_default="cpu"),
]
MaxMemory = Annotated[
    float | None,
    typer.Option(
        "--max-memory",
        metavar="GIB",
        min=0.0,
        help="Memory that the export may take; it is ended beyond.",
        show_default="ample",
    ),
]
SmokeTest = Annotated[
    bool, typer.Option("--smoke-test-ort", help="Also run every component in ONNX Runtime before it is published.")
]

# What a quantization may be asked for.

CalibrationAudio = Annotated[
    Path | None,
    typer.Option("--audio", metavar="CLIPS", help="Speech to calibrate on: manifest, folder or file."),
]
Calibration = Annotated[
    Literal["max", "percentile"],
    typer.Option("--calibration", help="Range of an activation: all of it, or 99.99 % of its values."),
]
WeightOnly = Annotated[
    bool, typer.Option("--weight-only", help="Leave activations in float32: no audio, no int8 arithmetic.")
]
KeepScopes = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="[COMPONENT:]SCOPE",
        help="What stays in float32, repeatable: joint, layers.0, encoder:feed_forward1.",
        show_default="subsampling",
    ),
]

# What fix may be asked for.

FixSource = Annotated[
    Path | None, typer.Argument(metavar="GRAPH.onnx|BUNDLE", help="An ONNX graph, or a bundle.", show_default=False)
]
FixOutput = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for the result.", show_default=False)
]
OnlyPasses = Annotated[
    list[str] | None,
    typer.Option("--pass", metavar="NAME", help="Only this pass, repeatable.", show_default="all"),
]
SkipPasses = Annotated[
    list[str] | None, typer.Option("--skip", metavar="NAME", help="Leave this pass out, repeatable.")
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare before and after in ONNX Runtime.")]
ListPasses = Annotated[bool, typer.Option("--list", help="Say what each pass does, and exit.")]
Explain = Annotated[
    bool, typer.Option("--explain", help="Also say what each pass removed and refused, and what an engine costs.")
]

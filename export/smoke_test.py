"""Does a component load and run in ONNX Runtime? One small batch of noise: finite numbers of the promised shapes.

contract -> sizes of the named axes -> feeds -> outputs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemotrt.bundle import (
    BATCH,
    ENCODER_FRAMES,
    FRAMES,
    JOINT_FRAMES,
    SAMPLES,
    TOKENS,
    ComponentSpec,
    EncoderSpec,
    TensorSpec,
)
from nemotrt.errors import GraphError

_FRAMES = 64
_SIZES = {BATCH: 2, SAMPLES: 8000, FRAMES: _FRAMES, JOINT_FRAMES: 2, TOKENS: 2}
_FIX = "report this model: its graph is valid, but not what its contract promises"

_Array = NDArray[Any]


def run_component(graph: Path, spec: ComponentSpec, encoder: EncoderSpec) -> None:
    """Run one component on its own kind of input.

    Raises:
        GraphError: ONNX Runtime does not load or run it, or an output is not finite or of another shape or type.
    """
    sizes = _SIZES | {ENCODER_FRAMES: encoder.encoder_frames_from_feature_frames(_FRAMES)}
    outputs = _run(graph, _feeds(spec, sizes))
    if SAMPLES in spec.inputs[0].shape:
        sizes[FRAMES] = outputs[0].shape[-1]  # the front end decides how many
    for tensor, value in zip(spec.outputs, outputs, strict=True):
        wanted = _shape(tensor, sizes)
        problem = None
        if value.dtype.name != tensor.dtype or value.shape != wanted:
            problem = f"{tensor.name} is {value.dtype.name}{list(value.shape)}, not {tensor.dtype}{list(wanted)}"
        elif value.dtype.kind == "f" and not np.isfinite(value).all():
            problem = f"{tensor.name} has numbers that are not finite"
        if problem:
            raise GraphError(
                "an output of a graph is not what its contract promises", where=graph, found=problem, fix=_FIX
            )


def _feeds(spec: ComponentSpec, sizes: dict[str, int]) -> dict[str, _Array]:
    """Noise for what is float. A length is that of the first input; every other integer may be zero."""
    random = np.random.default_rng(0)
    shapes = {tensor.name: _shape(tensor, sizes) for tensor in spec.inputs}
    whole = shapes[spec.inputs[0].name][-1]
    feeds: dict[str, _Array] = {}
    for tensor in spec.inputs:
        if tensor.dtype == "float32":
            feeds[tensor.name] = random.standard_normal(shapes[tensor.name]).astype(np.float32)
        else:
            value = whole if tensor.name.endswith(("length", "lengths")) else 0
            feeds[tensor.name] = np.full(shapes[tensor.name], value, tensor.dtype)
    return feeds


def _shape(tensor: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)


def _run(graph: Path, feeds: dict[str, _Array]) -> list[_Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        outputs: list[_Array] = session.run(None, feeds)
    except Exception as exc:  # the classes of ONNX Runtime's failures share no other base
        raise GraphError(
            "ONNX Runtime does not run a graph", where=graph, found=" ".join(str(exc).split())[:500], fix=_FIX
        ) from exc
    return outputs

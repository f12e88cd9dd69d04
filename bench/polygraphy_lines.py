"""A finding as Polygraphy command lines, for those who want to see it with other eyes.

feeds --> INPUTS.npz, and INPUTS.json where Polygraphy is installed --> polygraphy run, polygraphy debug reduce
"""

from __future__ import annotations

import importlib
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemotrt.engines.runner import Arrays

INSTALL = "pip install polygraphy"


@dataclass(frozen=True)
class SavedInputs:
    """The inputs on disk; ``json`` is ``None`` where Polygraphy, whose format it is, is not installed."""

    npz: Path
    json: Path | None


def save_inputs(feeds: Arrays, folder: Path, name: str) -> SavedInputs:
    """Write the arrays to ``folder``, by input name."""
    npz, document = folder / f"{name}.npz", folder / f"{name}.json"
    np.savez(npz, allow_pickle=False, **feeds)
    try:
        polygraphy = importlib.import_module("polygraphy.json")
    except ImportError:
        return SavedInputs(npz, None)
    polygraphy.save_json([dict(feeds)], str(document))
    return SavedInputs(npz, document)


def polygraphy_lines(
    reference: Path,
    candidate: Path,
    saved: SavedInputs,
    feeds: Arrays,
    *,
    tensors: tuple[str, str],
    max_abs: float,
) -> tuple[str, ...]:
    """Lines that show the difference of ``tensors``, and that cut the candidate down for TensorRT.

    ``max_abs`` is the largest difference that is none. The last line needs a GPU: it looks for the smallest part of
    the candidate that TensorRT and ONNX Runtime compute differently.
    """
    if saved.json is None:
        return ()
    outputs = saved.json.with_suffix(".reference-outputs.json")
    shapes = [f"{name}:[{','.join(map(str, array.shape))}]" for name, array in feeds.items()]
    inputs = ["--load-inputs", str(saved.json)]
    reduced = str(saved.json.with_suffix(".reduced.onnx"))
    check = ["polygraphy", "run", "polygraphy_debug.onnx", "--onnxrt", "--trt", *inputs, "--atol", f"{max_abs:.3g}"]
    lines: tuple[list[str], ...] = (
        [*_run(reference), *inputs, "--onnx-outputs", tensors[0], "--save-outputs", str(outputs)],
        [
            *(*_run(candidate), *inputs, "--onnx-outputs", tensors[1], "--load-outputs", str(outputs)),
            *("--rtol", "0", "--atol", f"{max_abs:.3g}"),
        ],
        [
            *_run(candidate),
            *inputs,
            "--onnx-outputs",
            "mark",
            "all",
            "--save-outputs",
            str(saved.json.with_suffix(".all.json")),
        ],
        [
            *("polygraphy", "debug", "reduce", str(candidate), "-o", reduced, "--mode", "bisect"),
            *("--no-reduce-inputs", "--model-input-shapes", *shapes, "--check", *check),
        ],
    )
    return tuple(shlex.join(line) for line in lines)


def _run(graph: Path) -> list[str]:
    return ["polygraphy", "run", str(graph), "--onnxrt"]

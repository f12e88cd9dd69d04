"""A program: ``polygraphy check lint`` on graphs, one line of JSON for each.

    python -m nemotrt.trt.check.run_polygraphy_lint ANSWERS.jsonl GRAPH.onnx ...

The lint runs a graph in ONNX Runtime on random values. What is given to it is chosen so that any graph of a bundle can
take it: one row, a second of audio or less, and integers that are valid tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, ValueInfoProto

_SAMPLES, _FRAMES = 16000, 32
_LEVELS = {"exception": "error", "warning": "warning", "info": "note"}


def main(answers: str, *graphs: str) -> None:
    """Append the remarks of each graph to ``answers``, before the next one is looked at."""
    from polygraphy.tools import main as polygraphy

    report = Path(answers).with_suffix(".lint")
    with Path(answers).open("a", encoding="utf-8") as lines:
        for graph in graphs:
            report.unlink(missing_ok=True)
            options = ["--val-range", "[0,1]", "--input-shapes", *_shapes(graph), "--silent"]
            polygraphy(["check", "lint", graph, "-o", str(report), *options])
            lines.write(json.dumps(list(_remarks(report))) + "\n")
            lines.flush()


def _shapes(graph: str) -> list[str]:
    inputs = onnx.load(graph, load_external_data=False).graph.input
    return [f"{value.name}:{_shape(value)}".replace(" ", "") for value in inputs]


def _shape(value: ValueInfoProto) -> list[int]:
    """Fixed axes as they are. Free ones are one row, one layer or one token; a signal's last axis is time."""
    tensor = value.type.tensor_type
    sizes = [axis.dim_value if axis.HasField("dim_value") else 1 for axis in tensor.shape.dim]
    if tensor.elem_type == TensorProto.FLOAT and sizes and not tensor.shape.dim[-1].HasField("dim_value"):
        sizes[-1] = {2: _SAMPLES, 3: _FRAMES}.get(len(sizes), 1)
    return sizes


def _remarks(report: Path) -> Iterator[dict[str, Any]]:
    if not report.is_file():
        yield {"level": "note", "what": "Polygraphy wrote no report of this graph", "nodes": []}
        return
    for entry in json.loads(report.read_text(encoding="utf-8"))["lint_entries"]:
        text = " ".join(f"{entry['source']}: {entry['message']}".split())
        yield {"level": _LEVELS.get(entry["level"], "note"), "what": text, "nodes": entry.get("nodes", [])}


if __name__ == "__main__":
    main(*sys.argv[1:])

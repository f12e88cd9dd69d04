"""Minimal graphs in ONNX text, and a pass on them: what changed, and that ONNX Runtime sees no difference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from nemotrt.trt.surgery.equivalence import Equality, compare_graphs
from nemotrt.trt.surgery.operate import load_for_surgery, operate, write_model
from nemotrt.trt.surgery.surgery_pass import PassOutcome, SurgeryPass

GRID = ((1, 1), (1, 7), (3, 12))


@dataclass(frozen=True)
class Operated:
    """What a pass made of a graph, and how it compares with it."""

    outcome: PassOutcome
    before: Counter[str]
    after: Counter[str]
    equality: Equality
    path: Path

    @property
    def refusal(self) -> str:
        """The only reason why something was left."""
        (reason,) = self.outcome.refusals
        assert self.outcome.changes == 0
        assert self.before == self.after
        return reason


def write_graph(folder: Path, text: str, *, opset: int = 17, **weights: NDArray) -> Path:
    """``text`` is a graph of onnx's own text format, ``weights`` its initializers."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    onnx.checker.check_model(model, full_check=True)
    path = folder / "before.onnx"
    onnx.save(model, path)
    return path


def operated(path: Path, *passes: SurgeryPass, ragged: bool = True) -> Operated:
    """Each of ``passes`` once; the outcome is that of the last one."""
    model = load_for_surgery(path)
    before = Counter(node.op_type for node in model.graph)
    outcome = operate(model, passes, steps=len(passes))[-1]
    after = path.with_name("after.onnx")
    write_model(model, after)
    onnx.checker.check_model(str(after))
    equality = compare_graphs(path, after, ragged=ragged, grid=GRID)
    assert equality.problem is None, equality.problem
    return Operated(outcome, before, Counter(node.op_type for node in model.graph), equality, after)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

"""Exported graphs in ONNX Runtime, on one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nemotrt.bundle import Bundle

Array = NDArray[Any]


class Graph:
    """An ONNX file that is called with arrays by input name and returns its outputs in order."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    @staticmethod
    def of(bundle: Bundle, component: str) -> Graph:
        """A component of a bundle."""
        return Graph(bundle.graph_path(component))

    def __call__(self, **feeds: Array) -> list[Array]:
        outputs: list[Array] = self._session.run(None, feeds)
        return outputs

    def positional(self, *feeds: Array) -> list[Array]:
        """The same with the inputs in their order."""
        return self(**{value.name: feed for value, feed in zip(self._session.get_inputs(), feeds, strict=True)})


def worst_of_rows(found: Array, wanted: Array, lengths: NDArray[np.int64], *, axis: int) -> float:
    """Largest absolute difference within each row's valid frames; ``axis`` counts frames. NaN if any is NaN."""
    differences = [
        np.abs(a.take(range(n), axis - 1) - b.take(range(n), axis - 1)).max()
        for a, b, n in zip(found, wanted, lengths, strict=True)
        if n
    ]
    return float(np.max(differences, initial=0.0))

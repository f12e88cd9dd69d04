"""ONNX Runtime as the oracle: on one thread, on the CPU, the graph as it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from nemotrt.errors import GraphError

Array = NDArray[Any]


def run_once(model: ir.Model) -> list[Array]:
    """The outputs of a model without inputs.

    Raises:
        GraphError: ONNX Runtime cannot load or run it.
    """
    session = _session(ir.to_proto(model).SerializeToString(), where=str(model.graph.name))
    return _run(session, {}, where=str(model.graph.name))


class OnnxSession:
    """A graph in a file, loaded to be run on several inputs.

    Raises:
        GraphError: ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session = _session(str(path), where=str(path))
        self.inputs = tuple(self._session.get_inputs())
        self.outputs = tuple(self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs in order.

        Raises:
            GraphError: ONNX Runtime cannot run it on these inputs.
        """
        return _run(self._session, feeds, where=str(self._path))


def _session(model: str | bytes, *, where: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # the classes of ONNX Runtime's failures share no other base
        raise _failed("ONNX Runtime cannot load the graph", where, exc) from exc


def _run(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array], *, where: str) -> list[Array]:
    try:
        return [np.asarray(output) for output in session.run(None, dict(feeds))]
    except Exception as exc:  # the classes of ONNX Runtime's failures share no other base
        raise _failed("ONNX Runtime cannot run the graph", where, exc) from exc


def _failed(what: str, where: str, exc: Exception) -> GraphError:
    return GraphError(what, where=where, found=" ".join(str(exc).split())[:300], fix="check the graph it was made from")

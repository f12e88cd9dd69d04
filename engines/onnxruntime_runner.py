"""Runs a component on ONNX Runtime: the oracle, and the default where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from nemotrt.bundle import ComponentSpec, DType, TensorSpec
from nemotrt.engines.feeds import check_feeds
from nemotrt.engines.runner import Array, Arrays
from nemotrt.errors import GraphError, InputError, MachineError

_CPU = "CPUExecutionProvider"
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_QUIET = 3  # ONNX Runtime severity: errors only; what matters is raised
_DTYPES: dict[str, DType] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class OnnxRuntimeRunner:
    """A :class:`~nemotrt.engines.runner.Runner` over one ONNX Runtime session.

    Args:
        graph: the ``.onnx`` file; its external data lies beside it.
        spec: the component's contract. With it the graph must have exactly these inputs and outputs, and
            shapes are checked against it; without it the graph speaks for itself.
        threads: threads within one operator; ``None`` leaves it to ONNX Runtime (one a core).
        providers: ONNX Runtime execution providers, the first one decides the label; CPU if ``None``.
        optimize: let ONNX Runtime rewrite the graph. It takes float8 for integers there: it refuses such a graph, or
            drops a ReLU in front of QuantizeLinear and says nothing.
        data_folder: where the external data lies, if not beside the graph.

    Raises:
        MachineError: a provider is not in this ONNX Runtime, or does not start on this machine.
        GraphError: the file is not a graph that ONNX Runtime loads, or not the one of ``spec``.
        InputError: ``threads`` is less than 1.
    """

    def __init__(
        self,
        graph: Path,
        *,
        spec: ComponentSpec | None = None,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
        optimize: bool = True,
        data_folder: Path | None = None,
    ) -> None:
        wanted = tuple(providers or (_CPU,))
        self._graph = graph
        options = _options(threads, optimize=optimize)
        if data_folder is not None:
            options.add_session_config_entry(_DATA_FOLDER, str(data_folder))
        # ONNX Runtime takes data from another folder only for a graph that is in memory.
        source = graph if data_folder is None else _bytes_of(graph)
        self._session: Any = _open_session(graph, source, options=options, providers=wanted)
        own_inputs = tuple(_tensor_spec(node, graph) for node in self._session.get_inputs())
        own_outputs = tuple(_tensor_spec(node, graph) for node in self._session.get_outputs())
        if spec is not None:
            _check_contract(graph, promised=spec.inputs, found=own_inputs)
            _check_contract(graph, promised=spec.outputs, found=own_outputs)
        self._inputs = own_inputs if spec is None else spec.inputs
        self._outputs = own_outputs if spec is None else spec.outputs
        device = wanted[0].removesuffix("ExecutionProvider")
        self._label = f"onnxruntime {onnxruntime.__version__} {device}"

    @property
    def label(self) -> str:
        """Backend, version and provider: ``onnxruntime 1.31.1 CPU``."""
        return self._label

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The contract's inputs, or the graph's own."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The contract's outputs, or the graph's own."""
        return self._outputs

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """One inference.

        Raises:
            InputError: names or dtypes other than those of ``inputs``, or a closed runner.
            ProfileError: shapes other than those of ``inputs``.
            GraphError: ONNX Runtime failed; the message is its own.
        """
        if self._session is None:
            raise InputError("the runner is closed", where=self._graph, fix="open another one")
        check_feeds(feeds, self._inputs, where=str(self._graph))
        names = [spec.name for spec in self._outputs]
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as exc:  # the classes of ONNX Runtime's failures share no other base
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise GraphError(
                "ONNX Runtime failed to run the graph",
                where=f"{self._graph} with {shapes}",
                found=exc,
                fix="export again; if it fails again the graph is at fault: report it with this message",
            ) from exc
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        """Release the session. Safe to call twice."""
        self._session = None


def _bytes_of(graph: Path) -> bytes:
    return graph.read_bytes() if graph.is_file() else b""


def _open_session(
    graph: Path, source: Path | bytes, *, options: onnxruntime.SessionOptions, providers: Sequence[str]
) -> Any:
    if not graph.is_file():
        raise GraphError("the graph is not there", where=graph, fix="check the path, or export again")
    _check_providers(providers, onnxruntime.get_available_providers())
    try:
        session = onnxruntime.InferenceSession(source, sess_options=options, providers=list(providers))
    except Exception as exc:  # the classes of ONNX Runtime's failures share no other base
        raise GraphError(
            "ONNX Runtime cannot load the graph",
            where=graph,
            found=exc,
            fix="export the checkpoint again; a graph and its .onnx.data stay together",
        ) from exc
    if session.get_providers()[0] != providers[0]:
        raise MachineError(
            f"{providers[0]} does not start on this machine",
            found=f"ONNX Runtime fell back to {session.get_providers()[0]}",
            fix="install the provider's driver and libraries, or use the CPU",
        )
    return session


def _options(threads: int | None, *, optimize: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if threads is not None:
        if threads < 1:
            raise InputError("a session needs at least one thread", found=threads, fix="ask for 1 or more")
        options.intra_op_num_threads = threads
    return options


def _check_providers(wanted: Sequence[str], available: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in available]
    if missing:
        raise MachineError(
            f"this ONNX Runtime has no {missing[0]}",
            where=f"onnxruntime {onnxruntime.__version__}",
            found=", ".join(available),
            fix="install onnxruntime-gpu for CUDA (pip install nemotrt[gpu]), or use one of those found",
        )


def _tensor_spec(node: Any, graph: Path) -> TensorSpec:
    """The spec of a session's input or output. Axes without a name get one of their own."""
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise GraphError(
            f"{node.name} has a type that nemotrt does not run",
            where=graph,
            found=node.type,
            fix=f"use one of {', '.join(_DTYPES.values())}",
        )
    shape = (f"{node.name}_axis_{i}" if axis is None else axis for i, axis in enumerate(node.shape))
    return TensorSpec(name=node.name, dtype=dtype, shape=tuple(shape))


def _check_contract(graph: Path, *, promised: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> None:
    if _signature(promised) != _signature(found):
        raise GraphError(
            "the graph is not the one that the bundle's metadata describes",
            where=graph,
            found=f"{_signature(found)}, {_signature(promised)} recorded",
            fix="export the checkpoint again",
        )


def _signature(specs: Sequence[TensorSpec]) -> str:
    """Names, dtypes and ranks; the names of axes are the contract's business, not the graph's."""
    return ", ".join(sorted(f"{spec.name}: {spec.dtype} x {len(spec.shape)} axes" for spec in specs))

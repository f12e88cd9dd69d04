"""Half precision by NVIDIA Model Optimizer instead of by us: ``modelopt.onnx.autocast`` in a process of its own.

graph.onnx --> PYTHON -m modelopt.onnx.autocast --> typed.onnx, read back

It pins versions of onnx and ONNX Runtime that are not ours, hence another interpreter. It holds the whole model in
memory. What it leaves in float32 is its choice, but for the nodes that it is told to keep.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from nemotrt.child_process import Finished, run_measured
from nemotrt.errors import GraphError, MachineError
from nemotrt.trt.half_cast import CastReport
from nemotrt.trt.half_types import computes_in_half
from nemotrt.trt.keep_list import is_named

_MODULE = "modelopt.onnx.autocast"
_PROBE_SECONDS = 300.0
_CAST_SECONDS = 3600.0


def refuse_missing_modelopt(python: Path) -> None:
    """Ask ``python`` for Model Optimizer, before anything is made.

    Raises:
        MachineError: no such interpreter, or it has no Model Optimizer that loads.
    """
    with TemporaryDirectory() as work:
        done = _run(python, ["-m", _MODULE, "--help"], work=Path(work), timeout_seconds=_PROBE_SECONDS)
    if done.failure is not None:
        raise _missing(python, done.failure)


def cast_with_modelopt(
    graph: Path, python: Path, *, to: str, keep: Collection[str], work: Path
) -> tuple[ir.Model, CastReport]:
    """The typed twin of ``graph``, whose weights may lie in the folder ``work``. ``to`` is ``fp16`` or ``bf16``.

    Raises:
        GraphError: Model Optimizer does not take the graph.
        MachineError: no such interpreter, or it took longer than an hour.
    """
    typed = work / "typed.onnx"
    arguments = ["-m", _MODULE, "--onnx_path", str(graph.absolute()), "--output_path", str(typed.absolute())]
    arguments += ["--low_precision_type", to, "--keep_io_types"]
    kept = [f"^{re.escape(str(node.name))}$" for node in ir.load(graph).graph if is_named(node, keep)]
    if kept:
        arguments += ["--nodes_to_exclude", *kept]
    done = _run(python, arguments, work=work, timeout_seconds=_CAST_SECONDS)
    if done.failure is not None or not typed.is_file():
        raise GraphError(
            "Model Optimizer cannot type the graph",
            where=graph,
            found=done.failure or "it ended and wrote nothing",
            fix="leave --engine modelopt out",
        )
    model = ir.load(typed)
    return model, _report(model)


def _report(model: ir.Model) -> CastReport:
    half = sum(map(computes_in_half, model.graph))
    single = sum(any(value.dtype == ir.DataType.FLOAT for value in node.outputs) for node in model.graph)
    casts = sum(node.op_type == "Cast" for node in model.graph)
    return CastReport(casts=casts, half_nodes=half, float32_nodes=single, kept_float32=())


def _run(python: Path, arguments: list[str], *, work: Path, timeout_seconds: float) -> Finished:
    program = Path(shutil.which(python) or python).absolute()
    try:
        return run_measured([str(program), *arguments], folder=work, timeout_seconds=timeout_seconds)
    except OSError as exc:
        raise _missing(python, exc) from exc


def _missing(python: Path, found: object) -> MachineError:
    return MachineError(
        "there is no NVIDIA Model Optimizer",
        where=python,
        found=found,
        fix="in an environment of its own: pip install 'nvidia-modelopt[onnx]', and name that environment's Python "
        "with --modelopt-python",
    )

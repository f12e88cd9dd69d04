"""The second front end: graphs traced from NeMo's own modules, for models that the native one does not build.

    tensors of each component -> request.json -> run_nemo_modules.py in the interpreter that has NeMo
        -> a graph and a sample of what the module says -> checked -> TracedGraph

NeMo runs what a checkpoint's config names: here a checkpoint has to be trusted as NeMo trusts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nemotrt.bundle import ComponentName, EncoderSpec
from nemotrt.child_process import Finished
from nemotrt.errors import CheckpointError, MachineError, NemotrtError
from nemotrt.export import run_nemo_modules
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.options import OPSETS, NemoProcess
from nemotrt.export.traced_graph import USE_NATIVE, TracedGraph
from nemotrt.nemo_interpreter import import_failure, not_a_python, run_python

_TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True)
class Traced:
    """What NeMo made. ``tools`` is the bundle's record of it: versions, components, what was changed for the trace."""

    graphs: Mapping[ComponentName, TracedGraph] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def traced_by_nemo(
    checkpoint: Path,
    components: Mapping[ComponentName, GraphBuilder],
    spec: EncoderSpec,
    *,
    process: NemoProcess,
    attention_context: tuple[int, int] | None,
    folder: Path,
) -> Iterator[Traced]:
    """Of ``components`` those that NeMo can make; their files lie in ``folder`` until the context ends.

    ``attention_context`` is one of several trained, ``None`` the first.

    Raises:
        MachineError: no interpreter with a NeMo that loads, no such device, or NeMo's export failed or was killed.
        CheckpointError: NeMo cannot restore the checkpoint.
        GraphError: a graph is not what NeMo's own module or the contract says.
    """
    wanted = {name: graph for name, graph in components.items() if name in run_nemo_modules.COMPONENTS}
    if not wanted:
        yield Traced()
        return
    with TemporaryDirectory(dir=folder, prefix="nemo-") as inside:
        work = Path(inside)
        request = {
            "checkpoint": str(checkpoint.absolute()),
            "folder": str(work),
            "device": process.device,
            "opset": OPSETS[0],
            "attention_context": attention_context,
            "components": {name: _tensors(graph) for name, graph in wanted.items()},
        }
        (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
        report = _run(checkpoint, process, work)
        graphs = {name: _traced(graph, work) for name, graph in wanted.items()}
        for graph in graphs.values():
            graph.check(spec)
        record = {"from NeMo": ", ".join(graphs), "NeMo patches": "; ".join(report["patches"])}
        yield Traced(graphs, {**report["versions"], **record})


def _tensors(graph: GraphBuilder) -> dict[str, list[dict[str, Any]]]:
    sides = {"inputs": graph.input_specs, "outputs": graph.output_specs}
    return {side: [spec.model_dump(mode="json") for spec in specs] for side, specs in sides.items()}


def _traced(graph: GraphBuilder, work: Path) -> TracedGraph:
    path = work / graph.name / f"{graph.name}.onnx"
    return TracedGraph(graph.name, path, graph.input_specs, graph.output_specs)


def _run(checkpoint: Path, process: NemoProcess, work: Path) -> dict[str, Any]:
    """What the program reports of its work."""
    arguments = [str(Path(run_nemo_modules.__file__).resolve()), str(work / "request.json")]
    done = run_python(process.python, arguments, folder=work, timeout_seconds=_TIMEOUT_SECONDS)
    stage = work / "stage.txt"
    if not stage.is_file():
        raise not_a_python(process.python, done)
    if done.failure is not None:
        raise _failure(stage.read_text(encoding="utf-8"), checkpoint, process, done, work)
    report: dict[str, Any] = json.loads((work / "report.json").read_text(encoding="utf-8"))
    return report


def _failure(stage: str, checkpoint: Path, process: NemoProcess, done: Finished, work: Path) -> NemotrtError:
    """What it means that the program ended in ``stage``."""
    found = done.failure
    if done.exit_code < 0:
        fix = "free memory, or use the native front end (leave --frontend out): it holds one weight at a time"
        return MachineError("NeMo's process was killed", where=f"{checkpoint}: {stage}", found=found, fix=fix)
    if stage == run_nemo_modules.IMPORT:
        return import_failure(process.python, done, folder=work)
    if stage == run_nemo_modules.DEVICE:
        what, fix = f"torch cannot use the device {process.device}", "leave --device out: the CPU does as well"
        return MachineError(what, where=process.python, found=found, fix=fix)
    if stage == run_nemo_modules.RESTORE:
        fix = "name an interpreter with the NeMo that saved it (--nemo-python), or use the native front end"
        return CheckpointError("NeMo cannot restore the checkpoint", where=checkpoint, found=found, fix=fix)
    return MachineError(f"NeMo does not {stage}", where=checkpoint, found=found, fix=USE_NATIVE)

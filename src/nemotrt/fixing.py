"""What stands behind ``nemotrt fix``: a graph or a bundle, and what the change is worth as an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nemotrt.errors import InputError, MachineError
from nemotrt.stages import proven_bundle
from nemotrt.tensorrt_api import best_runtime
from nemotrt.trt.surgery import FixReport, fix_bundle, fix_graph
from nemotrt.trt.surgery.engine_cost import EngineCost, engine_cost
from nemotrt.trt.surgery.operate import OnPass
from nemotrt.trt.surgery.surgery_pass import SurgeryPass


@dataclass(frozen=True)
class Engines:
    """One build of a graph before and one after; ``skipped`` is the reason why there are none."""

    before: EngineCost | None = None
    after: EngineCost | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Fixed:
    """What became of a graph; ``engines`` is ``None`` where nobody asked."""

    report: FixReport
    engines: Engines | None

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            **asdict(self.report),
            "graph": str(self.report.graph),
            "engines": self.engines and asdict(self.engines),
        }


def fix(
    source: Path, output: Path, *, passes: Sequence[SurgeryPass], verify: bool, explain: bool, on_pass: OnPass
) -> tuple[Fixed, ...]:
    """Fix the graph, or every graph of the bundle, at ``source``.

    Raises:
        NemotrtError: as :func:`nemotrt.trt.surgery.fix_graph` and :func:`nemotrt.trt.surgery.fix_bundle`.
    """
    if source.is_dir():
        bundle = proven_bundle(source)
        _, reports = fix_bundle(bundle, output, passes=passes, verify=verify, on_pass=on_pass)
        graphs = [source / report.graph.name for report in reports]
    else:
        reports, graphs = (fix_graph(source, output, passes=passes, verify=verify, on_pass=on_pass),), [source]
    pairs = zip(graphs, reports, strict=True)
    return tuple(Fixed(report, _engines(graph, report, on_pass) if explain else None) for graph, report in pairs)


def _engines(before: Path, report: FixReport, on_pass: OnPass) -> Engines:
    runtime = best_runtime()
    if runtime is None or not report.changed:
        return Engines(skipped="no TensorRT is installed" if runtime is None else "nothing was changed")
    on_pass("engines")
    try:
        return Engines(engine_cost(before, runtime=runtime), engine_cost(report.graph, runtime=runtime))
    except (InputError, MachineError) as exc:
        return Engines(skipped=f"{exc.what}: {exc.found}")

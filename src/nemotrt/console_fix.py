"""What people see of ``nemotrt fix``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from nemotrt.bench import quantities
from nemotrt.console import show
from nemotrt.fixing import Engines, Fixed
from nemotrt.trt.surgery.surgery_pass import SurgeryPass


def print_passes(passes: Sequence[SurgeryPass]) -> None:
    """Every pass and what it does, in the order in which they run."""
    table = Table(box=None)
    table.add_column("pass", no_wrap=True)
    table.add_column("what it does")
    for one in passes:
        table.add_row(one.name, one.does)
    show(table)


def print_fixed(fixed: Sequence[Fixed], *, explain: bool) -> None:
    """What became of each graph, and what was proved of it."""
    for one in fixed:
        report, equality = one.report, one.report.equality
        proved = "not verified"
        if equality is not None:
            shapes = f"{len(equality.shapes)} shapes in ONNX Runtime"
            proved = f"equal on {shapes}, largest difference {equality.max_difference:.1e}"
        show(f"{report.graph}: {report.nodes_before} -> {report.nodes_after} nodes, {proved}")
        for limit in report.limits:
            show(f"  holds where {limit}")
        if explain:
            _print_changes(one)
        if one.engines is not None:
            _print_engines(one.engines)


def _print_changes(fixed: Fixed) -> None:
    table = Table("pass", "changes", "nodes before", "nodes after", "refused", box=None)
    nodes = fixed.report.nodes_before
    for one in fixed.report.passes:
        row = (one.changes, nodes, nodes - one.nodes_removed, len(one.refusals))
        nodes -= one.nodes_removed
        table.add_row(one.name, *map(str, row))
    show(table)
    for one in fixed.report.passes:
        for refusal in one.refusals:
            show(f"  {one.name} left {refusal}")


def _print_engines(engines: Engines) -> None:
    if engines.before is None or engines.after is None:
        show(f"  no engines: {engines.skipped}")
        return
    for name, cost in (("before", engines.before), ("after", engines.after)):
        seconds, size = quantities.duration(cost.seconds), quantities.size(cost.plan_bytes)
        show(f"  engine {name}: {cost.layers} layers, {seconds} to build, {size}")

"""Somebody else's graph, or a bundle, to a lean one: operated on, proved equal, published by one rename.

    GRAPH.onnx -> passes -> ONNX Runtime before == after -> OUT/GRAPH.onnx + OUT/GRAPH.onnx.data
    BUNDLE     -> the same for each component            -> OUT, a bundle

Where the result is different, the passes are run again, fewer and fewer of them, to name the one that made it so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from nemotrt.bundle import Bundle, BundleMeta, ComponentName, ComponentSpec, FileRecord
from nemotrt.bundle_writer import BundleWriter
from nemotrt.errors import GraphError, MachineError, UsageError
from nemotrt.graph_contract import check_graph
from nemotrt.trt.surgery.equivalence import Equality, compare_graphs
from nemotrt.trt.surgery.operate import OnPass, load_for_surgery, operate, write_model
from nemotrt.trt.surgery.pass_list import PASSES
from nemotrt.trt.surgery.surgery_pass import PassOutcome, SurgeryPass

KEPT: frozenset[ComponentName] = frozenset({"preprocessor"})
"""It takes samples, not frames, and runs on ONNX Runtime everywhere."""

VARIANTS: dict[ComponentName, ComponentName] = {"encoder_nomask": "encoder", "ctc_nomask": "ctc"}
"""They share the data file of another component, and are left out where that one changes."""


@dataclass(frozen=True)
class PassReport:
    """A pass over all rounds. ``refusals`` are those of the last one: what still looks like something to change."""

    name: str
    changes: int
    nodes_removed: int
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class FixReport:
    """What became of one graph. ``equality`` is ``None`` where nothing was verified.

    ``limits`` have to hold of the inputs: the graph that was given has no answer, or no defined one, beyond them.
    """

    graph: Path
    nodes_before: int
    nodes_after: int
    passes: tuple[PassReport, ...]
    limits: tuple[str, ...]
    equality: Equality | None

    @property
    def changed(self) -> bool:
        """Whether any pass did anything."""
        return any(one.changes for one in self.passes)


def fix_graph(
    path: Path,
    out: Path,
    *,
    passes: Sequence[SurgeryPass] = PASSES,
    verify: bool = True,
    on_pass: OnPass | None = None,
) -> FixReport:
    """Write the graph at ``path`` as ``out``/name.onnx with one data file, if it is equal to the one that was given.

    Raises:
        UsageError: ``out`` is there, or is the name of a file.
        GraphError: not an ONNX graph that can be operated on, or a pass that changes results; it is named.
        MachineError: the folder cannot be written.
    """
    if out.suffix == ".onnx":
        raise UsageError(
            "a graph and its weights are two files", found=out, fix=f"give a folder: -o {out.with_suffix('')}"
        )
    with _published(out) as folder:
        report = _fix(path, folder / path.name, passes=passes, verify=verify, on_pass=on_pass)
    return replace(report, graph=out / path.name)


def fix_bundle(
    source: Bundle,
    out: Path,
    *,
    passes: Sequence[SurgeryPass] = PASSES,
    verify: bool = True,
    on_pass: OnPass | None = None,
) -> tuple[Bundle, tuple[FixReport, ...]]:
    """Write a bundle whose graphs are fixed. A component that no pass changes keeps its files.

    Raises:
        UsageError, GraphError, MachineError: as :func:`fix_graph`; nothing is left then.
    """
    with BundleWriter(out) as writer, TemporaryDirectory(prefix="nemotrt-", dir=writer.folder.parent) as scratch:
        components: dict[ComponentName, ComponentSpec] = dict(source.meta.components)
        fixed: dict[ComponentName, FixReport] = {}
        reports = []
        for name, spec in source.meta.components.items():
            if name not in KEPT:
                target = Path(scratch) / spec.graph
                report = _fix(source.path / spec.graph, target, passes=passes, verify=verify, on_pass=on_pass)
                check_graph(target, spec)
                reports.append(replace(report, graph=out / spec.graph))
                if report.changed:
                    fixed[name] = report
        for name in [name for name, of in VARIANTS.items() if of in fixed and name in components]:
            del components[name]
            fixed.pop(name, None)
        for name in fixed:
            data = f"{components[name].graph}.data"
            has_data = (Path(scratch) / data).exists()
            components[name] = components[name].model_copy(update={"data": data if has_data else None})
        _place_files(source, components, fixed, scratch=Path(scratch), folder=writer.folder)
        bundle = writer.publish(lambda files: _meta(source.meta, components, fixed, files))
    return bundle, tuple(reports)


def _place_files(
    source: Bundle,
    components: dict[ComponentName, ComponentSpec],
    fixed: dict[ComponentName, FixReport],
    *,
    scratch: Path,
    folder: Path,
) -> None:
    of_graphs = {file for spec in source.meta.components.values() for file in spec.files}
    kept = {file for name, spec in components.items() if name not in fixed for file in spec.files}
    for file in (set(source.meta.files) - of_graphs) | kept:
        shutil.copyfile(source.path / file, folder / file)
    for name in fixed:
        for file in components[name].files:
            shutil.move(scratch / file, folder / file)


def _meta(
    meta: BundleMeta,
    components: dict[ComponentName, ComponentSpec],
    fixed: dict[ComponentName, FixReport],
    files: dict[str, FileRecord],
) -> BundleMeta:
    tools = {"surgery": ", ".join(sorted(fixed)), "onnx-ir": ir.__version__} if fixed else {}
    return meta.model_copy(update={"components": components, "files": files, "tools": {**meta.tools, **tools}})


def _fix(path: Path, target: Path, *, passes: Sequence[SurgeryPass], verify: bool, on_pass: OnPass | None) -> FixReport:
    model = load_for_surgery(path)
    nodes = len(model.graph)
    outcomes = operate(model, passes, on_pass=on_pass)
    write_model(model, target)
    equality = None
    if verify:
        if on_pass is not None:
            on_pass("ONNX Runtime")
        equality = compare_graphs(path, target, ragged=_ragged(passes))
        if equality.problem is not None:
            raise _different(path, passes, outcomes, equality)
    limits = tuple(dict.fromkeys(limit for outcome in outcomes for limit in outcome.limits))
    return FixReport(target, nodes, len(model.graph), _by_pass(passes, outcomes), limits, equality)


def _ragged(passes: Sequence[SurgeryPass]) -> bool:
    return all(one.keeps_padding for one in passes)


def _by_pass(passes: Sequence[SurgeryPass], outcomes: Sequence[PassOutcome]) -> tuple[PassReport, ...]:
    reports = []
    for one in passes:
        mine = [outcome for outcome in outcomes if outcome.name == one.name]
        removed = sum(outcome.nodes_before - outcome.nodes_after for outcome in mine)
        refusals = mine[-1].refusals if mine else ()
        reports.append(PassReport(one.name, sum(outcome.changes for outcome in mine), removed, refusals))
    return tuple(reports)


def _different(
    path: Path, passes: Sequence[SurgeryPass], outcomes: Sequence[PassOutcome], equality: Equality
) -> GraphError:
    """Find the first run of a pass after which the results are different."""
    equal, different, problem = 0, len(outcomes), equality.problem
    with TemporaryDirectory(prefix="nemotrt-") as folder:
        while different - equal > 1:
            middle = (equal + different) // 2
            model = load_for_surgery(path)
            operate(model, passes, steps=middle)
            trial = Path(folder) / f"{middle}.onnx"
            write_model(model, trial)
            found = compare_graphs(path, trial, ragged=_ragged(passes)).problem
            equal, different, problem = (middle, different, problem) if found is None else (equal, middle, found)
    name = outcomes[different - 1].name
    return GraphError(
        f"pass {name} changes what the graph computes",
        where=path,
        found=problem,
        fix=f"leave it out: --skip {name}; and tell us about the graph",
    )


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A private folder that becomes ``out`` when all is well, and is removed otherwise."""
    if os.path.lexists(out):
        raise UsageError("the output is already there", where=out, fix="give another output")
    folder = out.absolute().parent / f".{out.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(out)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise MachineError("the output cannot be written", where=out, found=reason, fix="check path and disk") from exc
    finally:
        shutil.rmtree(folder, ignore_errors=True)

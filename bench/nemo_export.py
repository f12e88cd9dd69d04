"""Our graph against NeMo's own export of the same checkpoint.

    checkpoint --+-- nemotrt export, a process of its own --> bundle ---+--> nodes, files, bytes
                 +-- NeMo's export,  a process of its own --> ONNX -----+--> ONNX Runtime, taking turns, and differences
                                                                        +--> TensorRT: layers, seconds to build

Seconds and peak memory of the exports are of whole processes, as a user meets them. NeMo's files are temporary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from nemotrt.bench.encoder_race import Batches, Built, Encoder, race_on_onnxruntime, race_on_tensorrt, spec_from_graph
from nemotrt.bench.exporters import export_with_nemo, export_with_nemotrt, nemotrt_startup_seconds
from nemotrt.bench.machine import describe_machine, git_commit
from nemotrt.bench.nemo_export_results import (
    CheckpointExports,
    EncoderGraph,
    EncoderLatency,
    ExportCost,
    Exported,
    NemoExportResults,
)
from nemotrt.bench.onnx_files import count_nodes, files_of
from nemotrt.bench.results import Skipped
from nemotrt.bench.run_nemo_export import EXPORTER
from nemotrt.bench.system import Progress, silent
from nemotrt.bundle import Bundle, sha256_of_file
from nemotrt.child_process import Finished
from nemotrt.errors import GraphError, InputError, MachineError, UsageError
from nemotrt.nemo_interpreter import InstalledNemo, find_nemo
from nemotrt.profiles import Profile, axis_ranges
from nemotrt.tensorrt_api import RuntimeName, best_runtime, load_api


@dataclass(frozen=True)
class NemoExportPlan:
    """How to measure. ``shapes`` are (rows, feature frames) of ONNX Runtime's batches.

    ``builds`` are TensorRT builds of each graph for ``profile``; 0 builds nothing.

    Raises:
        UsageError: no runs, no shapes, or fewer than no builds.
    """

    profile: Profile
    nemo_python: Path = Path(sys.executable)
    shapes: tuple[tuple[int, int], ...] = ((1, 300), (1, 1000), (8, 300), (8, 1000))
    runs: int = 20
    warmup: int = 2
    builds: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.runs < 1 or self.warmup < 0 or self.builds < 0 or not self.shapes:
            raise UsageError(
                "this plan measures nothing",
                found=f"{self.runs} runs, {self.warmup} warm-up runs, {self.builds} builds, {len(self.shapes)} shapes",
                fix="give at least one run and one shape",
            )


def compare_with_nemo_export(
    checkpoints: Sequence[Path], plan: NemoExportPlan, *, on_progress: Progress = silent
) -> NemoExportResults:
    """Export every checkpoint both ways and measure both.

    A checkpoint that NeMo does not export, and graphs that TensorRT does not build, are in ``unmeasured``.

    Raises:
        UsageError: no checkpoints.
        InputError: a checkpoint that is refused by ``nemotrt export``.
        MachineError: NeMo is not installed in the interpreter of the plan.
    """
    if not checkpoints:
        raise UsageError("there is nothing to export", found="no checkpoints", fix="give at least one .nemo file")
    with TemporaryDirectory(prefix="nemotrt-") as folder:
        on_progress("NeMo", 0.0)
        nemo = find_nemo(plan.nemo_python, folder=Path(folder))
        startup_seconds = nemotrt_startup_seconds(folder=Path(folder))
    runtime = best_runtime() if plan.builds else None
    rows = []
    for number, checkpoint in enumerate(checkpoints):
        with TemporaryDirectory(prefix="nemotrt-") as folder:
            duel = _Duel(
                checkpoint, plan, nemo, runtime, _progress_of(checkpoint, number, len(checkpoints), on_progress)
            )
            rows.append(duel.exports(Path(folder)))
    on_progress("done", 1.0)
    return NemoExportResults(
        schema_version=1,
        document="nemo export",
        created=datetime.now(UTC),
        commit=git_commit(Path(__file__).parent),
        machine=describe_machine(),
        nemo_version=nemo.version,
        nemo_exporter=EXPORTER,
        nemo_startup_seconds=nemo.startup_seconds,
        nemotrt_startup_seconds=startup_seconds,
        tensorrt=None if runtime is None else f"{load_api(runtime).title} {load_api(runtime).version}",
        profile=plan.profile.name,
        builds=plan.builds if runtime else 0,
        runs=plan.runs,
        warmup=plan.warmup,
        threads=plan.threads,
        order="interleaved round-robin, first graph rotates",
        checkpoints=tuple(rows),
    )


class _Duel:
    """Both exports of one checkpoint; collects what could not be measured."""

    def __init__(
        self,
        checkpoint: Path,
        plan: NemoExportPlan,
        nemo: InstalledNemo,
        runtime: RuntimeName | None,
        on_step: Callable[[str], None],
    ) -> None:
        self._checkpoint, self._plan, self._nemo, self._runtime = checkpoint, plan, nemo, runtime
        self._on_step = on_step
        self._unmeasured: list[Skipped] = []

    def exports(self, folder: Path) -> CheckpointExports:
        """Measure everything; NeMo's files go to ``folder``."""
        # Once through the file, so that the first exporter does not pay for the disk.
        sha256_of_file(self._checkpoint)
        self._on_step("nemotrt export")
        finished, bundle = export_with_nemotrt(self._checkpoint, folder)
        component: Literal["encoder", "ctc"] = "encoder" if "encoder" in bundle.meta.components else "ctc"
        time_axis = 2 if component == "encoder" else 1
        ours = Encoder(bundle.graph_path(component), bundle.component(component), time_axis)
        cost = _cost(finished, bundle.path)
        nemos, nemo_cost = self._nemo_export(folder, time_axis)
        latency = () if nemos is None else self._latency(ours, nemos, bundle)
        built = self._builds([ours, *([] if nemos is None else [nemos])], bundle)
        meta = bundle.meta
        return CheckpointExports(
            checkpoint=self._checkpoint.name,
            checkpoint_sha256=meta.checkpoint_sha256,
            family=meta.family,
            component=component,
            layers=meta.encoder.layers,
            d_model=meta.encoder.d_model,
            parameters=bundle.component(component).parameters,
            nemotrt=Exported(cost=cost, encoder=_graph(ours, built[0])),
            nemo=Exported(cost=nemo_cost, encoder=None if nemos is None else _graph(nemos, built[1])),
            latency=latency,
            unmeasured=tuple(self._unmeasured),
        )

    def _nemo_export(self, folder: Path, time_axis: int) -> tuple[Encoder | None, ExportCost | None]:
        self._on_step("NeMo's export")
        try:
            finished, files = export_with_nemo(self._nemo, self._checkpoint, folder)
            return Encoder(files.graph, spec_from_graph(files.graph), time_axis), _cost(finished, files.folder)
        except (GraphError, MachineError) as exc:
            self._skip("everything of NeMo's export", exc)
            return None, None

    def _latency(self, ours: Encoder, nemos: Encoder, bundle: Bundle) -> tuple[EncoderLatency, ...]:
        plan = self._plan
        longest = bundle.meta.encoder.max_feature_frames
        shapes = tuple((rows, frames) for rows, frames in plan.shapes if frames <= longest)
        batches = Batches(bundle.meta.encoder.features, shapes, plan.warmup, plan.runs, plan.threads)
        try:
            return race_on_onnxruntime(
                ours, nemos, batches, on_shape=lambda rows, frames: self._on_step(f"ONNX Runtime, {rows} x {frames}")
            )
        except GraphError as exc:
            self._skip("ONNX Runtime", exc)
            return ()

    def _builds(self, encoders: Sequence[Encoder], bundle: Bundle) -> Sequence[Built | None]:
        """One entry an encoder; ``None`` where it was not built."""
        nothing: list[Built | None] = [None] * len(encoders)
        if self._runtime is None:
            reason = "no builds were asked for" if self._plan.builds == 0 else "no TensorRT is installed"
            self._unmeasured.append(Skipped(what="TensorRT", reason=reason))
            return nothing
        self._on_step("TensorRT builds")
        try:
            ranges = axis_ranges(self._plan.profile, bundle.meta.geometry)
            return race_on_tensorrt(encoders, ranges, runtime=self._runtime, builds=self._plan.builds)
        except (InputError, MachineError) as exc:
            self._skip("TensorRT", exc)
            return nothing

    def _skip(self, what: str, error: InputError | MachineError) -> None:
        reason = f"{error.what}: {error.found}" if error.found else error.what
        self._unmeasured.append(Skipped(what=what, reason=reason))


def _cost(finished: Finished, folder: Path) -> ExportCost:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return ExportCost(
        seconds=finished.seconds, peak_rss_bytes=finished.peak_rss_bytes, files=len(sizes), size_bytes=sum(sizes)
    )


def _graph(encoder: Encoder, built: Built | None) -> EncoderGraph:
    files = files_of(encoder.graph)
    return EncoderGraph(
        nodes=count_nodes(encoder.graph),
        files=len(files),
        size_bytes=sum(path.stat().st_size for path in files),
        tensorrt_layers=None if built is None else built.layers,
        tensorrt_build_seconds=None if built is None else built.seconds,
        tensorrt_plan_bytes=None if built is None else built.plan_bytes,
    )


def _progress_of(checkpoint: Path, number: int, count: int, on_progress: Progress) -> Callable[[str], None]:
    return lambda step: on_progress(f"{checkpoint.stem}: {step}", number / count)

"""What is in a path: a bundle, an ONNX file, or an engine of the store.

PATH --> Inspection --> document (``--json``), lines (``inspection_text``), page (``inspection_page``)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemotrt.bundle import META_NAME, BundleMeta, load_bundle
from nemotrt.engines.manifest import EngineManifest
from nemotrt.engines.plan_layers import plan_layers
from nemotrt.engines.store import PLAN_NAME, StoredEngine, read_engine
from nemotrt.errors import EngineError, MachineError, UsageError
from nemotrt.trt.inspection import GraphFacts, inspect_graph


@dataclass(frozen=True)
class EngineFacts:
    """A stored engine. ``layers`` is ``None`` where the library cannot say, ``reason`` is why."""

    manifest: EngineManifest
    layers: tuple[str, ...] | None
    reason: str | None


@dataclass(frozen=True)
class Inspection:
    """The facts of one path: ``bundle`` with a graph for every component, one graph, or ``engine``."""

    path: Path
    bundle: BundleMeta | None
    graphs: dict[str, GraphFacts]
    engine: EngineFacts | None

    def document(self) -> dict[str, Any]:
        """Everything, for ``--json``."""
        document: dict[str, Any] = {"path": str(self.path)}
        if self.bundle is not None:
            document["bundle"] = self.bundle.model_dump(mode="json", exclude={"components"})
        if self.engine is not None:
            manifest = self.engine.manifest.model_dump(mode="json")
            document["engine"] = {
                **manifest,
                "plan_layers": self.engine.layers,
                "plan_layers_why_not": self.engine.reason,
            }
        document["graphs"] = {name: {**asdict(facts), "path": str(facts.path)} for name, facts in self.graphs.items()}
        return document

    def position_limits(self, name: str) -> tuple[int | None, int | None]:
        """The longest input in encoder frames, as the contract says and as the graph of ``name`` says."""
        table = self.graphs[name].positions
        promised = None if self.bundle is None or table is None else self.bundle.encoder.max_encoder_frames
        return promised, None if table is None else table.max_frames


def inspect_path(path: Path) -> Inspection:
    """The facts of a bundle folder, an ONNX file, or an engine: its plan or the folder of it.

    Raises:
        UsageError: it is none of these.
        BundleError, GraphError, EngineError: it is one, and damaged.
    """
    if (path / META_NAME).is_file():
        bundle = load_bundle(path)
        return Inspection(
            path, bundle.meta, {c: inspect_graph(bundle.graph_path(c)) for c in bundle.meta.components}, None
        )
    if path.name == PLAN_NAME or (path / PLAN_NAME).is_file():
        stored = read_engine(path.parent if path.name == PLAN_NAME else path)
        return Inspection(path, None, {}, _engine_facts(stored))
    if path.is_file() and path.suffix == ".onnx":
        return Inspection(path, None, {path.stem: inspect_graph(path)}, None)
    raise UsageError(
        "there is nothing to inspect",
        where=path,
        found="a file of another kind" if path.is_file() else "a folder" if path.is_dir() else "no such file or folder",
        fix=f"give a bundle folder, an .onnx file, or {PLAN_NAME} in an engine store",
    )


def _engine_facts(stored: StoredEngine) -> EngineFacts:
    try:
        return EngineFacts(stored.manifest, plan_layers(stored), None)
    except (MachineError, EngineError) as exc:  # no GPU here, or another one than the plan is for
        return EngineFacts(stored.manifest, None, exc.what)

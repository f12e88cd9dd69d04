"""A GPU that is not there: engines are "run" by ONNX Runtime on the graph that they were built from.

The stand-in keeps to the optimization profiles and wears a GPU's label, so that everything around an engine can
be tried: who opens it, with which clips, what is written into its manifest. What TensorRT computes is for the ``gpu``
tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from nemotrt import pipeline, verbs
from nemotrt.bench import measurement
from nemotrt.bundle import TensorSpec, load_bundle
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.profile_router import ProfileRouter
from nemotrt.engines.runner import Array, Arrays
from nemotrt.engines.store import StoredEngine
from nemotrt.errors import NemotrtError
from nemotrt.tensorrt_api import Gpu, GpuReport

GPU = Gpu("Imaginary 9000", "8.9", 24 << 30)

Spoil = Callable[[str, dict[str, Array]], dict[str, Array]]
"""Component and outputs in, altered outputs out."""


def unspoiled(_component: str, outputs: dict[str, Array]) -> dict[str, Array]:
    return outputs


class StandInRunner:
    """Implements ``Runner`` for an engine in the store of a run folder."""

    def __init__(self, engine: StoredEngine, spoil: Spoil) -> None:
        manifest = engine.manifest
        bundle = load_bundle(engine.path.parents[2] / "bundle-fp16")
        graph, spec = bundle.graph_path(manifest.component), bundle.component(manifest.component)
        self._runner = OnnxRuntimeRunner(graph, spec=spec, threads=1)
        self._router = ProfileRouter(manifest.inputs, manifest.ranges)
        self._component = manifest.component
        self._spoil = spoil
        self.label = f"TensorRT-RTX stand-in, {GPU.name}"
        self.inputs: tuple[TensorSpec, ...] = manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = manifest.outputs
        self.batches: list[int] = []
        self.is_open = True

    def run(self, feeds: Arrays) -> dict[str, Array]:
        self._router.route({name: array.shape for name, array in feeds.items()})
        if self._component in ("encoder", "ctc"):
            self.batches.append(feeds["length"].shape[0])
        return self._spoil(self._component, self._runner.run(feeds))

    def close(self) -> None:
        self.is_open = False
        self._runner.close()


@dataclass
class StandInGpu:
    """Stands in for ``TensorRTRunner`` wherever it is opened. Components in ``broken`` raise when opened."""

    spoil: Spoil = unspoiled
    broken: dict[str, NemotrtError] = field(default_factory=dict)
    opened: list[StandInRunner] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def open(self, engine: StoredEngine) -> StandInRunner:
        if engine.manifest.component in self.broken:
            raise self.broken[engine.manifest.component]
        self.keys.append(engine.key)
        self.opened.append(StandInRunner(engine, self.spoil))
        return self.opened[-1]


def install(monkeypatch: pytest.MonkeyPatch, gpu: StandInGpu) -> None:
    """From here on this machine seems to have the GPU."""
    for module in (measurement, pipeline, verbs):
        monkeypatch.setattr(module, "can_run", lambda: GpuReport((GPU,), "13.0", "1 GPU"))
    for module in (measurement, verbs):
        monkeypatch.setattr(module, "TensorRTRunner", gpu)

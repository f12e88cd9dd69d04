"""What the runtime library says is in a plan: its layers after fusion, with their tactics where the plan keeps them.

A library tells only of a plan that it has deserialized, and that needs the GPU that the plan is for.
"""

from __future__ import annotations

import json
from typing import Any

from nemotrt.engines.plan_check import Host, check_host
from nemotrt.engines.store import StoredEngine, load_plan
from nemotrt.engines.tensorrt_runner import visible_gpu
from nemotrt.errors import MachineError
from nemotrt.tensorrt_api import load_api


def plan_layers(engine: StoredEngine) -> tuple[str, ...]:
    """One line a layer, in the order in which they run: name, and type and tactic where they are known.

    Raises:
        MachineError: no GPU, no such library, or it cannot load the plan.
        EngineError: the plan is not the one that was built, or it is for another GPU or library.
    """
    gpu = visible_gpu(0)
    api = load_api(engine.manifest.runtime)
    check_host(engine.manifest, Host(runtime=api.name, runtime_version=api.version, gpu=gpu))
    with api.captured_log() as log:
        runtime = api.create_runtime()
        plan = runtime.deserialize_cuda_engine(load_plan(engine))
        if plan is None:
            raise MachineError(
                f"{api.title} cannot load the plan",
                where=engine.plan_path,
                found="; ".join(log.errors) or "it gives no reason",
                fix="build the engine again",
            )
        document = plan.create_engine_inspector().get_engine_information(api.module.LayerInformationFormat.JSON)
    return tuple(map(_layer, json.loads(document).get("Layers", [])))


def _layer(layer: Any) -> str:
    """A name alone, unless the plan was built with details."""
    if not isinstance(layer, dict):
        return str(layer)
    known = (layer.get(key) for key in ("Name", "LayerType", "TacticName"))
    return ", ".join(str(value) for value in known if value)

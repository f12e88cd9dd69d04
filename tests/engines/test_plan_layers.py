"""What a library says of a plan that it has loaded; the library is a stand-in, for it needs a GPU."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_samples import PLAN, sample_build

from nemotrt.engines import plan_layers as module
from nemotrt.engines.plan_layers import plan_layers
from nemotrt.engines.store import EngineStore, StoredEngine
from nemotrt.errors import EngineError, MachineError
from nemotrt.tensorrt_api import Gpu, Log


@pytest.fixture
def engine(tmp_path: Path) -> StoredEngine:
    return EngineStore(tmp_path).put(sample_build(), PLAN)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``plan`` is what the library tells of the plan, ``None`` where it cannot load it."""
    told: dict[str, Any] = {"plan": {"Layers": []}}

    @contextmanager
    def captured_log():
        yield Log(errors=["the plan is of another kind"])

    def deserialize(plan: bytes) -> Any:
        assert plan == PLAN
        inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps(told["plan"]))
        return None if told["plan"] is None else SimpleNamespace(create_engine_inspector=lambda: inspector)

    api = SimpleNamespace(
        name="tensorrt-rtx",
        title="TensorRT-RTX",
        version="1.7.1.116",
        module=SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1)),
        captured_log=captured_log,
        create_runtime=lambda: SimpleNamespace(deserialize_cuda_engine=deserialize),
    )
    monkeypatch.setattr(module, "load_api", lambda name: api)
    monkeypatch.setattr(module, "visible_gpu", lambda device: Gpu("Imaginary 9000", told.get("capability", "8.9"), 1))
    return told


def test_layers_are_told_by_name_or_with_what_is_known_of_them(engine: StoredEngine, library: dict[str, Any]) -> None:
    details = {"Name": "conv + relu", "LayerType": "CaskConvolution", "TacticName": "sm89_fast"}
    library["plan"] = {"Layers": ["matmul", details, {"Name": "copy", "LayerType": "Reformat"}]}
    assert plan_layers(engine) == ("matmul", "conv + relu, CaskConvolution, sm89_fast", "copy, Reformat")


def test_a_plan_that_the_library_cannot_load_is_an_error_with_its_reason(
    engine: StoredEngine, library: dict[str, Any]
) -> None:
    library["plan"] = None
    with pytest.raises(MachineError, match="of another kind"):
        plan_layers(engine)


def test_a_plan_for_another_gpu_or_with_other_bytes_is_not_loaded(
    engine: StoredEngine, library: dict[str, Any]
) -> None:
    library["capability"] = "7.5"
    with pytest.raises(EngineError):
        plan_layers(engine)
    library["capability"] = "8.9"
    engine.plan_path.write_bytes(b"x" * len(PLAN))
    with pytest.raises(EngineError, match="not the one that was built"):
        plan_layers(engine)

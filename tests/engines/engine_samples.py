"""Builds and manifests of made-up engines: the store and the runner's checks look at nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from nemotrt.bundle import TensorSpec
from nemotrt.engines.manifest import EngineBuild, EngineManifest, manifest_from_build
from nemotrt.profiles import AxisRange

PLAN = b"a plan, as far as a store is concerned" * 100

SHORT = {"batch": AxisRange(1, 2, 4), "frames": AxisRange(10, 100, 200)}
LONG = {"batch": AxisRange(1, 1, 2), "frames": AxisRange(150, 500, 1000)}

_FACTS: dict[str, Any] = {
    "family": "fastconformer-tdt",
    "component": "encoder",
    "precision": "fp16",
    "graph_files": {"encoder.onnx": "1" * 64, "encoder.onnx.data": "2" * 64},
    "ranges": (SHORT, LONG),
    "runtime": "tensorrt-rtx",
    "runtime_version": "1.7.1.116",
    "compute_capabilities": ("8.6", "8.9"),
    "gpu": None,
    "tf32": False,
    "profile": "demo",
    "inputs": (
        TensorSpec(name="audio_signal", dtype="float32", shape=("batch", 80, "frames")),
        TensorSpec(name="length", dtype="int64", shape=("batch",)),
    ),
    "outputs": (
        TensorSpec(name="encoder_output", dtype="float32", shape=("batch", 64, "encoder_frames")),
        TensorSpec(name="encoded_lengths", dtype="int64", shape=("batch",)),
    ),
    "layers": 625,
    "build_seconds": 0.75,
    "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "warnings": ("µ-law: a weight was rounded to zero",),
    "tools": {"nemotrt": "0.1.0"},
}


def sample_build(**changes: Any) -> EngineBuild:
    """A build; ``changes`` replace its fields."""
    return EngineBuild(**{**_FACTS, **changes})


def sample_manifest(**changes: Any) -> EngineManifest:
    """The manifest of :data:`PLAN`, freshly built."""
    return manifest_from_build(sample_build(**changes), PLAN)

"""Quantized twins of the demo bundles, calibrated on the demo clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemotrt.bundle import Bundle
from nemotrt.engines.audio import Clip, read_clips
from nemotrt.export import ExportOptions, export_checkpoint
from nemotrt.quantize import quantize
from nemotrt.trt.quantization.quantized_bundle import QuantizationOrder

Quantize = Callable[..., Bundle]


@pytest.fixture(scope="session")
def clips(demo_manifest: Path) -> tuple[Clip, ...]:
    return read_clips(demo_manifest)


@pytest.fixture(scope="session")
def quantized(demo_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    """Makes the quantized twin of a bundle: ``quantized(bundle, to="fp8")``. Equal orders are carried out once."""
    made: dict[tuple[Path, QuantizationOrder], Bundle] = {}

    def make(source: Bundle, **order: object) -> Bundle:
        wanted = QuantizationOrder(**order)
        key = (source.path, wanted)
        if key not in made:
            folder = tmp_path_factory.mktemp("quantized") / "bundle"
            audio = None if wanted.weight_only else demo_manifest
            made[key] = quantize(source, folder, wanted, audio=audio, threads=1, on_progress=lambda *_: None)
        return made[key]

    return make


@pytest.fixture(scope="session")
def streaming_bundle(hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = ExportOptions(components=("all",))
    return export_checkpoint(hybrid_checkpoint, tmp_path_factory.mktemp("bundles") / "streaming", options=options)


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of white noise."""
    path = tmp_path_factory.mktemp("noise") / "noise.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32), 16000)
    return path

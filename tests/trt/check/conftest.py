"""What the tests of the rules share: bundles with every component of the demo checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotrt.bundle import Bundle
from nemotrt.export import ExportOptions, export_checkpoint

_ALL = ExportOptions(components=("all",))


@pytest.fixture(scope="session")
def whole_tdt(tdt_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(tdt_checkpoint, tmp_path_factory.mktemp("whole") / "tdt", options=_ALL)


@pytest.fixture(scope="session")
def whole_hybrid(hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(hybrid_checkpoint, tmp_path_factory.mktemp("whole") / "hybrid", options=_ALL)

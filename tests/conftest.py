"""What many tests share: the demo checkpoints, their bundles, and a list of measured figures printed at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nemotrt.bundle import Bundle
from nemotrt.export import export_checkpoint

DEMO = Path(__file__).parent.parent / "examples" / "demo"
_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def tdt_checkpoint() -> Path:
    return DEMO / "parakeet-style-tdt.nemo"


@pytest.fixture(scope="session")
def hybrid_checkpoint() -> Path:
    return DEMO / "fastconformer-hybrid-streaming.nemo"


@pytest.fixture(scope="session")
def demo_manifest() -> Path:
    return DEMO / "manifest.json"


@pytest.fixture(scope="session")
def tdt_bundle(tdt_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(tdt_checkpoint, tmp_path_factory.mktemp("bundles") / "tdt")


@pytest.fixture(scope="session")
def hybrid_bundle(hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(hybrid_checkpoint, tmp_path_factory.mktemp("bundles") / "hybrid")


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with a line that states a measured figure; all of them are printed after the tests."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(_FIGURES, [])
    if figures:
        terminalreporter.section("measured figures")
        for line in figures:
            terminalreporter.line(line)

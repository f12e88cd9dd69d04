"""The wheel: setuptools follows the links, and nothing that the package needs at run time is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parents[2]
FOLDERS = ("bench", "engines", "export", "profiles", "trt")
SUFFIXES = {".py", ".typed", ".yaml", ".j2", ".css"}

USE_EVERYTHING = """
import importlib, pkgutil, sys
from pathlib import Path

import nemotrt
unpacked = Path(sys.argv[1])
for module in pkgutil.walk_packages(nemotrt.__path__, "nemotrt."):
    origin = Path(importlib.import_module(module.name).__file__)
    assert origin.is_relative_to(unpacked), origin

from nemotrt.profiles import load_profile
from nemotrt.profiles.profile import preset_names
print(*(load_profile(name).name for name in preset_names()))

from nemotrt.bench.page_template import page_environment
print(*sorted(page_environment().list_templates()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder appears in the working tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("src", *FOLDERS):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(source / "dist")], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    (built,) = (source / "dist").glob("nemotrt-*.whl")
    return built


def files_inside(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def differences(inside: set[str]) -> set[str]:
    """Files of the package that are not ``inside``, and others that are."""
    package = ROOT / "src" / "nemotrt"
    paths = [*package.glob("*"), *(path for name in FOLDERS for path in (package / name).rglob("*"))]
    return inside ^ {str(path.relative_to(ROOT / "src")) for path in paths if path.suffix in SUFFIXES}


def test_every_module_template_preset_and_the_type_marker_is_inside(wheel: Path) -> None:
    inside = files_inside(wheel)
    assert differences(inside) == set()
    assert {"nemotrt/py.typed", "nemotrt/profiles/presets/demo.yaml", "nemotrt/bench/templates/report.css"} <= inside


def test_every_module_works_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", USE_EVERYTHING, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    presets, templates = done.stdout.splitlines()
    assert presets.split() == sorted(path.stem for path in (ROOT / "profiles" / "presets").glob("*.yaml"))
    assert templates.split() == sorted(path.name for path in (ROOT / "bench" / "templates").iterdir())


def test_a_file_that_is_missing_or_foreign_is_noticed(wheel: Path) -> None:
    template, foreign = "nemotrt/bench/templates/report.html.j2", "trt/build.py"
    assert differences((files_inside(wheel) - {template}) | {foreign}) == {template, foreign}

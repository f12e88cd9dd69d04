"""The layout: folders, links, who imports whom, and what is not imported at all until it is needed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from import_rules import FOLDERS, violations

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "nemotrt"

HEAVY = ("torch", "nemo", "tensorrt", "tensorrt_rtx", "cuda", "executorch")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

class Blocked:
    names = set(sys.argv[1].split(","))
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
import nemotrt
for module in pkgutil.walk_packages(nemotrt.__path__, "nemotrt."):
    importlib.import_module(module.name)
    print(module.name)
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def offending_package(folder: Path, part: str, line: str) -> Path:
    module = folder / part / "offender.py"
    module.parent.mkdir(parents=True)
    module.write_text(f"def late():\n    {line}\n", encoding="utf-8")
    return folder


def test_no_folder_imports_what_lies_above_or_beside_it() -> None:
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("trt", "from nemotrt.export import export_checkpoint"),
        ("trt", "import nemotrt.engines.store"),
        ("trt", "from nemotrt import export"),
        ("trt", "from ..engines.store import EngineStore"),
        ("engines", "from .. import trt"),
        ("engines", "from nemotrt.bench.compare import compare"),
        ("export", "import importlib; importlib.import_module('nemotrt.trt.build')"),
        ("export", "from nemotrt.tensorrt_api import load_api"),
        ("profiles", "from nemotrt.bundle import Bundle"),
        ("bench", "from nemotrt.export import export_checkpoint"),
        ("bench", "from nemotrt.pipeline import run"),
    ],
)
def test_the_import_rule_catches_an_offender_in_any_form(tmp_path: Path, part: str, line: str) -> None:
    (found,) = violations(offending_package(tmp_path, part, line))
    assert found.startswith(f"{part}/offender.py:2: {part} imports ")


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("trt", "from nemotrt.profiles import Profile"),
        ("trt", "from . import build"),
        ("engines", "from nemotrt.tensorrt_api import load_api"),
        ("bench", "from ..engines.audio import Clip"),
        ("export", "from nemotrt import __version__"),
    ],
)
def test_the_import_rule_allows_what_lies_below(tmp_path: Path, part: str, line: str) -> None:
    assert violations(offending_package(tmp_path, part, line)) == []


def test_each_folder_is_linked_into_the_package_by_a_relative_link() -> None:
    links = {entry.name: str(entry.readlink()) for entry in PACKAGE.iterdir() if entry.is_symlink()}
    assert links == {name: f"../../{name}" for name in FOLDERS}
    for name in FOLDERS:
        assert (PACKAGE / name).resolve() == (ROOT / name).resolve()


@pytest.mark.parametrize("folder", [*FOLDERS, "tests", "examples/demo"])
def test_each_folder_says_in_a_readme_what_it_is_for(folder: str) -> None:
    assert len((ROOT / folder / "README.md").read_text(encoding="utf-8")) > 100


def test_every_module_imports_where_no_heavy_library_is_installed() -> None:
    done = run_python("-c", IMPORT_EVERYTHING, ",".join(HEAVY))
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    expected = {module_name(path) for path in package_modules()} - {"nemotrt"}
    assert modules == expected


def test_the_blocked_import_guard_fails_where_a_blocked_library_is_imported() -> None:
    done = run_python("-c", IMPORT_EVERYTHING, "soxr")
    assert done.returncode != 0
    assert "soxr is blocked" in done.stderr


def test_the_command_line_is_loaded_without_the_libraries_that_do_the_work() -> None:
    done = run_python("-c", "import sys, nemotrt.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))")
    loaded = set(done.stdout.split())
    assert "typer" in loaded
    assert loaded.isdisjoint({*HEAVY, "numpy", "onnx", "onnx_ir", "onnxruntime", "pydantic", "soundfile", "jinja2"})


def test_help_answers_in_less_than_half_a_second(figure: Callable[[str], None]) -> None:
    times = []
    for _ in range(6):
        start = time.perf_counter()
        done = run_python("-c", "import sys; sys.argv[0] = 'nemotrt'; from nemotrt.cli import main; main()", "--help")
        times.append(time.perf_counter() - start)
        assert "Usage: nemotrt" in done.stdout
    figure(f"nemotrt --help: {min(times):.2f} s, best of {len(times)}")
    assert min(times) < 0.5


def package_modules() -> list[Path]:
    """Every source file of the package, seen through its links."""
    paths = [*PACKAGE.glob("*.py"), *(path for name in FOLDERS for path in (PACKAGE / name).rglob("*.py"))]
    return [path for path in paths if "__pycache__" not in path.parts]


def module_name(path: Path) -> str:
    parts = ("nemotrt", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

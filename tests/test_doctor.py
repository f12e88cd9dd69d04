"""The diagnosis of this machine, and of machines that have more or less than this one."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from nemotrt import doctor
from nemotrt.doctor import Finding, diagnose
from nemotrt.errors import MachineError
from nemotrt.tensorrt_api import Gpu, GpuReport


def finding(subject: str, folder: Path = Path()) -> Finding:
    (found,) = (one for one in diagnose(folder) if one.subject == subject)
    return found


def gpu_report(*gpus: Gpu) -> GpuReport:
    return GpuReport(gpus, "13.0", "1 GPU")


def test_everything_that_is_missing_comes_with_advice() -> None:
    findings = diagnose(Path.cwd())
    assert len({one.subject for one in findings}) == len(findings)
    for one in findings:
        assert one.found
        assert one.advice or one.state != "no"


def test_the_disk_is_that_of_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    assert finding("disk", tmp_path / "to" / "be" / "made").found.endswith(f"free at {tmp_path}")


def test_a_gpu_is_shown_with_what_decides_how_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA H200", "9.0", 141 * 10**9)
    monkeypatch.setattr(doctor, "can_run", lambda: gpu_report(gpu))
    found = finding("GPU")
    assert (found.state, found.advice) == ("yes", "")
    assert found.found == "NVIDIA H200 (compute capability 9.0, 141 GB); the driver supports CUDA 13.0"


def test_no_gpu_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "can_run", lambda: GpuReport((), None, "no NVIDIA driver is installed"))
    found = finding("GPU")
    assert (found.state, found.found) == ("no", "no NVIDIA driver is installed")
    assert "built here and run elsewhere" in found.advice


def test_an_onnx_runtime_that_does_not_load_is_a_finding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = finding("ONNX Runtime")
    assert found.state == "no"
    assert "install" in found.advice


@pytest.mark.parametrize(("name", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_a_missing_tensorrt_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    def absent(asked: str) -> None:
        raise MachineError(f"{asked} is not installed", fix=f"pip install 'nemotrt[{extra}]'")

    monkeypatch.setattr(doctor, "load_api", absent)
    found = finding("TensorRT" if name == "tensorrt" else "TensorRT-RTX")
    assert found.state == "no"
    assert name in found.found
    assert found.advice == f"pip install 'nemotrt[{extra}]'"


def test_packages_that_are_not_installed_say_what_they_would_be_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", absent)
    for name, purpose in {"nemo_toolkit": "not needed to export", "cuda-bindings": "runs engines"}.items():
        found = finding(name)
        assert found.state == "no"
        assert purpose in found.found
        assert found.advice.startswith("pip install")


def test_nemo_of_another_interpreter_is_imported_there_and_a_failure_is_explained(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (found,) = (one for one in diagnose(tmp_path, nemo_python=python) if one.subject == "nemo_toolkit")
    assert found.state == "no"
    assert found.found.startswith(f"NeMo is not installed ({python}): nemo_toolkit not installed, ")
    assert f"{python} -m pip install 'nemo_toolkit[asr]'" in found.advice


def test_nemo_that_loads_is_shown_with_the_time_it_takes(tmp_path: Path) -> None:
    (tmp_path / "nemo" / "collections" / "asr").mkdir(parents=True)
    (tmp_path / "nemo" / "__init__.py").write_text("__version__ = '9.9'", encoding="utf-8")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (found,) = (one for one in diagnose(tmp_path, nemo_python=python) if one.subject == "nemo_toolkit")
    assert (found.state, found.found) == ("yes", f"9.9: loads in 0 s ({python})")

"""What this machine can do, and what to install for the rest."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import psutil

from nemotrt import __version__
from nemotrt.errors import MachineError
from nemotrt.nemo_interpreter import find_nemo
from nemotrt.tensorrt_api import RuntimeName, can_run, load_api

State = Literal["yes", "no", "info"]


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. ``advice`` says what to install or change, where something is missing."""

    subject: str
    state: State
    found: str
    advice: str = ""


def diagnose(folder: Path, *, nemo_python: Path | None = None) -> tuple[Finding, ...]:
    """Look at this machine; ``folder`` is where outputs would go (its disk is reported). Changes nothing.

    With ``nemo_python`` NeMo is imported by that interpreter, which takes seconds; otherwise its version is looked up.
    """
    return (
        Finding("nemotrt", "info", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        _processor(),
        _disk(folder),
        _gpu(),
        _onnxruntime(),
        _tensorrt("tensorrt-rtx", "builds engines with and without a GPU"),
        _tensorrt("tensorrt", "builds engines for the GPU of this machine"),
        _package("cuda-bindings", "runs engines", "pip install 'nemotrt[rtx]'"),
        _nemo() if nemo_python is None else _nemo_of(nemo_python),
        _package("torch", "needed by NeMo only", "pip install 'nemotrt[nemo]'"),
        _package("polygraphy", "inspects and compares our graphs and engines", "pip install polygraphy"),
    )


def _processor() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    return Finding(
        "processor and memory", "info", f"{cores} cores, {_gb(memory.available)} of {_gb(memory.total)} free"
    )


def _disk(folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return Finding("disk", "info", f"{_gb(usage.free)} of {_gb(usage.total)} free at {folder}")


def _gpu() -> Finding:
    report = can_run()
    if not report:
        advice = "engines can be built here and run elsewhere; to run them, install the NVIDIA driver of a GPU host"
        return Finding("GPU", "no", report.reason, advice)
    gpus = ", ".join(
        f"{gpu.name} (compute capability {gpu.compute_capability}, {_gb(gpu.memory_bytes)})" for gpu in report.gpus
    )
    return Finding("GPU", "yes", f"{gpus}; the driver supports CUDA {report.cuda_version}")


def _onnxruntime() -> Finding:
    try:
        import onnxruntime
    except ImportError as exc:
        return Finding("ONNX Runtime", "no", str(exc), f"{sys.executable} -m pip install --force-reinstall onnxruntime")
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return Finding("ONNX Runtime", "yes", f"{onnxruntime.__version__}: {', '.join(providers)}; used on the CPU")


def _tensorrt(name: RuntimeName, purpose: str) -> Finding:
    subject = "TensorRT-RTX" if name == "tensorrt-rtx" else "TensorRT"
    try:
        api = load_api(name)
    except MachineError as exc:
        return Finding(subject, "no", f"{exc.what} ({purpose})", exc.fix or "")
    return Finding(subject, "yes", f"{api.version}: {purpose}")


def _nemo() -> Finding:
    purpose = "front end nemo and oracle of the parity tests; not needed to export"
    return _package("nemo_toolkit", purpose, "pip install 'nemotrt[nemo]'")


def _nemo_of(python: Path) -> Finding:
    try:
        with TemporaryDirectory() as folder:
            nemo = find_nemo(python, folder=Path(folder))
    except MachineError as exc:
        return Finding("nemo_toolkit", "no", f"{exc.what} ({exc.where}): {exc.found}", exc.fix or "")
    return Finding("nemo_toolkit", "yes", f"{nemo.version}: loads in {nemo.startup_seconds:.0f} s ({nemo.python})")


def _package(name: str, purpose: str, advice: str) -> Finding:
    try:
        return Finding(name, "yes", f"{metadata.version(name)}: {purpose}")
    except metadata.PackageNotFoundError:
        return Finding(name, "no", f"not installed ({purpose})", advice)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.0f} GB"

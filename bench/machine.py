"""The machine and the software that a measurement was made on. What is not there is ``None``, never a guess."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import psutil

from nemotrt.bench.results import Gpu, Machine

PACKAGES = (
    "nemotrt",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "polygraphy",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
    "nemo_toolkit",
    "torch",
)
_QUERY_SECONDS = 10


def describe_machine() -> Machine:
    """This machine, now. Reads /proc, package metadata and, where there is one, ``nvidia-smi``."""
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        memory_bytes=psutil.virtual_memory().total,
        gpu=_gpu(),
        cuda=_cuda_version(),
        packages=package_versions(),
    )


def package_versions() -> dict[str, str]:
    """Versions of those of :data:`PACKAGES` that are installed."""
    return _installed(PACKAGES)


def git_commit(folder: Path) -> str | None:
    """The commit checked out at ``folder``, with ``-dirty`` where tracked files differ; ``None`` outside of git."""
    return _first_line("git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")


def _cpu_name() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _gpu() -> Gpu | None:
    line = _first_line("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")
    fields = [] if line is None else [field.strip() for field in line.rsplit(",", 2)]
    if len(fields) != 3:
        return None
    name, driver, mebibytes = fields
    return Gpu(name=name, driver=driver, memory_bytes=int(mebibytes) * 2**20 if mebibytes.isdigit() else None)


def _cuda_version() -> str | None:
    """The CUDA runtime that wheels of this environment bring, if any."""
    names = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
    return next(iter(_installed(names).values()), None)


def _installed(names: Iterable[str]) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _first_line(*command: str) -> str | None:
    """The first line a program prints; ``None`` where it is missing, fails, hangs or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else None

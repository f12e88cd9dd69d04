"""The interpreter that has NeMo: whether it starts, what it has, and what is wrong with it in one message."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from nemotrt.child_process import Finished, run_measured
from nemotrt.errors import MachineError
from nemotrt.nemo_conflicts import conflict_in

_PROBE_SECONDS = 300.0
_NEMO_PROBE = "import nemo, nemo.collections.asr; open('version.txt', 'w').write(nemo.__version__)"
_VERSIONS_PROBE = """
import json, sys
from importlib import metadata

def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""
_OTHER = "name another interpreter with --nemo-python"
_INSTALL = f"pip install 'nemotrt[nemo]', or {_OTHER}"


@dataclass(frozen=True)
class InstalledNemo:
    """An interpreter that has NeMo. ``startup_seconds`` is what importing it takes."""

    python: Path
    version: str
    startup_seconds: float


def find_nemo(python: Path, *, folder: Path) -> InstalledNemo:
    """Import NeMo with ``python``, in ``folder``.

    Raises:
        MachineError: no such interpreter, or it has no NeMo that loads: then which packages do not fit together.
    """
    done = run_python(python, ["-c", _NEMO_PROBE], folder=folder, timeout_seconds=_PROBE_SECONDS)
    if done.failure is not None:
        raise import_failure(python, done, folder=folder)
    version = folder / "version.txt"
    if not version.is_file():
        raise not_a_python(python, done)
    return InstalledNemo(_absolute(python), version.read_text(encoding="utf-8"), done.seconds)


def run_python(python: Path, arguments: list[str], *, folder: Path, timeout_seconds: float) -> Finished:
    """Run ``python`` to its end, in ``folder``.

    Raises:
        MachineError: there is no such program, or it took longer.
    """
    try:
        return run_measured([str(_absolute(python)), *arguments], folder=folder, timeout_seconds=timeout_seconds)
    except OSError as exc:
        raise MachineError(
            "the interpreter for NeMo does not start", where=_absolute(python), found=exc, fix=_INSTALL
        ) from exc


def not_a_python(python: Path, done: Finished) -> MachineError:
    """The error for a program that ended without having done what it was told."""
    found = done.failure or "it ended and did nothing"
    return MachineError("the interpreter for NeMo is not a Python", where=_absolute(python), found=found, fix=_INSTALL)


def import_failure(python: Path, done: Finished, *, folder: Path) -> MachineError:
    """The error for an import of NeMo that failed: the conflict, the versions that are installed, and what to pin."""
    conflict = conflict_in(done.stderr)
    if conflict is None:
        what, fix = "NeMo is installed but does not load", _INSTALL
        return MachineError(what, where=_absolute(python), found=done.failure, fix=fix)
    versions = _versions(python, conflict.packages, folder=folder)
    found = "".join(f"{name} {version or 'not installed'}, " for name, version in versions.items())
    fix = f"{_absolute(python)} -m pip install {conflict.install}, or {_OTHER}"
    return MachineError(conflict.what, where=_absolute(python), found=f"{found}{done.failure}", fix=fix)


def _versions(python: Path, packages: tuple[str, ...], *, folder: Path) -> dict[str, str | None]:
    """Installed versions by distribution, without importing any; empty where the interpreter cannot say."""
    arguments = ["-c", _VERSIONS_PROBE, *packages]
    done = run_python(python, arguments, folder=folder, timeout_seconds=_PROBE_SECONDS)
    try:
        versions: dict[str, str | None] = json.loads(done.stdout)
    except ValueError:
        return {}
    return versions


def _absolute(python: Path) -> Path:
    return Path(shutil.which(python) or python).absolute()  # not resolved: a virtual environment is a link

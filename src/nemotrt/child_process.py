"""A command in a process of its own: how long it took, and the most memory that it held.

The peak is the kernel's own high-water mark, read every few milliseconds while the process lives: ``wait4`` would
report the larger of the child's peak and that of the process which started it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from nemotrt.errors import MachineError
from nemotrt.processes import how_it_failed, peak_rss_bytes

_LOOK_EVERY_SECONDS = 0.005
_LIST_CHILDREN_EVERY_SECONDS = 0.1  # it reads about every process of the machine


@dataclass(frozen=True)
class Finished:
    """A process that ended. ``seconds`` is wall-clock time from start to end, interpreter and imports included.

    ``peak_rss_bytes`` is of the process with those that it started; ``None`` where it ended before it could be looked
    at. ``stdout`` and ``stderr`` are its last words.
    """

    seconds: float
    peak_rss_bytes: int | None
    exit_code: int
    stdout: str
    stderr: str

    @property
    def failure(self) -> str | None:
        """Why it failed, in a line; ``None`` if it did not."""
        return None if self.exit_code == 0 else how_it_failed(self.exit_code, self.stderr)


def run_measured(command: Sequence[str], *, folder: Path, timeout_seconds: float) -> Finished:
    """Run ``command`` to its end. Its output goes to files in ``folder``, which is its working directory as well.

    Raises:
        OSError: there is no such program.
        MachineError: it took longer, and was ended.
    """
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        try:
            peak = _peak_until_end(process, deadline=start + timeout_seconds)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        seconds = time.perf_counter() - start
    text, errors = (path.read_text(encoding="utf-8", errors="replace") for path in (out, err))
    return Finished(seconds, peak, process.returncode, text, errors)


def _peak_until_end(process: subprocess.Popen[bytes], *, deadline: float) -> int | None:
    peak: int | None = None
    family, listed = [process.pid], time.perf_counter()
    while process.poll() is None:
        now = time.perf_counter()
        if now > deadline:
            raise MachineError("a process takes too long and was ended", found=process.args)
        if now > listed + _LIST_CHILDREN_EVERY_SECONDS:
            family, listed = _with_children(process.pid), now
        held = [peak_rss_bytes(pid) or 0 for pid in family]
        peak = max(peak or 0, sum(held)) or None
        time.sleep(_LOOK_EVERY_SECONDS)
    return peak


def _with_children(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return [pid]

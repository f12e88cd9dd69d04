"""A command in a process of its own: how long it took, and the most memory that it held.

The peak is the kernel's own high-water mark, read every few milliseconds while the process lives: ``wait4`` would
report the larger of the child's peak and that of the process which started it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from nemotrt.errors import MachineError

_LOOK_EVERY_SECONDS = 0.005
_LAST_LINES = 3


@dataclass(frozen=True)
class Finished:
    """A process that ended. ``seconds`` is wall-clock time from start to end, interpreter and imports included.

    ``peak_rss_bytes`` is of the process itself; ``None`` where it ended before it could be looked at.
    ``stdout`` and ``stderr`` are its last words.
    """

    seconds: float
    peak_rss_bytes: int | None
    exit_code: int
    stdout: str
    stderr: str

    @property
    def failure(self) -> str | None:
        """Why it failed, in a line; ``None`` if it did not."""
        if self.exit_code == 0:
            return None
        if self.exit_code < 0:
            name = signal.Signals(-self.exit_code).name
            return f"ended by {name}" + (", as the kernel does when memory runs out" if name == "SIGKILL" else "")
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return f"exit code {self.exit_code}: {' / '.join(lines[-_LAST_LINES:]) or 'it said nothing'}"


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
    while process.poll() is None:
        if time.perf_counter() > deadline:
            raise MachineError("a process takes too long and was ended", found=process.args)
        now = _peak_rss_bytes(process.pid)
        peak = now if peak is None else max(peak, now or 0)
        time.sleep(_LOOK_EVERY_SECONDS)
    return peak


def _peak_rss_bytes(pid: int) -> int | None:
    """Linux keeps the mark (``VmHWM``); elsewhere, what is held now."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None

"""Processes: the memory that one may take, the most that one has held, and how it ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

_MEMBERSHIP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_LAST_LINES = 3


def available_memory_bytes(*, membership: Path = _MEMBERSHIP, groups: Path = _GROUPS) -> int:
    """What a process may still take: of the machine, and of every control group (a container's limit) it is in."""
    return min([psutil.virtual_memory().available, *_left_in_groups(membership, groups)])


def peak_rss_bytes(pid: int) -> int | None:
    """The most that a living process ever held; ``None`` if there is none.

    Linux keeps the mark (``VmHWM``), so a peak between two looks is seen. Elsewhere it is what is held now.
    """
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


def is_running(pid: int) -> bool:
    """Whether a process lives. One that ended and was not waited for does not, though its id is taken."""
    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return status not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def how_it_failed(exit_code: int, stderr: str) -> str:
    """Why a process ended, in a line: a signal, or its exit code and last words."""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"ended by {name}" + (", as the kernel does when memory runs out" if name == "SIGKILL" else "")
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"exit code {exit_code}: {' / '.join(lines[-_LAST_LINES:]) or 'it said nothing'}"


def _left_in_groups(membership: Path, groups: Path) -> Iterator[int]:
    """Version 2 has one tree of groups (``0::/path``), version 1 a tree for memory (``4:memory:/path``)."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _left_on_the_way_up(groups, path, ("memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left_on_the_way_up(groups / "memory", path, names)


def _left_on_the_way_up(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Limit minus usage of a group and those around it. Cached files count as used, but give way."""
    limit_name, usage_name, cache_name = names
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        try:
            limit = int((folder / limit_name).read_text(encoding="utf-8"))
            used = int((folder / usage_name).read_text(encoding="utf-8"))
            statistics = (folder / "memory.stat").read_text(encoding="utf-8").split()
            cache = int(statistics[statistics.index(cache_name) + 1])
        except (OSError, ValueError):  # no such group from inside of a container, or "max": no limit
            continue
        yield max(0, limit - used + cache)

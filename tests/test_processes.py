"""Memory that is left, memory that was held, and how a process ended."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from nemotrt.processes import available_memory_bytes, how_it_failed, peak_rss_bytes

MIB = 1 << 20


def group(folder: Path, names: tuple[str, str, str], *, limit: str, used: int, cache: int) -> None:
    """A control group, as files."""
    limit_name, used_name, cache_name = names
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{cache_name} {cache}\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize(
    ("membership", "tree", "names"),
    [("0::/a/b\n", "", V2), ("5:cpu:/x\n4:memory:/a/b\n0::/\n", "memory", V1)],
    ids=["version 2", "version 1"],
)
def test_the_narrowest_limit_around_a_process_counts(
    tmp_path: Path, membership: str, tree: str, names: tuple[str, str, str]
) -> None:
    (tmp_path / "cgroup").write_text(membership)
    root = tmp_path / "groups" / tree
    group(root / "a" / "b", names, limit="max", used=0, cache=0)
    group(root / "a", names, limit=str(9 * MIB), used=5 * MIB, cache=2 * MIB)
    group(root, names, limit=str(1 << 62), used=0, cache=0)
    assert available_memory_bytes(membership=tmp_path / "cgroup", groups=tmp_path / "groups") == 6 * MIB
    group(root / "a" / "b", names, limit=str(3 * MIB), used=4 * MIB, cache=0)
    assert available_memory_bytes(membership=tmp_path / "cgroup", groups=tmp_path / "groups") == 0


@pytest.mark.parametrize("membership", [None, "", "0::/not/mounted/here\n"])
def test_without_a_limit_the_memory_of_the_machine_counts(tmp_path: Path, membership: str | None) -> None:
    if membership is not None:
        (tmp_path / "cgroup").write_text(membership)
    found = available_memory_bytes(membership=tmp_path / "cgroup", groups=tmp_path / "groups")
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_this_process_may_take_something() -> None:
    assert 0 < available_memory_bytes() <= psutil.virtual_memory().total


def test_a_peak_stays_after_the_memory_is_given_back() -> None:
    content = bytes(64 * MIB)
    del content
    peak = peak_rss_bytes(os.getpid())
    assert peak is not None
    assert peak >= 64 * MIB


def test_a_process_that_is_not_there_has_no_peak() -> None:
    assert peak_rss_bytes(2**22 + 1) is None


@pytest.mark.parametrize(
    ("exit_code", "stderr", "words"),
    [
        (-9, "", "ended by SIGKILL, as the kernel does when memory runs out"),
        (-11, "", "ended by SIGSEGV"),
        (1, "a\n\nb\nc\nd\n", "exit code 1: b / c / d"),
        (7, " \n", "exit code 7: it said nothing"),
    ],
)
def test_how_a_process_failed_is_one_line(exit_code: int, stderr: str, words: str) -> None:
    assert how_it_failed(exit_code, stderr) == words

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nemotrt.bench.machine import describe_machine, git_commit, package_versions


def test_the_machine_is_described_and_names_its_runtime() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.memory_bytes > 0
    assert machine.packages == package_versions()
    assert {"nemotrt", "numpy", "onnxruntime"} <= machine.packages.keys()


def fake_program(folder: Path, name: str, script: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_a_gpu_is_described_in_the_words_of_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program(tmp_path, "nvidia-smi", "echo 'NVIDIA H200, 570.86.15, 143771'")
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu = describe_machine().gpu
    assert gpu is not None
    assert (gpu.name, gpu.driver, gpu.memory_bytes) == ("NVIDIA H200", "570.86.15", 143771 * 2**20)


@pytest.mark.parametrize("script", ["exit 9", "exit 0", "echo; echo", "echo No devices were found"])
def test_a_driver_that_does_not_answer_means_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    fake_program(tmp_path, "nvidia-smi", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_machine().gpu is None


def test_a_commit_is_known_inside_of_git_only(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("a")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == f"{commit}-dirty"

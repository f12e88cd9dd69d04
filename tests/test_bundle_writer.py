"""Writing a bundle: all of it or nothing, whatever happens in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from nemotrt.bundle import META_NAME, Bundle, BundleMeta, FileRecord, load_bundle, verify_digests
from nemotrt.bundle_writer import BundleWriter
from nemotrt.errors import MachineError, UsageError

MetaFromFiles = Callable[[dict[str, FileRecord]], BundleMeta]


def write(source: Bundle, destination: Path, *, overwrite: bool = False, meta: MetaFromFiles | None = None) -> Bundle:
    """A copy of ``source``, through a writer."""
    with BundleWriter(destination, overwrite=overwrite) as writer:
        copy_files(source, writer.folder)
        return writer.publish(meta or (lambda files: with_files(source.meta, files)))


def copy_files(source: Bundle, folder: Path) -> None:
    for name in source.meta.files:
        shutil.copy(source.path / name, folder)


def with_files(meta: BundleMeta, files: dict[str, FileRecord]) -> BundleMeta:
    return meta.model_copy(update={"files": files})


def partial(destination: Path, pid: int) -> Path:
    """What a writer of that process leaves when it dies."""
    folder = destination.parent / f".{destination.name}.{pid}.partial"
    folder.mkdir(parents=True)
    (folder / "encoder.onnx").touch()
    return folder


@pytest.fixture(scope="module")
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_sizes_and_digests_are_those_of_the_files(tdt_bundle: Bundle, tmp_path: Path) -> None:
    bundle = write(tdt_bundle, tmp_path / "b")
    assert bundle.meta == tdt_bundle.meta == load_bundle(tmp_path / "b").meta
    verify_digests(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_nothing_stands_at_the_destination_before_it_is_whole(tdt_bundle: Bundle, tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        copy_files(tdt_bundle, writer.folder)
        assert not (tmp_path / "b").exists()
        assert not (writer.folder / META_NAME).exists()
        writer.publish(lambda files: with_files(tdt_bundle.meta, files))
        assert (tmp_path / "b").is_dir()


def test_a_writer_that_is_left_without_publishing_leaves_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "b") as writer:
        (writer.folder / "encoder.onnx").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_passes_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with BundleWriter(tmp_path / "b") as writer:
            (writer.folder / "encoder.onnx").touch()
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_operating_system_error_becomes_one_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No space left"), BundleWriter(tmp_path / "b"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_cannot_be_made_leaves_nothing(tdt_bundle: Bundle, tmp_path: Path) -> None:
    def broken(_files: dict[str, FileRecord]) -> BundleMeta:
        raise ValueError("no metadata")

    with pytest.raises(ValueError, match="no metadata"):
        write(tdt_bundle, tmp_path / "b", meta=broken)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_appears_meanwhile_is_not_replaced(tdt_bundle: Bundle, tmp_path: Path) -> None:
    def overtaken(files: dict[str, FileRecord]) -> BundleMeta:
        shutil.copytree(tdt_bundle.path, tmp_path / "b")
        (tmp_path / "b" / "mark").touch()
        return with_files(tdt_bundle.meta, files)

    with pytest.raises(UsageError, match="already there"):
        write(tdt_bundle, tmp_path / "b", meta=overtaken)
    assert (tmp_path / "b" / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_replaced_bundle_has_no_file_of_the_old_one(
    tdt_bundle: Bundle, hybrid_bundle: Bundle, tmp_path: Path
) -> None:
    write(hybrid_bundle, tmp_path / "b")
    write(tdt_bundle, tmp_path / "b", overwrite=True)
    verify_digests(load_bundle(tmp_path / "b"))
    assert not (tmp_path / "b" / "ctc.onnx").exists()


@pytest.mark.parametrize("name", ["b", "b[1]", "b*", "b.partial", "b.5", "ü b"])
def test_what_dead_writers_left_is_removed(tdt_bundle: Bundle, tmp_path: Path, dead_pid: int, name: str) -> None:
    partial(tmp_path / name, dead_pid)
    write(tdt_bundle, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_writer_left_that_nobody_waited_for_is_removed(tdt_bundle: Bundle, tmp_path: Path) -> None:
    """A process that ended keeps its id until its parent asks how."""
    writer = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.read()  # it ended, or is about to
    while psutil.Process(writer.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    partial(tmp_path / "b", writer.pid)
    write(tdt_bundle, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    writer.communicate()


def test_what_a_living_writer_has_is_left_alone(tdt_bundle: Bundle, tmp_path: Path) -> None:
    folder = partial(tmp_path / "b", os.getppid())
    write(tdt_bundle, tmp_path / "b")
    assert (folder / "encoder.onnx").exists()


@pytest.mark.parametrize("name", [".b.mine.partial", ".other.1.partial", ".b.partial", "b.1.partial"])
def test_what_no_writer_left_is_left_alone(tdt_bundle: Bundle, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    write(tdt_bundle, tmp_path / "b")
    assert (tmp_path / name).is_dir()

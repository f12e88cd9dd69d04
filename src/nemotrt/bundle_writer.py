"""Write a bundle so that it is either there and complete, or not there.

enter     make  .NAME.<pid>.partial/  beside the destination, remove those of writers that died
publish   hash and fsync every file, write the metadata last, rename the folder to NAME
exit      remove the partial folder, if it was not published
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from nemotrt.bundle import META_NAME, Bundle, BundleMeta, FileRecord, sha256_of_file
from nemotrt.errors import MachineError, NemotrtError, UsageError

_SUFFIX = ".partial"


class BundleWriter:
    """Context manager around a private folder that becomes the bundle at ``destination``.

    Raises:
        UsageError: the destination exists and ``overwrite`` is false, it is something else than a bundle, or it
            lies below a file.
        MachineError: the folder cannot be written (permissions, disk full).
    """

    def __init__(self, destination: Path, *, overwrite: bool = False) -> None:
        self.destination = destination.absolute()
        self.folder = self.destination.parent / f".{self.destination.name}.{os.getpid()}{_SUFFIX}"
        self._overwrite = overwrite

    def __enter__(self) -> Self:
        self._refuse_to_replace_other_things()
        try:
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.destination)
            self.folder.mkdir()
        except OSError as exc:
            raise _cannot_write(self.destination.parent, exc) from exc
        return self

    def publish(self, meta_from_files: Callable[[dict[str, FileRecord]], BundleMeta]) -> Bundle:
        """Seal the folder. ``meta_from_files`` receives size and SHA-256 of every file that was written."""
        try:
            records = {entry.name: _sealed_record(entry) for entry in sorted(self.folder.iterdir())}
            meta = meta_from_files(records)
            meta_path = self.folder / META_NAME
            meta_path.write_text(meta.model_dump_json(indent=1) + "\n", encoding="utf-8")
            _fsync(meta_path)
            self._rename_into_place()
        except OSError as exc:
            raise _cannot_write(self.destination, exc) from exc
        return Bundle(self.destination, meta)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _cannot_write(self.destination, error) from error

    def _rename_into_place(self) -> None:
        self._refuse_to_replace_other_things()
        if not self.destination.exists():
            self.folder.rename(self.destination)
        else:
            old = self.folder.with_name(f"{self.folder.name}.old{_SUFFIX}")
            self.destination.rename(old)
            self.folder.rename(self.destination)
            shutil.rmtree(old)
        _fsync(self.destination.parent)

    def _refuse_to_replace_other_things(self) -> None:
        if not os.path.lexists(self.destination):
            return
        is_bundle = (self.destination / META_NAME).is_file()
        is_empty_folder = self.destination.is_dir() and not any(self.destination.iterdir())
        if is_empty_folder or (is_bundle and self._overwrite):
            return
        raise UsageError(
            "the output is already there" if is_bundle else "the output is something else than a bundle",
            where=self.destination,
            fix="give another output, or --overwrite" if is_bundle else "give another output",
        )


def remove_leftovers(destination: Path) -> None:
    """Remove what killed writers of the bundle at ``destination`` left beside it. Those at work keep theirs."""
    for leftover in destination.parent.glob(f".{glob.escape(destination.name)}.*{_SUFFIX}"):
        pid = leftover.name.removeprefix(f".{destination.name}.").split(".")[0]
        if pid.isdecimal() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            shutil.rmtree(leftover, ignore_errors=True)


def _sealed_record(path: Path) -> FileRecord:
    _fsync(path)
    return FileRecord(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, exc: OSError) -> NemotrtError:
    if isinstance(exc, NotADirectoryError | FileExistsError):
        return UsageError(
            "the output cannot be a folder there",
            where=path,
            found="a file where a folder should be",
            fix="give another output",
        )
    return MachineError(
        "the bundle cannot be written",
        where=path,
        found=exc.strerror or str(exc),
        fix="free disk space or give an output folder that is writable",
    )

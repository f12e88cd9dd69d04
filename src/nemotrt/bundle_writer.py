"""Write a bundle so that it is either there and complete, or not there.

enter     make  .NAME.<pid>.partial/  beside the destination, remove those of writers that died
finish    hash and fsync the files of a component, note it in the folder's journal
publish   hash and fsync every other file, write the metadata last, rename the folder to NAME
exit      remove the partial folder, if it was not published

A writer that is told its work goes on from what one of the same work had finished when it died. Where the machine is
at fault (the disk is full), what was finished stays for the next one; whatever else ends a writer leaves nothing.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from nemotrt.bundle import META_NAME, Bundle, BundleMeta, FileRecord, sha256_of_file
from nemotrt.errors import MachineError, NemotrtError, UsageError
from nemotrt.journal import JOURNAL_NAME, Finished, Work, note_finished, note_work, proven, read_journal
from nemotrt.processes import is_running

_SUFFIX = ".partial"
_MACHINE_FAULTS = (OSError, MachineError, MemoryError)


class BundleWriter:
    """Context manager around a private folder that becomes the bundle at ``destination``.

    Args:
        destination: where the bundle will be.
        overwrite: replace a bundle that is there.
        work: says what decides every byte that will be written; asked only if there is something to go on from.
            Without it every export begins at the beginning.

    Raises:
        UsageError: the destination exists and ``overwrite`` is false, it is something else than a bundle, or it
            lies below a file.
        MachineError: the folder cannot be written (permissions, disk full).
    """

    def __init__(self, destination: Path, *, overwrite: bool = False, work: Callable[[], Work] | None = None) -> None:
        self.destination = destination.absolute()
        self.folder = self.destination.parent / f".{self.destination.name}.{os.getpid()}{_SUFFIX}"
        self.taken_over: Finished = {}
        self._overwrite = overwrite
        self._work = work
        self._sealed: dict[str, FileRecord] = {}

    def __enter__(self) -> Self:
        self._refuse_to_replace_other_things()
        try:
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            claimed = list(_claim_leftovers(self.destination))
        except OSError as exc:
            raise _cannot_write(self.destination.parent, exc) from exc
        for leftover in claimed:
            if not self._goes_on_from(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            self.folder.mkdir(exist_ok=bool(self.taken_over))
        except OSError as exc:
            raise _cannot_write(self.destination.parent, exc) from exc
        return self

    def note_work(self, work: Work) -> None:
        """From here on, what is finished can be taken over by a writer of the same work."""
        note_work(self.folder, work)

    def finish(self, component: str, files: Iterable[str]) -> None:
        """Seal the files of a component that is complete."""
        records = {name: self._sealed.get(name) or _sealed_record(self.folder / name) for name in files}
        note_finished(self.folder, component, records)
        self._sealed.update(records)

    def publish(self, meta_from_files: Callable[[dict[str, FileRecord]], BundleMeta]) -> Bundle:
        """Seal the folder. ``meta_from_files`` receives size and SHA-256 of every file that was written."""
        try:
            names = sorted(entry.name for entry in self.folder.iterdir() if entry.name != JOURNAL_NAME)
            records = {name: self._sealed.get(name) or _sealed_record(self.folder / name) for name in names}
            meta = meta_from_files(records)
            meta_path = self.folder / META_NAME
            meta_path.write_text(meta.model_dump_json(indent=1) + "\n", encoding="utf-8")
            _fsync(meta_path)
            (self.folder / JOURNAL_NAME).unlink(missing_ok=True)
            self._rename_into_place()
        except OSError as exc:
            raise _cannot_write(self.destination, exc) from exc
        remove_leftovers(self.destination)  # of a writer that was still ending when this one began
        return Bundle(self.destination, meta)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, _MACHINE_FAULTS):
            _keep_finished(self.folder)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _cannot_write(self.destination, error) from error

    def _goes_on_from(self, leftover: Path) -> bool:
        """Take over what a writer of the same work had finished, if that is what the folder holds."""
        journal = read_journal(leftover)
        if self.taken_over or self._work is None or journal.work is None or not _is_ours(leftover):
            return False
        if journal.work != self._work():
            return False
        self.taken_over = proven(leftover, journal.finished)
        if self.taken_over:
            self._sealed = {name: record for files in self.taken_over.values() for name, record in files.items()}
            _remove_all_but(leftover, {JOURNAL_NAME, *self._sealed})
            leftover.rename(self.folder)
        return bool(self.taken_over)

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
    for claimed in _claim_leftovers(destination):
        shutil.rmtree(claimed, ignore_errors=True)


def tidy_leftovers(destination: Path) -> None:
    """Keep what killed writers had finished, for the next one to go on from, and remove the rest."""
    for leftover in _leftovers(destination):
        _keep_finished(leftover)


def _leftovers(destination: Path) -> Iterator[Path]:
    """Folders of writers of ``destination`` that are gone, or had the id of this process before it."""
    pattern = re.compile(rf"\.{re.escape(destination.name)}\.(\d+)(\.[a-z]\w*)*\.partial")
    for entry in sorted(destination.parent.glob(f".*{_SUFFIX}")):
        found = pattern.fullmatch(entry.name)
        if found and (int(found[1]) == os.getpid() or not is_running(int(found[1]))):
            yield entry


def _claim_leftovers(destination: Path) -> Iterator[Path]:
    """Leftovers, renamed: of two writers that come for one of them, the first has it and the other does not see it."""
    for leftover in list(_leftovers(destination)):
        name = f".{destination.name}.{os.getpid()}{_SUFFIX}.claimed{secrets.token_hex(4)}{_SUFFIX}"
        try:
            yield leftover.rename(leftover.with_name(name))
        except OSError:
            continue


def _is_ours(folder: Path) -> bool:
    """Nobody else could have put it there."""
    return not folder.is_symlink() and folder.stat().st_uid == os.geteuid()


def _keep_finished(folder: Path) -> None:
    journal = read_journal(folder)
    if journal.work is None or not journal.finished:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _remove_all_but(folder, {JOURNAL_NAME, *(name for files in journal.finished.values() for name in files)})


def _remove_all_but(folder: Path, names: set[str]) -> None:
    for entry in [entry for entry in folder.glob("*") if entry.name not in names]:
        if entry.is_dir() and not entry.is_symlink():  # the graph writer fills its data files in folders of their own
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink()


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

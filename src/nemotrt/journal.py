"""What a writer of a bundle has finished, so that the next one need not do it again.

    .NAME.<pid>.partial/.journal    JSON lines: a component with its files, once they are complete on the disk;
                                    and whose work it is, once the checkpoint's digest is known

Without the line of the work nothing is taken over. A line that was cut short ends the journal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nemotrt.bundle import ExportRecord, FileRecord, Sha256, sha256_of_file

JOURNAL_NAME = ".journal"

Finished = Mapping[str, Mapping[str, FileRecord]]
"""Records of the files of each finished component."""


class Work(BaseModel):
    """What decides every byte of an export."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    checkpoint_sha256: Sha256
    exported: ExportRecord
    tools: dict[str, str]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    work: Work | None = None
    component: str = ""
    files: dict[str, FileRecord] = {}


@dataclass(frozen=True)
class Journal:
    """What stands in the journal of a folder; nothing, where there is none."""

    work: Work | None
    finished: Finished


def read_journal(folder: Path) -> Journal:
    """The journal of ``folder`` as far as it can be read."""
    work: Work | None = None
    finished: dict[str, Mapping[str, FileRecord]] = {}
    try:
        for text in (folder / JOURNAL_NAME).read_bytes().splitlines():
            line = _Line.model_validate_json(text)
            work = line.work or work
            if line.component:
                finished[line.component] = line.files
    except (OSError, ValidationError):
        pass
    return Journal(work, finished)


def note_work(folder: Path, work: Work) -> None:
    """Say whose work the folder holds."""
    _append(folder, _Line(work=work))


def note_finished(folder: Path, component: str, files: Mapping[str, FileRecord]) -> None:
    """Say that a component is complete; its files have to be on the disk already."""
    _append(folder, _Line(component=component, files=dict(files)))


def proven(folder: Path, finished: Finished) -> Finished:
    """The finished components whose files are, to the byte, what the journal says."""
    return {
        component: files
        for component, files in finished.items()
        if all(_is_as_recorded(folder / name, record) for name, record in files.items())
    }


def _is_as_recorded(path: Path, record: FileRecord) -> bool:
    try:
        if path.is_symlink() or path.stat().st_size != record.size_bytes:
            return False
        return sha256_of_file(path) == record.sha256
    except OSError:
        return False


def _append(folder: Path, line: _Line) -> None:
    """One write, so that lines of two threads do not mix."""
    text = line.model_dump_json(exclude_defaults=True) + "\n"
    descriptor = os.open(folder / JOURNAL_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

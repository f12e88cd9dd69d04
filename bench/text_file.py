"""Write a document whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from nemotrt.errors import MachineError, UsageError


def write_whole(text: str, path: Path) -> Path:
    """Make ``path`` a file of ``text`` (UTF-8), its folder too if need be, and return ``path``.

    It is written beside and renamed: readers see the old file or the new one.

    Raises:
        UsageError: ``path`` is a folder, or lies below a file.
        MachineError: it cannot be written (permissions, disk full).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as exc:
        raise UsageError(
            "the output cannot be a file there",
            where=path,
            found="a folder" if path.is_dir() else "a file where a folder should be",
            fix="give another output",
        ) from exc
    except OSError as exc:
        raise MachineError(
            "the file cannot be written",
            where=path,
            found=exc.strerror or str(exc),
            fix="free disk space, or give an output that is writable",
        ) from exc
    return path

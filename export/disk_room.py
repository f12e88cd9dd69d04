"""How much disk there is, and how much a gzipped file will take."""

from __future__ import annotations

import os
import shutil
import struct
from math import ceil
from pathlib import Path
from typing import IO

from nemotrt.errors import MachineError

_LEAST_EXPANSION, _HEADER_BYTES = 0.95, 1024  # what does not compress becomes a little larger by it


def refuse_full_disk(needed_bytes: int, folder: Path, *, what: str, fix: str) -> None:
    """Raise :class:`MachineError` unless the file system of ``folder`` has that much free."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise MachineError(
            f"not enough disk space for {what}",
            where=folder,
            found=f"about {size_text(needed_bytes)} needed, {size_text(free)} free",
            fix=fix,
        )


def inflated_bytes(gzipped: IO[bytes]) -> int:
    """The size inside of a gzip stream, which is left where it was.

    The stream ends with that size modulo 4 GiB. Weights barely compress, so the size of the file tells the rest.
    """
    position = gzipped.tell()
    size = gzipped.seek(0, os.SEEK_END)
    gzipped.seek(-4, os.SEEK_END)
    (remainder,) = struct.unpack("<I", gzipped.read(4))
    gzipped.seek(position)
    wraps = max(0, ceil((_LEAST_EXPANSION * size - _HEADER_BYTES - remainder) / (1 << 32)))
    return int(remainder + (wraps << 32))


def size_text(size_bytes: int) -> str:
    """``12 MiB``; less than that with a digit more."""
    mebibytes = size_bytes / (1 << 20)
    return f"{mebibytes:,.0f} MiB" if mebibytes >= 10 else f"{mebibytes:.1f} MiB"

"""An export in another process, whichever one makes the graphs.

front end native   the whole export in a child of this process (see isolated.py)
front end nemo     NeMo in a process of its interpreter (see nemo_front_end.py), the rest here
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemotrt.bundle import Bundle
from nemotrt.errors import UsageError
from nemotrt.export.isolated import export_isolated
from nemotrt.export.options import ExportOptions, NemoProcess, OnNotice, Progress


@dataclass(frozen=True)
class ProcessOptions:
    """What the processes get; ``None``: as they have it. ``max_memory_gib`` is for the front end native, the others
    for nemo."""

    max_memory_gib: float | None = None
    nemo_python: Path | None = None
    device: Literal["cpu", "cuda"] | None = None

    def refuse_foreign(self, frontend: str) -> None:
        """Raise :class:`UsageError` for an option of the other front end."""
        of_nemo: dict[str, object] = {"--nemo-python": self.nemo_python, "--device": self.device}
        options = {"--max-memory": self.max_memory_gib} if frontend == "nemo" else of_nemo
        given = [name for name, value in options.items() if value is not None]
        if given:
            other = "nemo" if frontend == "native" else "native"
            raise UsageError(
                f"{' and '.join(given)}: only for the front end {other}",
                found=f"--frontend {frontend}",
                fix=f"leave it out, or choose --frontend {other}",
            )


def export_in_process(
    checkpoint: Path,
    destination: Path,
    *,
    options: ExportOptions,
    process: ProcessOptions,
    overwrite: bool,
    smoke_test: bool,
    on_progress: Progress,
    on_notice: OnNotice,
) -> Bundle:
    """The bundle of ``checkpoint``. Raises as ``export_checkpoint``, and :class:`UsageError` for a foreign option."""
    process.refuse_foreign(options.frontend)
    if options.frontend == "nemo":
        from nemotrt.export.export import export_checkpoint  # slow to load

        return export_checkpoint(
            checkpoint,
            destination,
            options=options,
            nemo=NemoProcess(process.nemo_python or Path(sys.executable), process.device or "cpu"),
            overwrite=overwrite,
            smoke_test=smoke_test,
            on_progress=on_progress,
            on_notice=on_notice,
        )
    gib = process.max_memory_gib
    return export_isolated(
        checkpoint,
        destination,
        options=options,
        overwrite=overwrite,
        smoke_test=smoke_test,
        on_progress=on_progress,
        on_notice=on_notice,
        max_memory_bytes=None if gib is None else int(gib * 2**30),
    )

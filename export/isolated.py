"""An export that cannot take this process down: it runs in a child, which is watched and can be ended.

    request -> stdin of child.py -> stdout: stages, notices, the end -> bundle or error, as of ``export_checkpoint``
               too much memory, silence, a crash                     -> ended, with an error that says where it was

The ceiling is on what the child really holds (the kernel's high-water mark), looked at many times a second. A limit of
the address space (``RLIMIT_AS``, ``RLIMIT_DATA``) would also count what libraries only reserve, which depends on the
number of cores, and ends a process in the middle of a library that cannot say why.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, get_args

from nemotrt import errors
from nemotrt.bundle import Bundle, load_bundle
from nemotrt.bundle_writer import remove_leftovers, tidy_leftovers
from nemotrt.errors import MachineError, NemotrtError
from nemotrt.export.disk_room import size_text
from nemotrt.export.options import DEFAULTS, ExportOptions, Needs, Notice, OnNotice, Progress
from nemotrt.processes import how_it_failed, peak_rss_bytes

SILENCE_SECONDS = 300.0
"""The longest step is to bring the largest file to the disk: at 20 MB/s, 6 GB."""

_LOOK_EVERY_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0
_MORE_MEMORY = "export again with more memory (--max-memory GIB)"
_FREE_THE_DISK = "see whether the disks of the checkpoint and the output answer, and export again"
_TRY_AGAIN = "see whether other programs need the memory, and export again"
_BLOCK_BYTES = 1 << 16
_GIBIBYTE = 1 << 30
_CEILING_WHILE_READING = 4 * _GIBIBYTE  # the sizes in the archive are not known yet, what is read of it is limited
_NOTICES = {notice.__name__: notice for notice in get_args(Notice)}


def export_isolated(
    checkpoint: Path,
    destination: Path,
    *,
    options: ExportOptions = DEFAULTS,
    overwrite: bool = False,
    smoke_test: bool = False,
    on_progress: Progress = lambda _: None,
    on_notice: OnNotice = lambda _: None,
    max_memory_bytes: int | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> Bundle:
    """:func:`export_checkpoint` in a child process: the same arguments, bundle and errors.

    ``max_memory_bytes`` is what the child may hold, by default one GiB more than twice what the export is expected to
    take. A child that takes no step for ``silence_seconds`` is ended.

    Raises:
        MachineError: also, if the child takes more memory, hangs, crashes or is killed; with the stage it was in and
            its peak. Finished components stay in a hidden folder beside ``destination``, for the next export.
    """
    request = {
        "checkpoint": str(checkpoint),
        "destination": str(destination),
        "options": asdict(options),
        "overwrite": overwrite,
        "smoke_test": smoke_test,
    }
    ceiling_bytes = _CEILING_WHILE_READING if max_memory_bytes is None else max_memory_bytes
    watch = _Watch(checkpoint, ceiling_bytes, silence_seconds)
    with _tidied(destination), _child(request) as child:
        for kind, fields in _messages(child, watch):
            match kind:
                case "stage":
                    watch.stage = fields["stage"]
                    on_progress(watch.stage)
                case "done":
                    return load_bundle(destination.absolute())
                case "error":
                    raise _same_error(fields)
                case "refused":
                    raise OSError(fields["errno"], fields["strerror"], fields["filename"])
                case "out of memory":
                    raise watch.failure("there was not enough memory for the export", "none was left", fix=_MORE_MEMORY)
                case _:
                    notice = _same_notice(kind, fields)
                    if isinstance(notice, Needs) and max_memory_bytes is None:
                        watch.ceiling_bytes = 2 * notice.memory_bytes + _GIBIBYTE
                    on_notice(notice)
        raise watch.failure("the process of the export ended in the middle", child.how_it_failed(), fix=_TRY_AGAIN)


@dataclass
class _Watch:
    """What is known of the child, and what it may do."""

    checkpoint: Path
    ceiling_bytes: int
    silence_seconds: float
    stage: str = "reading"
    peak_bytes: int = 0
    silent_looks: int = 0

    def look(self, pid: int, *, is_heard: bool) -> None:
        """Raises :class:`MachineError` if the child holds too much or has been silent too long.

        Silence is counted in looks, so that time in which this process was stopped is not the child's.
        """
        self.peak_bytes = max(self.peak_bytes, peak_rss_bytes(pid) or 0)
        self.silent_looks = 0 if is_heard else self.silent_looks + 1
        if self.peak_bytes > self.ceiling_bytes:
            allowed = f"{size_text(self.ceiling_bytes)} allowed"
            raise self.failure("the export took too much memory, and was ended", allowed, fix=_MORE_MEMORY)
        silent_seconds = self.silent_looks * _LOOK_EVERY_SECONDS
        if silent_seconds > self.silence_seconds:
            silent = f"silent for {silent_seconds:.0f} s"
            raise self.failure("the export did not go on, and was ended", silent, fix=_FREE_THE_DISK)

    def failure(self, what: str, found: str, *, fix: str) -> MachineError:
        """With where the child was, and what it held."""
        return MachineError(
            what,
            where=f"{self.checkpoint}: {self.stage}",
            found=f"{found}; it held {size_text(self.peak_bytes)} at most",
            fix=f"{fix}; finished components are taken over",
        )


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]

    def how_it_failed(self) -> str:
        """Once it has ended."""
        exit_code = self.process.wait()
        self.stderr.seek(0)
        return how_it_failed(exit_code, self.stderr.read().decode(errors="replace"))


@contextmanager
def _child(request: Mapping[str, object]) -> Iterator[_Child]:
    """A child that has the request, and is gone on exit. In a process group of its own: Ctrl-C is for this process."""
    command = [sys.executable, "-P", "-m", "nemotrt.export.child"]
    with TemporaryFile() as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, process_group=0
        )
        try:
            _ask(process, request)
            yield _Child(process, stderr)
        finally:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a process that waits for a dead network drive does not end
                process.wait(_PATIENCE_SECONDS)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def _ask(process: subprocess.Popen[bytes], request: Mapping[str, object]) -> None:
    """Stdin stays open: the child lives as long as somebody holds it."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # it ended already: what it told says why
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()


def _messages(child: _Child, watch: _Watch) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the child tells, until it closes its stdout; it is looked at all the time."""
    if child.process.stdout is None:
        return
    begun = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.process.stdout, selectors.EVENT_READ)
        while True:
            is_heard = bool(selector.select(_LOOK_EVERY_SECONDS))
            watch.look(child.process.pid, is_heard=is_heard)
            if is_heard:
                block = os.read(child.process.stdout.fileno(), _BLOCK_BYTES)
                if not block:
                    return
                *lines, begun = (begun + block).split(b"\n")
                for fields in map(json.loads, lines):
                    yield fields.pop("kind"), fields


@contextmanager
def _tidied(destination: Path) -> Iterator[None]:
    """As the child's own writer does on its way out, in case that it had none."""
    try:
        yield
    except (OSError, MachineError):
        tidy_leftovers(destination)
        raise
    except BaseException:
        remove_leftovers(destination)
        raise


def _same_error(fields: Mapping[str, Any]) -> NemotrtError:
    kind: type[NemotrtError] = getattr(errors, fields["error"])
    return kind(fields["what"], where=fields["where"], found=fields["found"], fix=fields["fix"])


def _same_notice(kind: str, fields: Mapping[str, Any]) -> Notice:
    notice: Notice = _NOTICES[kind](**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})
    return notice

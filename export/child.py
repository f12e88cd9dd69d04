"""The export in a process of its own: what ``isolated.py`` starts and listens to.

stdin   one line, the request; then nothing, until the parent is gone, and this process with it
stdout  a line for everything that there is to tell; the last one says how it ended
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

from nemotrt.errors import NemotrtError
from nemotrt.export.encoder_config import ModelChoices
from nemotrt.export.options import ExportOptions

Tell = Callable[[str, Mapping[str, object]], None]


def main() -> None:
    """Do what stands in the first line of stdin."""
    tell = _only_voice()
    request = json.loads(sys.stdin.readline())
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        _export(request, tell)
    except NemotrtError as exc:
        tell("error", exc.as_dict())
    except OSError as exc:
        tell("refused", {"errno": exc.errno, "strerror": exc.strerror, "filename": exc.filename})
    except MemoryError:
        tell("out of memory", {})
    else:
        tell("done", {})


def _export(request: Mapping[str, Any], tell: Tell) -> None:
    from nemotrt.export.export import export_checkpoint  # slow to load: the parent is watched by now

    options = request["options"]
    export_checkpoint(
        Path(request["checkpoint"]),
        Path(request["destination"]),
        options=ExportOptions(
            **options | {"components": tuple(options["components"]), "choices": ModelChoices(**options["choices"])}
        ),
        overwrite=request["overwrite"],
        smoke_test=request["smoke_test"],
        on_progress=lambda stage: tell("stage", {"stage": stage}),
        on_notice=lambda notice: tell(type(notice).__name__, asdict(notice)),
    )


def _only_voice() -> Tell:
    """Write to stdout from now on; what libraries print there goes to stderr."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(kind: str, fields: Mapping[str, object]) -> None:
        stream.write(json.dumps({"kind": kind, **fields}) + "\n")
        stream.flush()

    return tell


def _end_with_parent() -> None:
    """The parent holds the other end of stdin and says nothing more: closed, nobody waits for this export."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()

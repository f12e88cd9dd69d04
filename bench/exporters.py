"""Both exporters as a user starts them: a process that reads a checkpoint and writes ONNX files into a folder.

nemotrt    this interpreter, ``nemotrt export``
NeMo       any interpreter that has NeMo, ``run_nemo_export.py``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemotrt.bench import run_nemo_export
from nemotrt.bundle import Bundle, load_bundle
from nemotrt.child_process import Finished, run_measured
from nemotrt.errors import InputError, MachineError
from nemotrt.nemo_interpreter import InstalledNemo

_TIMEOUT_SECONDS = 3600.0
_PROBE_SECONDS = 300.0
_NEMOTRT = "from nemotrt.cli import main; main()"


@dataclass(frozen=True)
class NemoFiles:
    """What NeMo wrote: every file, and among them the graph of the encoder (of a CTC model: the whole model)."""

    folder: Path
    graph: Path


def nemotrt_startup_seconds(*, folder: Path) -> float:
    """What a process takes that only imports our exporter."""
    command = [sys.executable, "-c", "import nemotrt.cli, nemotrt.export.export"]
    return run_measured(command, folder=folder, timeout_seconds=_PROBE_SECONDS).seconds


def export_with_nemotrt(checkpoint: Path, folder: Path, *, components: Sequence[str] = ()) -> tuple[Finished, Bundle]:
    """Export to ``folder/bundle``: ``components``, or those that are exported unasked.

    Raises:
        InputError: the checkpoint is refused, in the words of ``nemotrt export``.
        MachineError: this machine could not.
    """
    bundle = folder / "bundle"
    named = [word for name in components for word in ("--component", name)]
    request = ["export", str(checkpoint.absolute()), "-o", str(bundle), "--json", *named]
    command = [sys.executable, "-c", _NEMOTRT, *request]
    done = run_measured(command, folder=folder, timeout_seconds=_TIMEOUT_SECONDS)
    if done.failure is not None:
        raise _refusal(done, checkpoint)
    return done, load_bundle(bundle)


def export_with_nemo(nemo: InstalledNemo, checkpoint: Path, folder: Path) -> tuple[Finished, NemoFiles]:
    """Export to ``folder/onnx``.

    Raises:
        MachineError: NeMo did not export it; what was found are its own last words.
    """
    output = folder / "onnx"
    output.mkdir()
    script = Path(run_nemo_export.__file__).resolve()
    command = [str(nemo.python), str(script), str(checkpoint.absolute()), str(output / "model.onnx")]
    done = run_measured(command, folder=folder, timeout_seconds=_TIMEOUT_SECONDS)
    # A transducer becomes encoder-model.onnx and decoder_joint-model.onnx, a CTC model one model.onnx.
    graph = next((path for name in ("encoder-model", "model") if (path := output / f"{name}.onnx").is_file()), None)
    if done.failure is not None or graph is None:
        found = done.failure or f"no encoder among {sorted(path.name for path in output.iterdir())[:5]}"
        raise MachineError("NeMo did not export the checkpoint", where=checkpoint, found=found)
    return done, NemoFiles(output, graph)


def _refusal(done: Finished, checkpoint: Path) -> InputError | MachineError:
    try:
        error = json.loads(done.stdout)
        parts = {key: error[key] for key in ("where", "found", "fix")}
        kind = MachineError if done.exit_code == MachineError.exit_code else InputError
        return kind(error["what"], **parts)
    except (ValueError, KeyError, TypeError):
        return MachineError("nemotrt export ended without a message", where=checkpoint, found=done.failure)

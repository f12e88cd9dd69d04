"""A program: restore a checkpoint with NeMo and export it as NeMo does.

    python run_nemo_export.py MODEL.nemo FOLDER/model.onnx

It runs in the interpreter that has NeMo, which need not have nemotrt, so it imports nothing of nemotrt.
torch >= 2.9 exports through another exporter unless told: the one that NeMo's models are made for is named here.
"""

from __future__ import annotations

import functools
import inspect
import sys
from pathlib import Path

EXPORTER = "torch.onnx.export, dynamo=False"


def main(checkpoint: str, output: str) -> None:
    """Write NeMo's ONNX files; whatever NeMo or torch raises ends the program."""
    # The folder of this file comes first on the path, and its modules have common names.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    import torch
    from nemo.collections.asr.models import ASRModel

    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)
    model = ASRModel.restore_from(checkpoint, map_location="cpu").eval()
    named = {"use_dynamo": False} if "use_dynamo" in inspect.signature(model.export).parameters else {}
    model.export(output, **named)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""``.nemo`` checkpoints to ONNX bundles. No TensorRT and no torch here."""

from typing import TYPE_CHECKING

from nemotrt.export.encoder_config import ModelChoices
from nemotrt.export.isolated import export_isolated
from nemotrt.export.options import ExportOptions, NemoProcess

if TYPE_CHECKING:
    from nemotrt.export.export import export_checkpoint

__all__ = ["ExportOptions", "ModelChoices", "NemoProcess", "export_checkpoint", "export_isolated"]


def __getattr__(name: str) -> object:
    """``export_checkpoint`` loads what writes graphs when it is asked for: exporting in a child does without."""
    if name == "export_checkpoint":
        from nemotrt.export.export import export_checkpoint

        return export_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

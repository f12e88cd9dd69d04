"""``.nemo`` checkpoints to ONNX bundles. No TensorRT and no torch here."""

from nemotrt.export.encoder_config import ModelChoices
from nemotrt.export.export import ExportOptions, export_checkpoint

__all__ = ["ExportOptions", "ModelChoices", "export_checkpoint"]

"""``.nemo`` checkpoints to ONNX bundles. No TensorRT and no torch here."""

from nemotrt.export.export import ExportOptions, export_checkpoint

__all__ = ["ExportOptions", "export_checkpoint"]

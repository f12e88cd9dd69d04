"""``.nemo`` checkpoints to ONNX bundles. No TensorRT and no torch here."""

from nemotrt.export.export import export_checkpoint

__all__ = ["export_checkpoint"]

"""A bundle as the model folder of another client: its file names, tensors and metadata, the same weights."""

from nemotrt.export.clients.onnx_asr import write_onnx_asr_layout
from nemotrt.export.clients.sherpa_onnx import write_sherpa_onnx_layout

__all__ = ["write_onnx_asr_layout", "write_sherpa_onnx_layout"]

"""Passes that turn somebody else's ONNX graph into a lean one, each change proved in ONNX Runtime."""

from nemotrt.trt.surgery.fix import FixReport, fix_bundle, fix_graph
from nemotrt.trt.surgery.pass_list import PASSES, chosen_passes

__all__ = ["PASSES", "FixReport", "chosen_passes", "fix_bundle", "fix_graph"]

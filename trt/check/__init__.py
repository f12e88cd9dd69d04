"""Static inspection of ONNX graphs: rules look at a file and its contract, and say what is wrong and how to fix it.

    path, contract --> Subject (read once) --> every Rule --> Finding ...  worst first

The rules are listed in the README of this folder. Nothing is built or changed, and weights are read one at a time.
What TensorRT's parser and Polygraphy say of a graph comes from processes of their own.
"""

from nemotrt.trt.check.check import check_bundle, check_graph_file
from nemotrt.trt.check.finding import Finding, Severity
from nemotrt.trt.check.registry import RULES, chosen_rules
from nemotrt.trt.check.rule import Rule

__all__ = ["RULES", "Finding", "Rule", "Severity", "check_bundle", "check_graph_file", "chosen_rules"]

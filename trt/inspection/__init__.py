"""What is in an ONNX graph: counted and weighed, never run."""

from nemotrt.trt.inspection.graph_facts import GraphFacts, inspect_graph

__all__ = ["GraphFacts", "inspect_graph"]

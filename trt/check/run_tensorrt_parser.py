"""A program: ask TensorRT's ONNX parser about graphs, one line of JSON for each.

python -m nemotrt.trt.check.run_tensorrt_parser ANSWERS.jsonl RUNTIME GRAPH.onnx ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from nemotrt.tensorrt_api import RuntimeName, TensorRTApi, load_api


def main(answers: str, runtime: RuntimeName, *graphs: str) -> None:
    """Append the remarks of each graph to ``answers``, before the next one is looked at."""
    api = load_api(runtime)
    with Path(answers).open("a", encoding="utf-8") as lines:
        for graph in graphs:
            lines.write(json.dumps(list(_remarks(api, Path(graph)))) + "\n")
            lines.flush()


def _remarks(api: TensorRTApi, graph: Path) -> Iterator[dict[str, object]]:
    builder = api.create_builder()
    network = api.create_network(builder)  # the parser does not keep it alive
    parser = api.create_parser(network)
    if parser.supports_model_v2(graph.read_bytes(), str(graph)):
        return
    names = [node.name or node.op_type for node in onnx.load(str(graph), load_external_data=False).graph.node]
    for error in map(parser.get_error, range(parser.num_errors)):
        yield {"level": "error", "what": _text(error), "nodes": _node(error, names)}
    if not parser.num_errors:
        refused = [i for i in range(parser.num_subgraphs) if not parser.is_subgraph_supported(i)]
        nodes = [names[node] for i in refused for node in parser.get_subgraph_nodes(i)]
        yield {"level": "error", "what": "the parser gives no reason", "nodes": nodes}


def _text(error: Any) -> str:
    """Its description may be no more than the condition that failed, so the operator is named too."""
    where = f" {error.node_operator()}" if error.node_operator() else ""
    return f"{error.code().name}{where}: {' '.join(str(error.desc()).split())}"


def _node(error: Any, names: list[str]) -> list[str]:
    """The node by name; the parser counts from 0, and says -1 of the graph as a whole."""
    if error.node_name():
        return [str(error.node_name())]
    return [names[error.node()]] if 0 <= error.node() < len(names) else []


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]  # the runtime is what the parent chose

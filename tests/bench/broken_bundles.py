"""Copies of a bundle with something planted in them, published as properly as the original."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from nemotrt.bundle import META_NAME, Bundle, load_bundle, sha256_of_file


def with_weight(
    bundle: Bundle, folder: Path, component: str, weight: str, alter: Callable[[np.ndarray], np.ndarray]
) -> Bundle:
    """``alter`` gets a copy of the weight."""
    spec = bundle.component(component)
    tensor = ir.load(bundle.graph_path(component)).graph.initializers[weight].const_value
    assert tensor is not None
    altered = alter(tensor.numpy().copy())
    if not isinstance(tensor, ir.ExternalTensor):
        return with_graph(bundle, folder, component, lambda graph: _replace(graph, weight, altered))
    shutil.copytree(bundle.path, folder)
    with (folder / str(spec.data)).open("r+b") as stream:
        stream.seek(tensor.offset or 0)
        stream.write(np.ascontiguousarray(altered).tobytes())
    return _published(folder)


def with_graph(bundle: Bundle, folder: Path, component: str, alter: Callable[[onnx.GraphProto], None]) -> Bundle:
    """``alter`` changes the graph in place; its weights stay where they are."""
    shutil.copytree(bundle.path, folder)
    path = folder / bundle.component(component).graph
    model = onnx.load(path, load_external_data=False)
    alter(model.graph)
    path.write_bytes(model.SerializeToString())
    return _published(folder)


def with_meta(bundle: Bundle, folder: Path, alter: Callable[[dict[str, Any]], None]) -> Bundle:
    """``alter`` changes the metadata in place."""
    shutil.copytree(bundle.path, folder)
    meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
    alter(meta)
    (folder / META_NAME).write_text(json.dumps(meta), encoding="utf-8")
    return load_bundle(folder)


def node_of(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    """The node called ``name``."""
    (node,) = (node for node in graph.node if node.name == name)
    return node


def _replace(graph: onnx.GraphProto, weight: str, array: np.ndarray) -> None:
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == weight)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, weight))


def _published(folder: Path) -> Bundle:
    meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
    for name in meta["files"]:
        path = folder / name
        meta["files"][name] = {"size_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (folder / META_NAME).write_text(json.dumps(meta), encoding="utf-8")
    return load_bundle(folder)

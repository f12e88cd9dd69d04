"""A graph of two products, small enough to compute by hand, as a model and as a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nemotrt.bundle import ComponentSpec, TensorSpec

WIDTH, HIDDEN = 64, 96
Weights = dict[str, NDArray[np.float32]]


def uneven_weights(seed: int = 0) -> Weights:
    """Matrices whose columns differ in size a thousandfold, as those of trained models do to a lesser degree."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((WIDTH, HIDDEN)) * np.geomspace(0.01, 10, HIDDEN)
    second = rng.standard_normal((HIDDEN, WIDTH)) * np.geomspace(10, 0.01, WIDTH)
    return {"up.weight": first.astype(np.float32), "down.weight": second.astype(np.float32)}


def two_products(weights: Weights, *, opset: int = 19) -> onnx.ModelProto:
    """``tanh(x @ up) @ down``, x [B,WIDTH]. onnx's reference evaluator knows DequantizeLinear from opset 19 on."""
    nodes = [
        helper.make_node("MatMul", ["x", "up.weight"], ["hidden"], name="block.up.MatMul"),
        helper.make_node("Tanh", ["hidden"], ["squashed"], name="block.Tanh"),
        helper.make_node("MatMul", ["squashed", "down.weight"], ["y"], name="block.down.MatMul"),
    ]
    sides = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", WIDTH])] for name in "xy"]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "two", *sides, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def chain_of_products(folder: Path, *, count: int, side: int) -> ComponentSpec:
    """``x @ w0 @ w1 ...``, weights in one external file, as component ``joint``."""
    names = ["x", *(f"v{index + 1}" for index in range(count))]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"product{i}") for i in range(count)]
    weights = [numpy_helper.from_array(np.full((side, side), i + 1, np.float32), f"w{i}") for i in range(count)]
    sides = [[helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", side])] for n in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "chain", *sides, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    spec = ComponentSpec(
        graph="joint.onnx",
        data="joint.onnx.data",
        inputs=(TensorSpec(name=names[0], dtype="float32", shape=("batch", side)),),
        outputs=(TensorSpec(name=names[-1], dtype="float32", shape=("batch", side)),),
        parameters=count * side * side,
    )
    onnx.save(model, folder / spec.graph, save_as_external_data=True, location=spec.data, size_threshold=256)
    return spec


def in_memory(weights: Weights, *, opset: int = 19) -> ir.Model:
    return ir.from_proto(two_products(weights, opset=opset))


def on_disk(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    return path


def rows(count: int = 200) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, WIDTH)).astype(np.float32)

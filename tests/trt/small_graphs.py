"""Small ONNX graphs with the shape of the real components, and their contracts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nemotrt.bundle import ComponentSpec, TensorSpec

OPSET = 18
WIDTH = 8
HEADS = 2

AUDIO = TensorSpec(name="audio_signal", dtype="float32", shape=("batch", WIDTH, "frames"))
LENGTH = TensorSpec(name="length", dtype="int64", shape=("batch",))
ENCODED = TensorSpec(name="encoder_output", dtype="float32", shape=("batch", WIDTH, "encoder_frames"))
ENCODED_LENGTHS = TensorSpec(name="encoded_lengths", dtype="int64", shape=("batch",))


def component(
    name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, data: bool = False
) -> ComponentSpec:
    return ComponentSpec(
        graph=f"{name}.onnx",
        data=f"{name}.onnx.data" if data else None,
        inputs=inputs,
        outputs=outputs,
        parameters=0,
    )


ENCODER = component("encoder", (AUDIO, LENGTH), (ENCODED, ENCODED_LENGTHS), data=True)


def saved(
    folder: Path,
    spec: ComponentSpec,
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray],
    *,
    opset: int = OPSET,
) -> Path:
    """Write the graph where ``spec`` says, weights in one external file if it has one."""
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    values = [
        [helper.make_tensor_value_info(s.name, kinds[s.dtype], s.shape) for s in side]
        for side in (spec.inputs, spec.outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", values[0], values[1], initializers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    path = folder / spec.graph
    if spec.data is None:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=spec.data, size_threshold=256)
    return path


class Nodes(list[onnx.NodeProto]):
    """A graph under construction: ``add`` returns the name of the node's only output."""

    def add(self, op_type: str, *inputs: str, out: str | None = None, **attributes: object) -> str:
        out = out or f"v{len(self)}"
        self.append(helper.make_node(op_type, list(inputs), [out], name=f"{op_type}_{out}", **attributes))
        return out


def encoder(folder: Path, *, seed: int = 0) -> Path:
    """A Conformer-like block with everything that half precision can break.

    Subsampling by 2, masks and lengths in integers, layer norm, masked attention, and a depthwise convolution
    between masks.
    """
    draw = np.random.default_rng(seed).standard_normal
    weights: dict[str, NDArray] = {
        "one": np.array(1, np.int64),
        "two": np.array(2, np.int64),
        "three": np.array([3], np.int64),
        "axis_0": np.array([0], np.int64),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "zero": np.array(0, np.int64),
        "masked": np.array(-10000, np.float32),
        "nothing": np.array(0, np.float32),
        "scale": np.array(0.5, np.float32),
        "heads": np.array([0, 0, HEADS, WIDTH // HEADS], np.int64),
        "merged": np.array([0, 0, WIDTH], np.int64),
        "norm.weight": 1 + 0.1 * draw(WIDTH).astype(np.float32),
        "norm.bias": 0.1 * draw(WIDTH).astype(np.float32),
        "subsampling.weight": 0.3 * draw((WIDTH, WIDTH, 3)).astype(np.float32),
        "subsampling.bias": 0.1 * draw(WIDTH).astype(np.float32),
        "depthwise.weight": 0.5 * draw((WIDTH, 1, 5)).astype(np.float32),
        "qkv.weight": 0.4 * draw((WIDTH, 3 * WIDTH)).astype(np.float32),
        "qkv.bias": 0.1 * draw(3 * WIDTH).astype(np.float32),
        "out.weight": 0.4 * draw((WIDTH, WIDTH)).astype(np.float32),
    }
    g = Nodes()
    # lengths and mask, integers throughout
    lengths = g.add("Div", g.add("Add", "length", "one"), "two", out="encoded_lengths")
    conv = g.add(
        "Conv",
        "audio_signal",
        "subsampling.weight",
        "subsampling.bias",
        strides=[2],
        pads=[1, 1],
        kernel_shape=[3],
    )
    frames = g.add("Gather", g.add("Shape", conv), "two", axis=0)
    positions = g.add("Range", "zero", frames, "one")
    inside = g.add("Less", positions, g.add("Unsqueeze", lengths, "axis_1"))  # [B, T] bool
    x = g.add("Transpose", g.add("Relu", conv), perm=[0, 2, 1])
    # attention
    normed = g.add("LayerNormalization", x, "norm.weight", "norm.bias", axis=-1)
    qkv = g.add("Add", g.add("MatMul", normed, "qkv.weight"), "qkv.bias")
    g.append(helper.make_node("Split", [qkv], ["q", "k", "v"], name="split", axis=-1, num_outputs=3))
    query = g.add("Transpose", g.add("Reshape", "q", "heads"), perm=[0, 2, 1, 3])
    key = g.add("Transpose", g.add("Reshape", "k", "heads"), perm=[0, 2, 3, 1])
    value = g.add("Transpose", g.add("Reshape", "v", "heads"), perm=[0, 2, 1, 3])
    scores = g.add("Mul", g.add("MatMul", query, key), "scale")
    key_mask = g.add("Unsqueeze", g.add("Unsqueeze", inside, "axis_1"), "axis_1")
    attention = g.add("Softmax", g.add("Where", key_mask, scores, "masked"), axis=-1)
    attention = g.add("Where", key_mask, attention, "nothing")
    context = g.add("Transpose", g.add("MatMul", attention, value), perm=[0, 2, 1, 3])
    x = g.add("Add", x, g.add("MatMul", g.add("Reshape", context, "merged"), "out.weight"))
    # convolution between masks
    row_mask = g.add("Unsqueeze", inside, "axis_1")
    y = g.add("Where", row_mask, g.add("Transpose", x, perm=[0, 2, 1]), "nothing")
    y = g.add("Conv", y, "depthwise.weight", group=WIDTH, pads=[2, 2], kernel_shape=[5])
    y = g.add("Mul", y, g.add("Sigmoid", y))
    g.add("Mul", y, g.add("Cast", row_mask, to=TensorProto.FLOAT), out="encoder_output")
    used = {name for node in g for name in node.input}
    return saved(folder, ENCODER, list(g), {name: w for name, w in weights.items() if name in used})

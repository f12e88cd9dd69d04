"""A typed graph to one that computes in float32 and stores in half: what half precision costs, seen on any CPU.

node -> half        becomes        node -> float32 -> Cast to half -> Cast to float32

ONNX Runtime's CPU runs a float16 graph mostly in float32, without rounding between operators, and a bfloat16 graph not
at all. It does obey these Casts: every value that the typed graph would store in half is rounded to it, and is infinite
where half precision ends. What is not seen is the inside of an operator: a sum that only a half accumulator overflows.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nemotrt.trt.half_types import BFLOAT16, FLOAT16, release

_HALF = (FLOAT16, BFLOAT16)


def round_stored_values(model: ir.Model) -> None:
    """Rewrite a typed ``model`` in place. Weights are converted when it is saved, one at a time."""
    graph = model.graph
    for weight in graph.initializers.values():
        if weight.dtype in _HALF and weight.const_value is not None:
            weight.const_value = _in_float32(weight.const_value)
            weight.dtype = ir.DataType.FLOAT
    for node in list(graph):
        for value in node.outputs:
            if value.dtype in _HALF:
                _store(graph, value, value.dtype)
        if node.op_type == "Cast" and node.outputs[0].dtype == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)


def _store(graph: ir.Graph, value: ir.Value, half: ir.DataType) -> None:
    producer, readers = value.producer(), tuple(value.uses())
    if producer is None:
        return
    stored = ir.node("Cast", [value], {"to": half}, name=f"{value.name}.stored")
    read = ir.node("Cast", [stored.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{value.name}.read")
    for cast, dtype in ((stored, half), (read, ir.DataType.FLOAT)):
        result = cast.outputs[0]
        result.name, result.dtype, result.shape = cast.name, dtype, value.shape
    value.dtype = ir.DataType.FLOAT
    graph.insert_after(producer, [stored, read])
    for node, index in readers:
        node.replace_input_with(index, read.outputs[0])


def _in_float32(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def converted() -> ir.TensorProtocol:
        array = tensor.numpy().astype(np.float32)
        release(tensor)
        return ir.Tensor(array, name=tensor.name)

    return ir.LazyTensor(converted, ir.DataType.FLOAT, ir.Shape(tensor.shape.numpy()), name=tensor.name)

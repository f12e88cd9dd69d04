"""What a graph costs as an engine: layers of its network, seconds to build, bytes of the plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from nemotrt.bundle import ComponentSpec, DType, TensorSpec
from nemotrt.profiles import AxisRange
from nemotrt.tensorrt_api import RuntimeName
from nemotrt.trt.build import BuildRequest, build_engine

ROWS, FRAMES = AxisRange(1, 1, 4), AxisRange(9, 500, 1000)
"""The optimization profile: rows of a batch, and every other open axis."""

_DTYPES: dict[ir.DataType, DType] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.BOOL: "bool",
}


@dataclass(frozen=True)
class EngineCost:
    """One build."""

    layers: int
    seconds: float
    plan_bytes: int


def engine_cost(graph: Path, *, runtime: RuntimeName) -> EngineCost:
    """Build the graph once.

    Raises:
        GraphError, MachineError: it cannot be built.
    """
    model = ir.load(graph)
    inputs, outputs = (tuple(map(_spec, values)) for values in (model.graph.inputs, model.graph.outputs))
    component = ComponentSpec(graph=graph.name, data=None, inputs=inputs, outputs=outputs, parameters=0)
    rows = {spec.shape[0] for spec in inputs if spec.shape}
    axes = {axis for spec in inputs for axis in spec.shape if isinstance(axis, str)}
    ranges = {axis: ROWS if axis in rows else FRAMES for axis in axes}
    result = build_engine(BuildRequest(graph, component, (ranges,), runtime))
    return EngineCost(result.layers, result.seconds, result.size_bytes)


def _spec(value: ir.Value) -> TensorSpec:
    axes = enumerate(value.shape or ())
    shape = tuple(axis if isinstance(axis, int) else axis.value or f"{value.name}.{place}" for place, axis in axes)
    return TensorSpec(name=str(value.name), dtype=_DTYPES[value.dtype or ir.DataType.FLOAT], shape=shape)

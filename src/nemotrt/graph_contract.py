"""Is this file the component that its contract describes? Asked before it is published, and before TensorRT sees it.

TensorRT takes a file that is not ONNX for an empty network, and an opset that it has never heard of for the
newest that it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types
from onnx import TypeProto, ValueInfoProto, helper

from nemotrt.bundle import ComponentSpec, TensorSpec
from nemotrt.errors import GraphError


def check_graph(graph: Path, component: ComponentSpec) -> None:
    """Return if the ONNX file is valid and has the inputs and outputs of ``component``.

    Weights are not read, their files have to be there.

    Raises:
        GraphError: not an ONNX file, of a newer opset than the installed onnx knows, invalid, without its
            weights, or with inputs or outputs that the contract does not describe.
    """
    model = read_without_weights(graph)
    _refuse_newer_opset(model, graph)
    try:
        onnx.checker.check_model(str(graph))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise GraphError(
            "the ONNX graph is not valid",
            where=graph,
            found=" ".join(str(exc).split()),
            fix="make the bundle again",
        ) from exc
    _compare(graph, "input", component.inputs, model.graph.input)
    _compare(graph, "output", component.outputs, model.graph.output)


def read_without_weights(graph: Path) -> onnx.ModelProto:
    """The graph; weights in other files are not read.

    Raises:
        GraphError: this is not an ONNX file.
    """
    try:
        model = onnx.load(str(graph), load_external_data=False)
    except (OSError, DecodeError, ValueError) as exc:
        raise GraphError("this is not an ONNX file", where=graph, found=str(exc), fix="make the bundle again") from exc
    if not model.graph.output:
        raise GraphError(
            "this is not an ONNX file",
            where=graph,
            found="a graph without outputs",
            fix="make the bundle again",
        )
    return model


def _refuse_newer_opset(model: onnx.ModelProto, graph: Path) -> None:
    known = onnx.defs.onnx_opset_version()
    used = max((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), default=0)
    if used > known:
        raise GraphError(
            "the graph uses a newer ONNX opset than this installation knows",
            where=graph,
            found=f"opset {used}, onnx {onnx.__version__} knows {known}",
            fix="install a newer onnx, or export with an older opset",
        )


def _compare(graph: Path, kind: str, wanted: tuple[TensorSpec, ...], found: Iterable[ValueInfoProto]) -> None:
    problems = [problem for _, problem in interface_problems(wanted, found)]
    if problems:
        raise GraphError(
            f"an {kind} of the graph is not what the bundle's metadata says",
            where=graph,
            found="; ".join(problems),
            fix="make the bundle again",
        )


def interface_problems(wanted: tuple[TensorSpec, ...], found: Iterable[ValueInfoProto]) -> Iterator[tuple[str, str]]:
    """Tensors whose name, type or shape is not the contract's, each with what it is instead.

    An axis of unknown size in the file fits any axis name of the contract.
    """
    there = {value.name: value.type for value in found}
    for name in there:
        if name not in {spec.name for spec in wanted}:
            yield name, f"{name} is not in the contract"
    for spec in wanted:
        if spec.name not in there:
            yield spec.name, f"{spec.name} is missing"
        elif not _fits(spec, there[spec.name]):
            yield spec.name, f"{spec.name} is {_text(there[spec.name])}, not {spec.dtype}{list(spec.shape)}"


def _fits(spec: TensorSpec, value: TypeProto) -> bool:
    axes = _axes(value)
    return (
        _dtype(value) == spec.dtype
        and len(axes) == len(spec.shape)
        and all(axis in (wanted, None) for axis, wanted in zip(axes, spec.shape, strict=True))
    )


def _text(value: TypeProto) -> str:
    return f"{_dtype(value)}[{', '.join('?' if axis is None else str(axis) for axis in _axes(value))}]"


def _dtype(value: TypeProto) -> str:
    try:
        return str(helper.tensor_dtype_to_np_dtype(value.tensor_type.elem_type).name)
    except KeyError:
        return "no known type"


def _axes(value: TypeProto) -> list[int | str | None]:
    dimensions = value.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in dimensions]

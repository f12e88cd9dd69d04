"""Is what was written the model? Asked of the files, before they are published; weights are not read.

folder, contract -> each graph is valid ONNX and has the contract's inputs and outputs
                 -> its weights tile the data file: nothing outside of it, nothing left over, none missing
                 -> a streaming encoder has its caches
                 -> no file belongs to nobody
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo

from nemotrt.bundle import BATCH, ComponentName, ComponentSpec, EncoderSpec, StreamingSpec
from nemotrt.errors import BundleError
from nemotrt.export.streaming import cache_shapes
from nemotrt.graph_contract import check_graph
from nemotrt.journal import JOURNAL_NAME

_PAGE_BYTES = 1 << 16  # data may be aligned to this
_FIX = "export the checkpoint again; if this happens again, the disk or this version of nemotrt is at fault"


def verify_files(folder: Path, components: Mapping[ComponentName, ComponentSpec], *, texts: Iterable[str] = ()) -> None:
    """Return if ``folder`` holds exactly ``components`` and the files ``texts``, and each graph is what its spec says.

    Raises:
        GraphError: a graph that is not ONNX, not valid, without its data, or of other inputs or outputs.
        BundleError: data that the graph's weights do not fill exactly, fewer weights than parameters, or a file
            of nobody.
    """
    for spec in components.values():
        graph = folder / spec.graph
        check_graph(graph, spec)
        _check_weights(graph, spec)
    expected = {*texts, *(name for spec in components.values() for name in spec.files)}
    found = {entry.name for entry in folder.iterdir()} - {JOURNAL_NAME}
    if found != expected:
        missing, foreign = sorted(expected - found), sorted(found - expected)
        raise BundleError(
            "the files of the bundle are not those of its components",
            where=folder,
            found=", ".join([*(f"no {name}" for name in missing), *(f"{name} of nobody" for name in foreign)]),
            fix=_FIX,
        )


def verify_caches(spec: ComponentSpec, encoder: EncoderSpec, streaming: StreamingSpec) -> None:
    """Return if a streaming encoder takes and returns every cache of its layout, in order and in shape.

    Raises:
        BundleError: naming what is there instead.
    """
    batch = spec.inputs[1].shape  # of the lengths: the axis of rows, or its size where it is fixed
    caches = {name: _with_batch(shape, *batch) for name, shape in cache_shapes(encoder, streaming).items()}
    wanted = [*caches.items(), ("cache_last_channel_len", batch)]
    for kind, tensors, suffix in (("inputs", spec.inputs, ""), ("outputs", spec.outputs, "_out")):
        found = [(tensor.name, tensor.shape) for tensor in tensors[2:]]
        if found != [(f"{name}{suffix}", shape) for name, shape in wanted]:
            raise BundleError(
                f"the streaming encoder's {kind} are not its caches",
                where=spec.graph,
                found=", ".join(f"{name}{list(shape)}" for name, shape in found) or "none",
                fix=_FIX,
            )


def _with_batch(shape: tuple[int | str, ...], batch: int | str) -> tuple[int | str, ...]:
    return tuple(batch if axis == BATCH else axis for axis in shape)


@dataclass(frozen=True)
class _Extent:
    """Where the numbers of a weight are in the data file."""

    name: str
    start: int
    end: int


def _check_weights(graph: Path, spec: ComponentSpec) -> None:
    initializers = onnx.load(str(graph), load_external_data=False).graph.initializer
    external = [tensor for tensor in initializers if tensor.data_location == TensorProto.EXTERNAL]
    problem = (
        _misplaced(external, spec.data)
        or _does_not_tile([_extent(tensor) for tensor in external], _size(graph, spec))
        or _lacks_parameters(initializers, spec)
    )
    if problem:
        raise BundleError("the data of a component is not its graph's weights", where=graph, found=problem, fix=_FIX)


def _misplaced(external: Collection[TensorProto], data: str | None) -> str | None:
    for tensor in external:
        info = ExternalDataInfo(tensor)
        wanted = _bytes_of(tensor)
        if info.location != data:
            return f"{tensor.name} is in {info.location}"
        if info.length != wanted:
            return f"{tensor.name} has {info.length} bytes, not {wanted}"
    return None


def _does_not_tile(extents: Collection[_Extent], size: int) -> str | None:
    """Weights lie one behind the other up to the end of the file, but for gaps that align them."""
    ordered = sorted(extents, key=lambda extent: extent.start)
    for before, after in pairwise([_Extent("the start of the file", 0, 0), *ordered]):
        if not 0 <= after.start - before.end < _PAGE_BYTES:
            return f"{after.name} starts at byte {after.start}, {before.name} ends at {before.end}"
    end = ordered[-1].end if ordered else 0
    return None if end == size else f"weights end at byte {end}, the file at {size}"


def _lacks_parameters(initializers: Collection[TensorProto], spec: ComponentSpec) -> str | None:
    """Shared constants are numbers of the graph too, so there may be more."""
    numbers = sum(prod(tensor.dims) for tensor in initializers if tensor.data_type == TensorProto.FLOAT)
    return None if numbers >= spec.parameters else f"{numbers:,} weights of {spec.parameters:,} parameters"


def _size(graph: Path, spec: ComponentSpec) -> int:
    return (graph.parent / spec.data).stat().st_size if spec.data else 0


def _extent(tensor: TensorProto) -> _Extent:
    start = ExternalDataInfo(tensor).offset or 0
    return _Extent(tensor.name, start, start + _bytes_of(tensor))


def _bytes_of(tensor: TensorProto) -> int:
    return int(prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)

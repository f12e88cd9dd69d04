"""The weights of a graph where they lie: in the file itself, or at a range of a file beside it.

    TensorProto --> StoredWeight --> fault: where its range cannot be trusted      (nothing is read)
                                 --> read(): the values, mapped, one weight at a time

Locations, offsets and lengths come from the file, so nothing is opened before it is known to lie inside the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, TensorProto, numpy_helper

Fault = Literal["outside", "missing", "length", "truncated"]

_MALFORMED = -1


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest of a weight's values; both NaN if any is. ``are_one``: there is a single value."""

    low: float
    high: float
    are_one: bool


@dataclass(frozen=True)
class StoredWeight:
    """One initializer, or the tensor of a node's attribute; ``folder`` is that of the graph."""

    name: str
    folder: Path
    tensor: TensorProto = field(repr=False, compare=False)

    @property
    def is_external(self) -> bool:
        """Whether the values are in another file."""
        return bool(self.tensor.data_location == TensorProto.EXTERNAL)

    @property
    def size_bytes(self) -> int:
        """What type and shape ask for; sub-byte types are packed. 0 for a type of no fixed size, or none at all."""
        try:
            return -(-int(prod(self.tensor.dims)) * ir.DataType(self.tensor.data_type).bitwidth // 8)
        except (TypeError, ValueError):
            return 0

    @cached_property
    def location(self) -> str:
        """The file's name as the graph has it; empty for a weight inside of the graph."""
        return self._entries.get("location", "") if self.is_external else ""

    @property
    def file(self) -> Path:
        """The file's path. Open it only if there is no ``fault``."""
        return self.folder / self.location

    @cached_property
    def offset(self) -> int:
        """Where the values begin; negative if the graph has no number there."""
        return _number(self._entries.get("offset", "0"))

    @cached_property
    def length(self) -> int:
        """How many bytes the graph says there are; negative if it has no number there."""
        return _number(self._entries["length"]) if "length" in self._entries else self.size_bytes

    @cached_property
    def fault(self) -> Fault | None:
        """Why the values cannot be read as this weight; ``None`` if they can."""
        if not self.is_external:
            return None if self._has_own_values() else "length"
        if _leaves(self.folder, self.location):
            return "outside"
        if not self.file.is_file():
            return "missing"
        if min(self.offset, self.length) < 0 or self.length != self.size_bytes:
            return "length"
        return "truncated" if self.offset + self.length > self.file.stat().st_size else None

    def read(self) -> NDArray[Any]:
        """The values, of a weight of whole bytes without ``fault``. Those of another file are mapped, not loaded."""
        if not self.is_external:
            return numpy_helper.to_array(self.tensor)
        dtype = ir.DataType(self.tensor.data_type).numpy()
        return self.read_bytes().view(dtype).reshape(tuple(self.tensor.dims))

    @cached_property
    def extremes(self) -> Extremes:
        """Of a weight that is not empty, and has no ``fault``."""
        values = self.read()
        return Extremes(float(values.min()), float(values.max()), are_one=values.size == 1)

    def read_bytes(self) -> NDArray[np.uint8]:
        """The same as bytes, little-endian."""
        if not self.is_external:
            return np.frombuffer(self.tensor.raw_data or self.read().tobytes(), np.uint8)
        if self.length == 0:  # nothing can be mapped
            return np.empty(0, np.uint8)
        return np.memmap(self.file, np.uint8, mode="r", offset=self.offset, shape=(self.length,))

    def _has_own_values(self) -> bool:
        """Whether the tensor holds as many values as its shape asks for."""
        if self.tensor.HasField("raw_data"):
            return len(self.tensor.raw_data) == self.size_bytes
        try:
            numpy_helper.to_array(self.tensor)
        except (TypeError, ValueError, KeyError):
            return False
        return True

    @cached_property
    def _entries(self) -> dict[str, str]:
        return {entry.key: entry.value for entry in self.tensor.external_data}


def stored_weights(graph: GraphProto, folder: Path) -> Iterator[StoredWeight]:
    """All weights of a graph and of those nested in it, in the order of the file."""
    for tensor in graph.initializer:
        yield StoredWeight(tensor.name, folder, tensor)
    for node in graph.node:
        name = node.output[0] if node.op_type == "Constant" and node.output else node.name
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield StoredWeight(name, folder, attribute.t)
            for nested in (*attribute.graphs, *([attribute.g] if attribute.type == AttributeProto.GRAPH else [])):
                yield from stored_weights(nested, folder)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() else _MALFORMED


def _leaves(folder: Path, location: str) -> bool:
    """Whether the location is absolute, climbs out of the folder, or goes through a link."""
    path = PurePosixPath(location.replace("\\", "/"))
    if not location or path.is_absolute() or PureWindowsPath(location).drive or ".." in path.parts:
        return True
    return any((folder / part).is_symlink() for part in (path, *path.parents[:-1]))

"""Two graphs in ONNX Runtime on the same inputs: every element of every output, padding included.

for (rows, frames) of the grid: noise, ragged lengths -> before, after -> shapes, integers equal; floats within limits
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemotrt.errors import GraphError
from nemotrt.trt.surgery.onnx_session import Array, OnnxSession

GRID = ((1, 1), (1, 9), (3, 40), (2, 65), (1, 128), (4, 201), (1, 600))
"""Rows, and the length of every other axis that the graph leaves open."""

TOLERANCES: Mapping[str, tuple[float, str]] = {
    "float64": (1e-9, "sums in another order"),
    "float32": (1e-4, "sums in another order and factors moved into weights: 1e-6 to 1e-5 where frames are normalised"),
    "float16": (2e-2, "one rounding of half precision more or less, on values of size one"),
}
"""Largest difference by type, times the largest value where that is beyond one; and the reason."""

_TYPES = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


@dataclass(frozen=True)
class Equality:
    """What was found. ``problem`` is ``None`` where the graphs are equal; ``shapes`` are those that were tried."""

    max_difference: float
    shapes: tuple[tuple[int, int], ...]
    problem: str | None = None


def compare_graphs(
    before: Path, after: Path, *, ragged: bool = True, grid: Sequence[tuple[int, int]] = GRID
) -> Equality:
    """Run both on every shape of the grid that the first one takes. Without ``ragged`` all rows are full.

    Raises:
        GraphError: ONNX Runtime cannot load one of them, or the first one takes no shape of the grid.
    """
    first, second = OnnxSession(before), OnnxSession(after)
    largest, tried = 0.0, []
    refusal: GraphError | None = None
    for rows, frames in grid:
        feeds = feeds_for(first.inputs, rows=rows, frames=frames, ragged=ragged)
        try:
            wanted = first.run(feeds)
        except GraphError as exc:
            refusal = exc
            continue
        tried.append((rows, frames))
        try:
            found = second.run(feeds)
        except GraphError as exc:
            return Equality(largest, tuple(tried), f"{rows} x {frames}: {exc.found}")
        for output, difference, problem in _differences(first, wanted, found):
            largest = max(largest, difference)
            if problem is not None:
                return Equality(largest, tuple(tried), f"{output} at {rows} x {frames}: {problem}")
    if not tried:
        raise refusal or GraphError("the grid is empty", fix="give at least one shape")
    return Equality(largest, tuple(tried))


def feeds_for(inputs: Sequence[Any], *, rows: int, frames: int, ragged: bool) -> dict[str, Array]:
    """Noise for numbers; for a vector of integers [rows] lengths up to ``frames``, the first row full; else 0 and 1."""
    generator = np.random.default_rng(rows * 100_003 + frames)
    first = {tensor.shape[0] for tensor in inputs if tensor.shape}
    shapes = {
        tensor.name: tuple(a if isinstance(a, int) else rows if a in first else frames for a in tensor.shape)
        for tensor in inputs
    }
    longest, shortest = frames, frames // 3 if ragged else frames
    return {one.name: _feed(one.type, generator, shapes[one.name], lengths=(longest, shortest)) for one in inputs}


def _feed(kind: str, generator: np.random.Generator, shape: tuple[int, ...], *, lengths: tuple[int, int]) -> Array:
    dtype = np.dtype(_TYPES[kind])
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    if dtype.kind == "i" and len(shape) == 1:
        return np.linspace(*lengths, shape[0]).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _differences(
    session: OnnxSession, wanted: Sequence[Array], found: Sequence[Array]
) -> Iterator[tuple[str, float, str | None]]:
    for output, a, b in zip(session.outputs, wanted, found, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            yield output.name, 0.0, f"{b.dtype}{list(b.shape)}, {a.dtype}{list(a.shape)} expected"
        elif a.dtype.kind != "f":
            yield output.name, 0.0, None if np.array_equal(a, b) else f"{int((a != b).sum())} of {a.size} differ"
        else:
            yield (output.name, *_float_difference(a, b))


def _float_difference(a: Array, b: Array) -> tuple[float, str | None]:
    limit, finite = TOLERANCES[str(a.dtype)][0], np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf"), "infinite or not a number at other places"
    a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
    difference, limit = float(np.abs(a - b).max(initial=0.0)), limit * max(1.0, float(np.abs(a).max(initial=0.0)))
    return difference, None if difference <= limit else f"differs by {difference:.2g}, {limit:.2g} allowed"

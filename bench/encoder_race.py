"""Two encoder graphs side by side: the same ragged batches in ONNX Runtime, and TensorRT builds, taking turns.

The graphs may name outputs and dynamic axes as they like; inputs are ``audio_signal`` [B,F,T] and ``length`` [B].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nemotrt.bench.latency import collector_paused
from nemotrt.bench.nemo_export_results import EncoderLatency, RatioPercentiles
from nemotrt.bench.results import Percentiles
from nemotrt.bundle import ComponentSpec
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Array, Arrays, Runner
from nemotrt.profiles import AxisRange
from nemotrt.profiles.axes import AxisName
from nemotrt.tensorrt_api import RuntimeName
from nemotrt.trt.build import BuildRequest, build_engine

_SEED = 0


@dataclass(frozen=True)
class Encoder:
    """A graph and the contract of its inputs and outputs. ``time_axis`` is the one of its first output."""

    graph: Path
    spec: ComponentSpec
    time_axis: int


@dataclass(frozen=True)
class Batches:
    """``shapes`` are (rows, feature frames); ``warmup`` and ``runs`` are for each of them."""

    features: int
    shapes: tuple[tuple[int, int], ...]
    warmup: int
    runs: int
    threads: int | None


@dataclass(frozen=True)
class Built:
    """Builds of one graph: layers after parsing, median seconds, bytes of the plan."""

    layers: int
    seconds: float
    plan_bytes: int


def race_on_onnxruntime(
    ours: Encoder, theirs: Encoder, batches: Batches, *, on_shape: Callable[[int, int], None]
) -> tuple[EncoderLatency, ...]:
    """Time both on every shape, and compare what they say of the valid frames.

    Raises:
        GraphError: ONNX Runtime cannot load or run one of them.
    """
    with (
        closing(OnnxRuntimeRunner(ours.graph, spec=ours.spec, threads=batches.threads)) as first,
        closing(OnnxRuntimeRunner(theirs.graph, threads=batches.threads)) as second,
    ):
        rows = []
        for batch_size, frames in batches.shapes:
            on_shape(batch_size, frames)
            feeds = ragged_batch(batches.features, batch_size=batch_size, frames=frames)
            difference, lengths_equal = _difference(first.run(feeds), second.run(feeds), ours, theirs)
            seconds = _interleaved((first, second), feeds, batches)
            rows.append(
                EncoderLatency(
                    batch_size=batch_size,
                    frames=frames,
                    nemotrt=_percentiles(seconds[:, 0]),
                    nemo=_percentiles(seconds[:, 1]),
                    ratio=_ratio(seconds[:, 0] / seconds[:, 1]),
                    max_abs=difference,
                    lengths_equal=lengths_equal,
                )
            )
    return tuple(rows)


def race_on_tensorrt(
    encoders: Sequence[Encoder],
    ranges: Mapping[AxisName, AxisRange],
    *,
    runtime: RuntimeName,
    builds: int,
) -> tuple[Built, ...]:
    """Build each ``builds`` times, in turns, after one build that is not counted: the library sets itself up then.

    ``ranges`` are by the axis names of the first encoder.

    Raises:
        GraphError, MachineError, ProfileError: a build failed.
    """
    requests = [BuildRequest(e.graph, e.spec, (_renamed(ranges, encoders[0].spec, e.spec),), runtime) for e in encoders]
    seconds = np.empty((builds, len(requests)))
    results = [(0, 0)] * len(requests)
    build_engine(requests[0])
    for turn in range(builds):
        for index in _rotated(len(requests), turn):
            result = build_engine(requests[index])
            seconds[turn, index] = result.seconds
            results[index] = (result.layers, result.size_bytes)
    return tuple(
        Built(layers, median(seconds[:, index]), plan_bytes) for index, (layers, plan_bytes) in enumerate(results)
    )


def spec_from_graph(graph: Path) -> ComponentSpec:
    """The contract that a graph states itself."""
    with closing(OnnxRuntimeRunner(graph)) as runner:
        return ComponentSpec(graph=graph.name, data=None, inputs=runner.inputs, outputs=runner.outputs, parameters=0)


def ragged_batch(features: int, *, batch_size: int, frames: int) -> Arrays:
    """Noise: the first row ``frames`` long, the last one half of it."""
    generator = np.random.default_rng(_SEED)
    lengths = np.linspace(frames, frames // 2, batch_size) if batch_size > 1 else np.array([frames])
    return {
        "audio_signal": generator.standard_normal((batch_size, features, frames), np.float32),
        "length": lengths.astype(np.int64),
    }


def _difference(
    ours: Mapping[str, Array], theirs: Mapping[str, Array], mine: Encoder, other: Encoder
) -> tuple[float, bool]:
    """Largest absolute difference of the first outputs over the valid frames; whether the lengths are equal."""
    (first, lengths), (second, *rest) = _in_order(ours, mine), _in_order(theirs, other)
    valid = (
        (np.moveaxis(a, mine.time_axis - 1, 0)[:n], np.moveaxis(b, other.time_axis - 1, 0)[:n])
        for a, b, n in zip(first, second, lengths, strict=True)
    )
    difference = max(float(np.abs(a - b).max(initial=0.0)) for a, b in valid)
    return difference, all(np.array_equal(lengths, found) for found in rest)


def _in_order(outputs: Mapping[str, Array], encoder: Encoder) -> tuple[Array, ...]:
    return tuple(outputs[spec.name] for spec in encoder.spec.outputs)


def _interleaved(runners: Sequence[Runner], feeds: Arrays, batches: Batches) -> NDArray[np.float64]:
    """Seconds, [runs, runners]."""
    for runner in runners:
        for _ in range(batches.warmup):
            runner.run(feeds)
    seconds = np.empty((batches.runs, len(runners)))
    with collector_paused():
        for turn in range(batches.runs):
            for index in _rotated(len(runners), turn):
                start = perf_counter()
                runners[index].run(feeds)
                seconds[turn, index] = perf_counter() - start
    return seconds


def _rotated(count: int, turn: int) -> Sequence[int]:
    return [(index + turn) % count for index in range(count)]


def _renamed(ranges: Mapping[AxisName, AxisRange], known: ComponentSpec, other: ComponentSpec) -> dict[str, AxisRange]:
    """``ranges`` by the axis names of ``other``: inputs match by name, axes by position."""
    shapes = {spec.name: spec.shape for spec in known.inputs}
    pairs = ((a, b) for spec in other.inputs for a, b in zip(shapes.get(spec.name, ()), spec.shape, strict=False))
    by_name = {str(axis): axis_range for axis, axis_range in ranges.items()}
    return {b: by_name[str(a)] for a, b in pairs if isinstance(b, str) and str(a) in by_name}


def _percentiles(seconds: NDArray[np.float64]) -> Percentiles:
    p5, p50, p95, p99 = (float(value) for value in np.percentile(seconds, (5, 50, 95, 99)))
    return Percentiles(p5=p5, p50=p50, p95=p95, p99=p99)


def _ratio(ratios: NDArray[np.float64]) -> RatioPercentiles:
    p5, p50, p95 = (float(value) for value in np.percentile(ratios, (5, 50, 95)))
    return RatioPercentiles(p5=p5, p50=p50, p95=p95)

"""One ONNX component to one TensorRT plan.

    ONNX graph --> contract check --> parser --> strongly typed network --> optimization profiles --> plan

The same path serves TensorRT 10, TensorRT 11 and TensorRT-RTX. Precision is what the graph says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotrt.bundle import ComponentSpec
from nemotrt.errors import GraphError, MachineError
from nemotrt.graph_contract import check_graph
from nemotrt.profiles import AxisRange
from nemotrt.tensorrt_api import CURRENT_GPU, RuntimeName, TensorRTApi, can_run, load_api
from nemotrt.trt.build_log import error_from_log
from nemotrt.trt.build_progress import BuildProgress
from nemotrt.trt.input_shapes import ShapeRange, shape_ranges

OnProgress = Callable[[str, float], None]
"""Called with a phase (``parse``, ``build``) and the fraction of it that is done. An exception that it raises
cancels the build and reaches the caller of :func:`build_engine`."""


@dataclass(frozen=True)
class BuildRequest:
    """What to build.

    ``ranges`` holds one mapping from axis name to range for each optimization profile.
    ``compute_capabilities`` are the GPUs to build for (``"8.9"`` or ``"current"``); empty means the library's
    default: for TensorRT-RTX 8.0, 8.6, 8.9, 12.0 and later, for TensorRT the GPU of this machine.
    """

    graph: Path
    component: ComponentSpec
    ranges: tuple[Mapping[str, AxisRange], ...]
    runtime: RuntimeName
    compute_capabilities: tuple[str, ...] = ()
    tf32: bool = False


@dataclass(frozen=True)
class BuildResult:
    """A plan that was built and not run. ``layers`` counts the network after parsing, before any fusion."""

    plan: bytes
    layers: int
    seconds: float
    runtime: RuntimeName
    runtime_version: str
    warnings: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the plan."""
        return len(self.plan)


def build_engine(request: BuildRequest, *, on_progress: OnProgress | None = None) -> BuildResult:
    """Build the plan of one component, in this process.

    Raises:
        GraphError: the graph is not what the component says, or TensorRT cannot take it; every node is named.
        ProfileError: an axis of the component has no range.
        UsageError: a compute capability that the library cannot build for.
        MachineError: the library is missing, the build needs a GPU and there is none, or memory ran out.
    """
    started = time.perf_counter()
    api = check_target(request.runtime, request.compute_capabilities)
    check_graph(request.graph, request.component)
    shapes = tuple(shape_ranges(request.component, ranges) for ranges in request.ranges)
    report = on_progress or _ignore
    with api.captured_log() as log:
        builder = api.create_builder()
        network = api.create_network(builder)
        # The network refers to weights that the parser owns: both live until the plan is there.
        parser = api.create_parser(network)
        report("parse", 0.0)
        _parse(parser, request.graph)
        _refuse_shape_inputs(network, request.graph)
        report("parse", 1.0)
        layers = int(network.num_layers)
        config = builder.create_builder_config()
        api.set_tf32(config, enabled=request.tf32)
        api.set_compute_capabilities(config, request.compute_capabilities)
        for shape_of_input in shapes:
            _add_optimization_profile(builder, config, shape_of_input)
        with BuildProgress(api.module, lambda fraction: report("build", fraction)) as progress:
            config.progress_monitor = progress.monitor
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise error_from_log(log, graph=request.graph, library=f"{api.title} {api.version}")
    return BuildResult(
        plan=bytes(plan),
        layers=layers,
        seconds=time.perf_counter() - started,
        runtime=api.name,
        runtime_version=api.version,
        warnings=tuple(log.warnings),
    )


def _ignore(phase: str, fraction: float) -> None:
    """The listener of those who did not bring one."""


def check_target(runtime: RuntimeName, compute_capabilities: tuple[str, ...]) -> TensorRTApi:
    """The library, if it can build for these GPUs on this machine. Cheap: ask before making what is built.

    Raises:
        UsageError: a compute capability that the library cannot build for.
        MachineError: the library is missing, or the build needs a GPU and there is none.
    """
    api = load_api(runtime)
    api.check_compute_capabilities(compute_capabilities)
    if api.builds_without_gpu and CURRENT_GPU not in compute_capabilities:
        return api
    report = can_run()
    if not report:
        raise MachineError(
            f"{api.title} builds for the GPU of the machine, and this machine has none",
            found=report.reason,
            fix="build on the GPU host, or build with TensorRT-RTX for named compute capabilities",
        )
    return api


def _parse(parser: Any, graph: Path) -> None:
    if parser.parse_from_file(str(graph)):
        return
    problems = [_problem(parser.get_error(index)) for index in range(parser.num_errors)]
    raise GraphError(
        "TensorRT cannot take this graph",
        where=graph,
        found="; ".join(problems) or "the parser gave no reason",
        fix="the operators and types that TensorRT supports are in its ONNX operator table",
    )


def _problem(error: Any) -> str:
    description = str(error.desc()).strip().split("\n")[0]
    reason = f"{error.code().name}: {description}"
    return f"node {error.node_name()} ({error.node_operator()}): {reason}" if error.node_name() else reason


def _refuse_shape_inputs(network: Any, graph: Path) -> None:
    tensors = map(network.get_input, range(network.num_inputs))
    names = [tensor.name for tensor in tensors if tensor.is_shape_tensor]
    if names:
        raise GraphError(
            "the values of an input decide the shape of another tensor",
            where=graph,
            found=", ".join(names),
            fix="take shapes from tensors (ONNX Shape) and use lengths for masks only",
        )


def _add_optimization_profile(builder: Any, config: Any, shape_of_input: Mapping[str, ShapeRange]) -> None:
    if not shape_of_input:
        return
    profile = builder.create_optimization_profile()
    for name, shape in shape_of_input.items():
        profile.set_shape(name, shape.min, shape.opt, shape.max)
    config.add_optimization_profile(profile)

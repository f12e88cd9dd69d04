"""Runs a plan on a GPU, with TensorRT 10, TensorRT 11 or TensorRT-RTX.

    feeds -> router -> context of that profile
          -> pinned buffers -> device -> execute -> device -> pinned buffers -> outputs

There is one execution context per optimization profile, so switching between profiles costs nothing at run
time, and one stream, so copies and kernels are ordered without events.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from nemotrt.bundle import TensorSpec
from nemotrt.engines import cuda_memory
from nemotrt.engines.cuda_memory import CudaStream, StagedTensor
from nemotrt.engines.feeds import check_feeds
from nemotrt.engines.manifest import EngineManifest
from nemotrt.engines.plan_check import Host, PlanInterface, PlanTensor, check_host, check_interface
from nemotrt.engines.profile_router import ProfileRouter
from nemotrt.engines.runner import Array, Arrays
from nemotrt.engines.store import StoredEngine, load_plan
from nemotrt.errors import InputError, MachineError
from nemotrt.tensorrt_api import Gpu, Log, TensorRTApi, can_run, load_api


class TensorRTRunner:
    """Implements ``Runner`` for one plan on one GPU.

    ``plan`` must be proven to be the manifest's, as :func:`nemotrt.engines.store.load_plan` does;
    :meth:`open` does both. ``device`` counts the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible.

    Raises:
        EngineError: the plan was built for another GPU or library version, which is found out before it is
            deserialized, or its tensors are not those of the manifest.
        MachineError: no GPU, cuda-bindings not installed, out of memory, or TensorRT refuses the plan.
    """

    def __init__(self, plan: bytes, manifest: EngineManifest, *, api: TensorRTApi, device: int = 0) -> None:
        gpu = visible_gpu(device)
        check_host(manifest, Host(runtime=api.name, runtime_version=api.version, gpu=gpu))
        self._api = api
        self._manifest = manifest
        self._device = device
        self._label = f"{api.title} {api.version}, {gpu.name}"
        self._where = f"{manifest.component} engine {manifest.key[:16]} on {self._label}"
        self._router = ProfileRouter(manifest.inputs, manifest.ranges)
        self._runtime: Any = None
        self._engine: Any = None
        self._contexts: tuple[Any, ...] = ()
        self._tensors: dict[str, StagedTensor] = {}
        self._resources = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._open(plan)
            undo.pop_all()

    @classmethod
    def open(cls, engine: StoredEngine, *, device: int = 0) -> TensorRTRunner:
        """The runner of a stored engine, on the library it was built with. Raises as the constructor does."""
        api = load_api(engine.manifest.runtime)
        return cls(load_plan(engine), engine.manifest, api=api, device=device)

    @property
    def label(self) -> str:
        """Library, version and GPU: ``TensorRT-RTX 1.7.1.116, NVIDIA RTX 4090``."""
        return self._label

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """As the manifest says; the plan was checked against it."""
        return self._manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """As the manifest says; the plan was checked against it."""
        return self._manifest.outputs

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """One inference; see ``Runner.run``. The arrays returned belong to the caller.

        Raises:
            ProfileError: no optimization profile contains the shapes, or the component does not take them.
            InputError: an input is missing, unknown, or of another dtype, or the runner was closed.
            MachineError: CUDA or TensorRT reports an error.
        """
        if not self._contexts:
            raise InputError("the runner is closed", where=self._where, fix="open another one")
        check_feeds(feeds, self.inputs, where=self._where)
        arrays = {spec.name: feeds[spec.name] for spec in self.inputs}
        profile = self._router.route({name: array.shape for name, array in arrays.items()})
        cuda_memory.call("cudaSetDevice", self._device)
        with self._api.captured_log() as log:
            return self._execute(self._contexts[profile], arrays, log)

    def close(self) -> None:
        """Release contexts, engine, buffers and stream. Safe to call twice."""
        resources, self._resources = self._resources, ExitStack()
        resources.close()

    def _open(self, plan: bytes) -> None:
        cuda_memory.call("cudaSetDevice", self._device)
        self._stream = CudaStream()
        self._resources.callback(self._stream.close)
        for spec in (*self.inputs, *self.outputs):
            self._tensors[spec.name] = StagedTensor()
            self._resources.callback(self._tensors[spec.name].close)
        self._resources.callback(self._drop_engine)
        with self._api.captured_log() as log:
            self._runtime = self._api.create_runtime()
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            self._require(self._engine is not None, "load the plan", log)
            check_interface(self._manifest, interface_of(self._engine, self._api.module))
            create_context = context_factory(self._engine, self._api.module)
            for profile in range(len(self._manifest.ranges)):
                context = create_context()
                self._require(context is not None, f"reserve memory for profile {profile}", log)
                selected = context.set_optimization_profile_async(profile, self._stream.handle)
                self._require(selected, f"select profile {profile}", log)
                self._contexts = (*self._contexts, context)
            self._stream.synchronize()

    def _drop_engine(self) -> None:
        """In the order in which they depend on each other."""
        self._contexts = ()
        self._engine = None
        self._runtime = None

    def _execute(self, context: Any, arrays: dict[str, Array], log: Log) -> dict[str, Array]:
        for name, array in arrays.items():
            accepted = context.set_input_shape(name, array.shape)
            self._require(accepted, f"set the shape of {name} to {array.shape}", log)
            self._bind(context, name, array.nbytes, log)
        shapes = self._output_shapes(context, log)
        for spec in self.outputs:
            self._bind(context, spec.name, _size_bytes(shapes[spec.name], spec), log)
        for name, array in arrays.items():
            self._tensors[name].upload(array, stream=self._stream)
        self._require(context.execute_async_v3(self._stream.handle), "run the engine", log)
        for spec in self.outputs:
            size_bytes = _size_bytes(shapes[spec.name], spec)
            self._tensors[spec.name].enqueue_download(size_bytes, stream=self._stream)
        self._stream.synchronize()
        return {
            spec.name: self._tensors[spec.name].host_view(shapes[spec.name], spec.dtype).copy() for spec in self.outputs
        }

    def _bind(self, context: Any, name: str, size_bytes: int, log: Log) -> None:
        tensor = self._tensors[name]
        tensor.reserve(size_bytes)
        accepted = context.set_tensor_address(name, tensor.device_address)
        self._require(accepted, f"use a buffer of {size_bytes} bytes for {name}", log)

    def _output_shapes(self, context: Any, log: Log) -> dict[str, tuple[int, ...]]:
        """Output name -> shape, which follows from the input shapes alone."""
        try:
            unknown = context.infer_shapes()
        except RuntimeError as exc:
            raise self._refusal("infer the output shapes", log, found=str(exc)) from exc
        shapes = {spec.name: tuple(context.get_tensor_shape(spec.name)) for spec in self.outputs}
        unknown = [*unknown, *(name for name, shape in shapes.items() if min(shape, default=0) < 0)]
        self._require(not unknown, f"tell the shape of {', '.join(unknown)} before the run", log)
        return shapes

    def _require(self, holds: bool, action: str, log: Log) -> None:
        if not holds:
            raise self._refusal(action, log)

    def _refusal(self, action: str, log: Log, *, found: str | None = None) -> MachineError:
        return MachineError(
            f"{self._api.title} cannot {action}",
            where=self._where,
            found=found or "; ".join(log.errors) or "it gives no reason",
            fix="if memory ran out, free some or use a smaller profile; otherwise build the engine again",
        )


def visible_gpu(device: int) -> Gpu:
    """The GPU number ``device``.

    Raises:
        MachineError: this machine has no GPU, or fewer; says why.
    """
    report = can_run()
    if not 0 <= device < len(report.gpus):
        raise MachineError(
            f"there is no GPU {device} to run an engine on" if report else "an engine needs an NVIDIA GPU",
            found=report.reason,
            fix="run on a host with that GPU, or run the bundle on ONNX Runtime",
        )
    return report.gpus[device]


def interface_of(engine: Any, module: Any) -> PlanInterface:
    """What a deserialized engine says about its tensors and profiles."""
    profiles = int(engine.num_optimization_profiles)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return PlanInterface(profiles, tuple(_plan_tensor(engine, name, profiles, module) for name in names))


def context_factory(engine: Any, module: Any) -> Callable[[], Any]:
    """Makes execution contexts whose memory is that of their own profile, not of the largest one.

    Newer libraries, TensorRT-RTX among them, take the allocation strategy from a runtime configuration.
    """
    strategies = module.ExecutionContextAllocationStrategy
    several = engine.num_optimization_profiles > 1
    strategy = strategies.ON_PROFILE_CHANGE if several else strategies.STATIC
    if not hasattr(engine, "create_runtime_config"):
        return lambda: engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    return lambda: engine.create_execution_context(config)


def _plan_tensor(engine: Any, name: str, profiles: int, module: Any) -> PlanTensor:
    is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
    return PlanTensor(
        name=name,
        is_input=is_input,
        dtype=engine.get_tensor_dtype(name).name,
        on_device=engine.get_tensor_location(name) == module.TensorLocation.DEVICE,
        profile_shapes=tuple(
            tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, profile))
            for profile in range(profiles if is_input else 0)
        ),
    )


def _size_bytes(shape: tuple[int, ...], spec: TensorSpec) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize

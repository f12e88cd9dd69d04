"""A GPU made of host memory, for the parts of the runner that no GPU is needed to get wrong.

The CUDA runtime allocates with ``ctypes`` and copies at once; the TensorRT module has the real library's enumerations,
and its "plan" is an ONNX model that ONNX Runtime executes between the addresses it was given. What this proves is the
runner's bookkeeping: shapes, buffers, profiles, errors, release. What TensorRT computes is for the ``gpu`` tests.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tensorrt_rtx

from nemotrt.bundle import TensorSpec
from nemotrt.engines.profile_router import ProfileRouter
from nemotrt.profiles import AxisRange
from nemotrt.tensorrt_api import TensorRTApi

VERSION = "1.7.1.116"
_DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class CudaError(enum.Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class SimulatedCuda:
    """The functions of ``cuda.bindings.runtime`` that the runner calls. ``limit_bytes`` is all there is."""

    cudaError_t = CudaError
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self) -> None:
        self.limit_bytes = 1 << 30
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.allocations = 0

    @property
    def live(self) -> int:
        """Buffers and streams that were not released."""
        return len(self.device) + len(self.pinned) + len(self.streams)

    def cudaGetErrorString(self, status: CudaError) -> tuple[CudaError, bytes]:
        return CudaError.cudaSuccess, b"out of memory" if status.value else b"no error"

    def cudaSetDevice(self, device: int) -> tuple[CudaError]:
        return (CudaError.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[CudaError, int | None]:
        if sum(map(ctypes.sizeof, self.device.values())) + size > self.limit_bytes:
            return CudaError.cudaErrorMemoryAllocation, None
        return CudaError.cudaSuccess, self._allocate(self.device, size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, self._allocate(self.pinned, size)

    def cudaFree(self, address: int) -> tuple[CudaError]:
        del self.device[address]
        return (CudaError.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> tuple[CudaError]:
        del self.pinned[address]
        return (CudaError.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[CudaError, int]:
        self.streams.add(7)
        return CudaError.cudaSuccess, 7

    def cudaStreamSynchronize(self, stream: int) -> tuple[CudaError]:
        assert stream in self.streams
        return (CudaError.cudaSuccess,)

    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]:
        self.streams.remove(stream)
        return (CudaError.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[CudaError]:
        assert stream in self.streams
        to, origin = (self.device, self.pinned) if kind == 1 else (self.pinned, self.device)
        assert size <= min(ctypes.sizeof(to[target]), ctypes.sizeof(origin[source]))
        ctypes.memmove(target, source, size)
        return (CudaError.cudaSuccess,)

    def _allocate(self, pool: dict[int, Any], size: int) -> int:
        self.allocations += 1
        memory = (ctypes.c_byte * size)()
        ctypes.memset(memory, 0xAA, size)
        address = ctypes.addressof(memory)
        pool[address] = memory
        return address


class SimulatedTensorRT:
    """``api`` is a :class:`TensorRTApi` whose runtime "deserializes" ONNX models built for ``ranges``."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        ranges: tuple[Mapping[str, AxisRange], ...],
        *,
        runtime_config: bool = True,
    ) -> None:
        self.profiles_run: list[int] = []
        self.failing: str | None = None
        self.router = ProfileRouter(inputs, ranges)
        engine_type = _EngineWithRuntimeConfig if runtime_config else _Engine
        module = SimpleNamespace(
            __version__=VERSION,
            Runtime=lambda logger: SimpleNamespace(
                deserialize_cuda_engine=lambda plan: self._deserialized(plan, engine_type, logger)
            ),
            **{
                name: getattr(tensorrt_rtx, name)
                for name in ("ILogger", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy")
            },
        )
        self.api = TensorRTApi("tensorrt-rtx", module)

    def complain(self, text: str) -> None:
        self.api.logger.log(tensorrt_rtx.ILogger.ERROR, text)

    def _deserialized(self, plan: bytes, engine_type: type[_Engine], logger: Any) -> Any:
        try:
            onnx.load_from_string(plan)
        except Exception:  # noqa: BLE001  # TensorRT answers every broken plan with a log line and None
            self.complain("magic tag does not match")
            return None
        return engine_type(onnxruntime.InferenceSession(plan), self)


class _Engine:
    def __init__(self, session: Any, simulation: SimulatedTensorRT) -> None:
        self.session = session
        self.simulation = simulation
        self.nodes = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
        self.input_names = [node.name for node in session.get_inputs()]
        self.num_optimization_profiles = len(simulation.router.ranges)
        self.num_io_tensors = len(self.nodes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = tensorrt_rtx.TensorIOMode
        return modes.INPUT if name in self.input_names else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        types = tensorrt_rtx.DataType
        return {"tensor(float)": types.FLOAT, "tensor(int64)": types.INT64}[self.nodes[name].type]

    def get_tensor_location(self, name: str) -> Any:
        return tensorrt_rtx.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        (spec,) = (spec for spec in self.simulation.router.inputs if spec.name == name)
        return list(self.simulation.router.input_shapes(profile, spec))

    def create_execution_context(self, strategy: tensorrt_rtx.ExecutionContextAllocationStrategy) -> Any:
        assert isinstance(strategy, tensorrt_rtx.ExecutionContextAllocationStrategy)
        return _Context(self)


class _EngineWithRuntimeConfig(_Engine):
    def create_runtime_config(self) -> Any:
        return SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)

    def create_execution_context(self, config: SimpleNamespace) -> Any:  # type: ignore[override]
        assert isinstance(config, SimpleNamespace)
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def infer_shapes(self) -> list[str]:
        if self.engine.simulation.failing == "infer_shapes":
            raise RuntimeError("a Reshape does not fit")
        zeros = {name: np.zeros(self.shapes[name], self._dtype(name)) for name in self.engine.input_names}
        outputs = [node.name for node in self.engine.session.get_outputs()]
        for name, value in zip(outputs, self.engine.session.run(None, zeros), strict=True):
            self.shapes[name] = value.shape
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if self.engine.simulation.failing == "get_tensor_shape" else self.shapes[name]

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.simulation.failing == "execute_async_v3":
            self.engine.simulation.complain("an illegal memory access was encountered")
            return False
        self.engine.simulation.profiles_run.append(self.profile)
        feeds = {name: self._array(name).copy() for name in self.engine.input_names}
        outputs = [node.name for node in self.engine.session.get_outputs()]
        for name, value in zip(outputs, self.engine.session.run(None, feeds), strict=True):
            self._array(name)[...] = value
        return True

    def _dtype(self, name: str) -> Any:
        return _DTYPES[self.engine.nodes[name].type]

    def _array(self, name: str) -> Any:
        shape, dtype = self.shapes[name], np.dtype(self._dtype(name))
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_byte * size).from_address(self.addresses[name])
        return np.ndarray(shape, dtype, buffer=memory)

"""Device memory, pinned host memory and a stream, through ``cuda-bindings``.

    numpy -> pinned host buffer -> (async copy) -> device buffer      one StagedTensor per input or output

Copies are asynchronous only from pinned memory, and allocation synchronizes the whole device: both kinds of
buffers are kept between runs and only grow. Every CUDA call is checked.
"""

from __future__ import annotations

import ctypes
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from nemotrt.engines.runner import Array
from nemotrt.errors import MachineError

# What cudaMalloc aligns to. A capacity is a whole number of such blocks, and at least one: TensorRT takes no
# null address.
ALIGNMENT_BYTES = 256


@cache
def cuda_runtime() -> ModuleType:
    """``cuda.bindings.runtime``.

    Raises:
        MachineError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as exc:
        raise MachineError(
            "cuda-bindings is not installed",
            found=str(exc),
            fix="pip install 'nemotrt[rtx]' for TensorRT-RTX, or 'nemotrt[tensorrt]'",
        ) from exc
    return runtime  # type: ignore[no-any-return]  # the package has no types


def call(function: str, *arguments: Any) -> Any:
    """Call ``function`` of the CUDA runtime (``cudaMalloc``); its result, or ``None`` if it has none.

    Raises:
        MachineError: CUDA reports an error; names the function, the error and its meaning.
    """
    runtime = cuda_runtime()
    status, *results = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        meaning = runtime.cudaGetErrorString(status)[1]
        raise MachineError(
            "CUDA reports an error",
            where=function,
            found=f"{status.name}: {meaning.decode() if isinstance(meaning, bytes) else meaning}",
            fix=_FIXES.get(status.name, "nvidia-smi shows the driver and what else uses the GPU"),
        )
    return results[0] if results else None


_FIXES = {
    "cudaErrorMemoryAllocation": "free GPU memory, or use a profile with a smaller batch or shorter audio",
    "cudaErrorInsufficientDriver": "run on a host with a GPU and a driver that supports this CUDA version",
    "cudaErrorNoDevice": "run on a host with an NVIDIA GPU, or use ONNX Runtime",
    "cudaErrorInvalidDevice": "name a GPU that CUDA_VISIBLE_DEVICES leaves visible",
}


def capacity_for(needed_bytes: int, *, current_bytes: int) -> int:
    """Capacity of a buffer that has ``current_bytes`` and must hold ``needed_bytes``.

    Unchanged while it suffices. Otherwise at least half as much again, so that slowly growing batches cause
    few allocations, in whole blocks of ``ALIGNMENT_BYTES``.
    """
    if 0 < current_bytes >= needed_bytes:
        return current_bytes
    wanted = max(needed_bytes, current_bytes + current_bytes // 2, 1)
    return -(-wanted // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class CudaStream:
    """A stream of its own: TensorRT synchronizes the device around every run on the default stream."""

    def __init__(self) -> None:
        flags = cuda_runtime().cudaStreamNonBlocking
        self._stream: Any = call("cudaStreamCreateWithFlags", flags)

    @property
    def handle(self) -> int:
        """The ``cudaStream_t`` as TensorRT takes it."""
        return int(self._stream)

    def synchronize(self) -> None:
        """Wait until everything enqueued so far is done; errors of asynchronous work surface here."""
        call("cudaStreamSynchronize", self._stream)

    def copy(self, destination: int, source: int, size_bytes: int, *, to_device: bool) -> None:
        """Enqueue a copy between pinned host memory and the device; both are addresses."""
        kinds = cuda_runtime().cudaMemcpyKind
        kind = kinds.cudaMemcpyHostToDevice if to_device else kinds.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", destination, source, size_bytes, kind, self._stream)

    def close(self) -> None:
        """Destroy the stream. Safe to call twice."""
        stream, self._stream = self._stream, None
        if stream is not None:
            call("cudaStreamDestroy", stream)


class StagedTensor:
    """A device buffer and its pinned host twin, reused from run to run.

    :meth:`reserve` comes first; addresses and views are those of the last one.
    """

    def __init__(self) -> None:
        self._capacity_bytes = 0
        self._host_address = 0
        self.device_address = 0

    def reserve(self, size_bytes: int) -> None:
        """Make room for ``size_bytes``. May move both buffers: nothing may be in flight on them.

        Raises:
            MachineError: out of device or pinned memory; the tensor is then empty.
        """
        capacity_bytes = capacity_for(size_bytes, current_bytes=self._capacity_bytes)
        if capacity_bytes != self._capacity_bytes:
            self.close()
            try:
                self.device_address = int(call("cudaMalloc", capacity_bytes))
                self._host_address = int(call("cudaHostAlloc", capacity_bytes, cuda_runtime().cudaHostAllocDefault))
            except MachineError:
                self.close()
                raise
            self._capacity_bytes = capacity_bytes

    def host_view(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """The start of the pinned buffer as an array, until the next :meth:`reserve` or :meth:`close`."""
        memory = (ctypes.c_byte * self._capacity_bytes).from_address(self._host_address)
        return np.ndarray(shape, dtype=dtype, buffer=memoryview(memory))

    def upload(self, array: Array, *, stream: CudaStream) -> None:
        """Stage ``array``, for which :meth:`reserve` made room, and enqueue its copy to the device."""
        self.host_view(array.shape, array.dtype.newbyteorder("="))[...] = array
        if array.nbytes:
            stream.copy(self.device_address, self._host_address, array.nbytes, to_device=True)

    def enqueue_download(self, size_bytes: int, *, stream: CudaStream) -> None:
        """Enqueue the copy to the pinned buffer; read :meth:`host_view` once the stream is synchronized."""
        if size_bytes:
            stream.copy(self._host_address, self.device_address, size_bytes, to_device=False)

    def close(self) -> None:
        """Free both buffers. Safe to call twice."""
        device_address, self.device_address = self.device_address, 0
        host_address, self._host_address = self._host_address, 0
        self._capacity_bytes = 0
        try:
            if device_address:
                call("cudaFree", device_address)
        finally:
            if host_address:
                call("cudaFreeHost", host_address)

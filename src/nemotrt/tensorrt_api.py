"""TensorRT 10, TensorRT 11 and TensorRT-RTX as one API: the only module that knows them apart.

They share one Python interface. What differs is found by probing for it, never by comparing versions:

    feature                       tensorrt 10.x    tensorrt 11.x    tensorrt_rtx
    strongly typed networks       creation flag    the only kind    creation flag
    GPU an engine is built for    the present one  the present one  named on the config, absent or present

FP16, INT8 and calibration flags are never touched: TensorRT 11 removed them, and precision is written into
the graph. The library keeps one logger per process (a second one is ignored with a warning), so there is one
for each library here too; it prints nothing and hands errors and warnings to whoever is listening, see
:meth:`TensorRTApi.captured_log`.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

from nemotrt.errors import MachineError, UsageError

RuntimeName = Literal["tensorrt", "tensorrt-rtx"]

CURRENT_GPU = "current"
"""Build for the GPU of this machine, whatever it is."""

_MODULES: dict[RuntimeName, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS: dict[RuntimeName, str] = {"tensorrt": "nemotrt[tensorrt]", "tensorrt-rtx": "nemotrt[rtx]"}
_TITLES: dict[RuntimeName, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


@dataclass
class Log:
    """What a library said during one stretch of work, in order and without repetitions."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, severity: str, text: str) -> None:
        """Keep ``text``, unless ``severity`` is below a warning."""
        kept = {"INTERNAL_ERROR": self.errors, "ERROR": self.errors, "WARNING": self.warnings}.get(severity)
        if kept is not None and text not in kept:
            kept.append(text)


class TensorRTApi:
    """One loaded TensorRT library. Get it from :func:`load_api`.

    ``module`` is the library itself, for everything that the three have in common.
    """

    def __init__(self, name: RuntimeName, module: Any) -> None:
        self.name: RuntimeName = name
        self.module = module
        self._listeners: list[Log] = []
        self.logger = _logger_of(module, self._listeners)

    @property
    def title(self) -> str:
        """The name people use: ``TensorRT-RTX``."""
        return _TITLES[self.name]

    @property
    def version(self) -> str:
        """The library's own version: ``1.7.1.116``."""
        return str(self.module.__version__)

    @contextmanager
    def captured_log(self) -> Iterator[Log]:
        """Collect errors and warnings while the block runs.

        The library does not say which object a message belongs to: what another thread of this process does
        at the same time is in the log too.
        """
        log = Log()
        self._listeners.append(log)
        try:
            yield log
        finally:
            # By identity: two empty logs are equal.
            self._listeners[:] = [listener for listener in self._listeners if listener is not log]

    def create_builder(self) -> Any:
        """A builder that logs to :meth:`captured_log`."""
        return self.module.Builder(self.logger)

    def create_runtime(self) -> Any:
        """A runtime that deserializes plans. Needs a GPU: ask :func:`can_run` first."""
        return self.module.Runtime(self.logger)

    def create_network(self, builder: Any) -> Any:
        """An empty strongly typed network: every tensor has the type that the graph gives it."""
        kinds = getattr(self.module, "NetworkDefinitionCreationFlag", None)
        flag = getattr(kinds, "STRONGLY_TYPED", None)
        return builder.create_network(0 if flag is None else 1 << int(flag))

    def create_parser(self, network: Any) -> Any:
        """An ONNX parser that fills ``network``."""
        return self.module.OnnxParser(network, self.logger)

    def set_tf32(self, config: Any, *, enabled: bool) -> None:
        """TF32 rounds FP32 products to 10 bits of mantissa; libraries switch it on by default."""
        flag = getattr(self.module.BuilderFlag, "TF32", None)
        if flag is not None:
            (config.set_flag if enabled else config.clear_flag)(flag)

    @property
    def builds_without_gpu(self) -> bool:
        """Whether the target GPU is named on the builder config, so that it need not be in this machine."""
        return hasattr(self.module.IBuilderConfig, "set_compute_capability")

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """Possible targets (``"8.9"``); empty where engines are built for the GPU present."""
        return tuple(self._capability_members()) if self.builds_without_gpu else ()

    def set_compute_capabilities(self, config: Any, wanted: Sequence[str]) -> None:
        """Build for the GPUs in ``wanted`` (``"8.9"`` or ``"current"``); empty leaves the library's default.

        Raises:
            UsageError: a capability that this library cannot build for.
        """
        targets = tuple(dict.fromkeys(wanted))
        self.check_compute_capabilities(targets)
        if not targets or not self.builds_without_gpu:
            return
        members = self._capability_members() | {CURRENT_GPU: self.module.ComputeCapability.CURRENT}
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(members[target], index)

    def check_compute_capabilities(self, wanted: Sequence[str]) -> None:
        """Refuse what :meth:`set_compute_capabilities` would, before anything was loaded or built.

        Raises:
            UsageError: a capability that this library cannot build for.
        """
        targets = tuple(dict.fromkeys(wanted))
        if not targets:
            return
        if not self.builds_without_gpu:
            if targets != (CURRENT_GPU,):
                raise UsageError(
                    f"{self.title} builds only for the GPU of the machine it runs on",
                    found=f"compute capability {', '.join(targets)} was asked for",
                    fix="leave the compute capability out, or build with TensorRT-RTX",
                )
            return
        known = (*self.compute_capabilities, CURRENT_GPU)
        unknown = [target for target in targets if target not in known]
        if unknown:
            raise UsageError(
                f"{self.title} {self.version} cannot build for compute capability {', '.join(unknown)}",
                fix=f"choose from: {', '.join(known)}",
            )

    def _capability_members(self) -> dict[str, Any]:
        members = self.module.ComputeCapability.__members__
        return {capability_from_digits(name[2:]): member for name, member in members.items() if name[:2] == "SM"}


def capability_from_digits(digits: str) -> str:
    """``"89"`` -> ``"8.9"``, ``"120"`` -> ``"12.0"``."""
    return f"{digits[:-1]}.{digits[-1]}"


@cache
def load_api(name: RuntimeName) -> TensorRTApi:
    """The library called ``name``, imported on first use.

    Raises:
        MachineError: it is not installed, or is installed and does not load; says what to install.
    """
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as exc:
        raise MachineError(
            f"{_TITLES[name]} is not installed",
            where=sys.executable,
            found=str(exc),
            fix=f"pip install '{_EXTRAS[name]}'",
        ) from exc
    except (ImportError, OSError) as exc:
        raise MachineError(
            f"{_TITLES[name]} is installed but does not load",
            where=sys.executable,
            found=str(exc),
            fix=f"pip install --force-reinstall '{_EXTRAS[name]}'",
        ) from exc
    return TensorRTApi(name, module)


def available_runtimes() -> tuple[RuntimeName, ...]:
    """The libraries that load on this machine, TensorRT first."""
    loaded: list[RuntimeName] = []
    for name in get_args(RuntimeName):
        with suppress(MachineError):
            load_api(name)
            loaded.append(name)
    return tuple(loaded)


def best_runtime() -> RuntimeName | None:
    """What to build with where nobody said: TensorRT on a GPU host, else TensorRT-RTX, which needs no GPU to build."""
    available = available_runtimes()
    if "tensorrt" in available and can_run():
        return "tensorrt"
    return "tensorrt-rtx" if "tensorrt-rtx" in available else None


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU that the driver of this machine reports."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True)
class GpuReport:
    """The GPUs of this machine, or the ``reason`` why none. ``cuda_version``: what the driver supports."""

    gpus: tuple[Gpu, ...]
    cuda_version: str | None
    reason: str

    def __bool__(self) -> bool:
        return bool(self.gpus)


def can_run() -> GpuReport:
    """Whether an engine can be executed here: true where the driver reports a GPU.

    Asks the CUDA driver itself through ``ctypes``, so that it answers with no CUDA package installed.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return GpuReport((), None, "no NVIDIA driver is installed")
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    status = driver.cuInit(0)
    count = ctypes.c_int()
    if status == 0:
        status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return GpuReport((), cuda_version, f"the NVIDIA driver reports CUDA error {status}")
    gpus = tuple(_gpu(driver, ordinal) for ordinal in range(count.value))
    return GpuReport(gpus, cuda_version, f"{len(gpus)} GPU" if gpus else "the NVIDIA driver reports no GPU")


def _gpu(driver: ctypes.CDLL, ordinal: int) -> Gpu:
    major_attribute, minor_attribute = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory_bytes = ctypes.create_string_buffer(128), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), major_attribute, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), minor_attribute, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory_bytes), device)
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", memory_bytes.value)


def _logger_of(module: Any, listeners: list[Log]) -> Any:
    """The library's logger: prints nothing, passes messages to ``listeners``."""

    class Logger(module.ILogger):  # type: ignore[misc]  # the base is known only once the library is loaded
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            for listener in tuple(listeners):
                listener.add(severity.name, text)

    return Logger()

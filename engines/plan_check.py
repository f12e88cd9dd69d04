"""What is compared before a plan runs: its manifest with this machine, then the plan with its manifest.

    manifest + Host           check_host        before anything is deserialized: wrong GPU, wrong library
    manifest + PlanInterface  check_interface   after it: tensors and profiles other than the manifest says

Both are plain comparisons of values, so that a machine without a GPU can test them.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemotrt.engines.manifest import EngineManifest
from nemotrt.engines.profile_router import ProfileRouter
from nemotrt.errors import EngineError
from nemotrt.tensorrt_api import Gpu, RuntimeName

# Names of TensorRT's DataType by those of the contract that NumPy has too.
TENSORRT_DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int64": "INT64",
    "int32": "INT32",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class Host:
    """What a plan would run on."""

    runtime: RuntimeName
    runtime_version: str
    gpu: Gpu


@dataclass(frozen=True)
class PlanTensor:
    """An input or output as the deserialized plan describes it.

    Attributes:
        dtype: name of the TensorRT ``DataType``.
        on_device: false for a shape tensor, which TensorRT reads on the host.
        profile_shapes: minimum, optimum and maximum shape by profile; empty for outputs.
    """

    name: str
    is_input: bool
    dtype: str
    on_device: bool
    profile_shapes: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class PlanInterface:
    """All tensors of a deserialized plan, and how many optimization profiles it has."""

    profiles: int
    tensors: tuple[PlanTensor, ...]


def check_host(manifest: EngineManifest, host: Host) -> None:
    """Refuse a plan that was built for something else than ``host``.

    A TensorRT plan holds kernels timed on one GPU model; TensorRT-RTX compiles for any GPU of the named
    compute capabilities. Neither reads the plans of another version.

    Raises:
        EngineError: another library, version, compute capability or GPU model.
    """
    _demand(
        manifest.runtime == host.runtime,
        "the engine was built with another library",
        found=f"built with {manifest.runtime}, asked to run with {host.runtime}",
        fix=f"run it with {manifest.runtime}, or build it again with {host.runtime}",
        manifest=manifest,
    )
    _demand(
        manifest.runtime_version == host.runtime_version,
        f"the engine was built with another version of {host.runtime}",
        found=f"built with {manifest.runtime_version}, {host.runtime_version} is installed",
        fix=f"build it again, or install {host.runtime} {manifest.runtime_version}",
        manifest=manifest,
    )
    capability = host.gpu.compute_capability
    _demand(
        not manifest.compute_capabilities or capability in manifest.compute_capabilities,
        "the engine was built for other GPUs",
        found=f"built for compute capability {', '.join(manifest.compute_capabilities)};"
        f" {host.gpu.name} has {capability}",
        fix=f"build it again for compute capability {capability}",
        manifest=manifest,
    )
    _demand(
        manifest.gpu in (None, host.gpu.name),
        "the engine was tuned on another GPU model",
        found=f"tuned on {manifest.gpu}, this is {host.gpu.name}",
        fix="build it again on this GPU",
        manifest=manifest,
    )


def check_interface(manifest: EngineManifest, interface: PlanInterface) -> None:
    """Refuse a plan whose tensors, types or optimization profiles are not those of its manifest.

    Raises:
        EngineError: naming the first difference.
    """
    _demand(
        interface.profiles == len(manifest.ranges),
        "the plan has another number of optimization profiles than its manifest",
        found=f"{interface.profiles}, {len(manifest.ranges)} recorded",
        manifest=manifest,
    )
    expected = {spec.name: True for spec in manifest.inputs} | {spec.name: False for spec in manifest.outputs}
    present = {tensor.name: tensor.is_input for tensor in interface.tensors}
    _demand(
        present == expected,
        "the plan has other inputs or outputs than its manifest",
        found=", ".join(f"{'in' if is_input else 'out'}put {name}" for name, is_input in present.items()),
        manifest=manifest,
    )
    specs = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
    router = ProfileRouter(manifest.inputs, manifest.ranges)
    for tensor in interface.tensors:
        spec = specs[tensor.name]
        _demand(
            tensor.dtype == TENSORRT_DTYPES.get(spec.dtype),
            f"{tensor.name!r} has another type in the plan than its manifest says, or one NumPy lacks",
            found=f"{tensor.dtype}, {spec.dtype} recorded",
            manifest=manifest,
        )
        _demand(
            tensor.on_device,
            f"{tensor.name!r} is a shape tensor, which TensorRT reads on the host before a run",
            fix="export the checkpoint again: lengths must be used as data, not as shapes",
            manifest=manifest,
        )
        for profile, shapes in enumerate(tensor.profile_shapes if _is_dynamic(spec.shape) else ()):
            recorded = router.input_shapes(profile, spec)
            _demand(
                shapes == recorded,
                f"profile {profile} of the plan has another range for {tensor.name!r} than its manifest",
                found=f"{shapes}, {recorded} recorded",
                manifest=manifest,
            )


def _is_dynamic(shape: tuple[int | str, ...]) -> bool:
    return any(isinstance(axis, str) for axis in shape)


def _demand(
    holds: bool,
    what: str,
    *,
    manifest: EngineManifest,
    found: str | None = None,
    fix: str = "delete the engine and build it again",
) -> None:
    if not holds:
        raise EngineError(what, where=f"{manifest.component} engine {manifest.key[:16]}", found=found, fix=fix)

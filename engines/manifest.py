"""The manifest of an engine: what decided the plan, what was built, and what is known about it since.

    EngineIdentity   everything that decides the plan   -> key, its SHA-256
    EngineBuild      + what the builder reported
    EngineManifest   + the digest of the plan and the state of its verification, as stored beside it

On disk the manifest is sealed: ``{"manifest": {...}, "sha256": "..."}``. A changed byte is therefore an error
and never another engine, and the key is recomputed from the content each time it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from nemotrt.bundle import Bundle, ComponentName, Family, Precision, Sha256, TensorSpec
from nemotrt.errors import EngineError
from nemotrt.profiles import AxisRange
from nemotrt.tensorrt_api import CURRENT_GPU, Gpu, RuntimeName

SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 16 << 20

# Counted up when the same identity would be built into another plan, so that no older engine is taken for it.
BUILD_RECIPE = 1

ComputeCapability = Annotated[str, Field(pattern=r"^[1-9][0-9]?\.[0-9]$")]
Ranges = dict[str, AxisRange]
VerificationState = Literal["built, not verified", "verified", "failed"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    """Immutable, no unknown fields, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class EngineIdentity(_Record):
    """Everything that decides the plan. Two equal identities are the same engine.

    Attributes:
        graph_files: SHA-256 of the graph and of its weights, by file name.
        ranges: by optimization profile, the range of each symbolic axis of ``nemotrt.bundle``.
        compute_capabilities: of the GPUs the plan was built for (``8.9``), sorted; empty: the default.
        gpu: model of the GPU whose kernels were timed for the plan; ``None`` if none was.
        tf32: whether FP32 products may be rounded to TF32.
    """

    family: Family
    component: ComponentName
    precision: Precision
    graph_files: dict[str, Sha256] = Field(min_length=1)
    ranges: tuple[Ranges, ...] = Field(min_length=1)
    runtime: RuntimeName
    runtime_version: str = Field(min_length=1)
    compute_capabilities: tuple[ComputeCapability, ...]
    gpu: str | None
    tf32: bool

    @field_validator("compute_capabilities")
    @classmethod
    def _are_sorted_and_unique(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if list(values) != sorted(set(values)):
            raise ValueError(f"{list(values)} is not sorted, or names one twice")
        return values

    def fingerprint(self) -> str:
        """The key of the engine: 64 hexadecimal digits, the same in every process and version of Python."""
        decided = self.model_dump(mode="json", include=set(EngineIdentity.model_fields))
        return _sha256_of_json({"recipe": BUILD_RECIPE, **decided})


class EngineBuild(EngineIdentity):
    """An identity and what the builder reported when it made the plan.

    Attributes:
        layers: network layers after parsing, before TensorRT fuses them.
        inputs, outputs: of the component, with symbolic axes; the runner checks the plan against them.
        tools: name -> version of what took part (nemotrt, onnx, python, ...).
    """

    profile: str
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    layers: int = Field(gt=0)
    build_seconds: Finite = Field(ge=0)
    created: AwareDatetime
    warnings: tuple[str, ...]
    tools: dict[str, str]

    @model_validator(mode="after")
    def _every_symbolic_axis_has_a_range(self) -> EngineBuild:
        axes = {axis for spec in self.inputs for axis in spec.shape if isinstance(axis, str)}
        for index, ranges in enumerate(self.ranges):
            if axes - ranges.keys():
                raise ValueError(f"profile {index} has no range for {sorted(axes - ranges.keys())}")
        return self


class Verification(_Record):
    """What a comparison on a GPU found about this plan. It starts unverified: no build is trusted.

    Attributes:
        reason: why it is unverified, or why it failed.
        reference: label of the runner it was compared with.
        gpu: name of the GPU the comparison ran on; a verdict holds for that GPU only.
        figures: measured differences by name (``min_frame_cosine``, ...).
    """

    state: VerificationState
    reason: str | None = None
    reference: str | None = None
    gpu: str | None = None
    checked: AwareDatetime | None = None
    figures: dict[str, Finite] = {}

    @model_validator(mode="after")
    def _a_verdict_says_where_it_comes_from(self) -> Verification:
        if self.state != "built, not verified" and None in (self.reference, self.gpu, self.checked):
            raise ValueError(f"{self.state!r} without reference, gpu and time of the comparison")
        if self.state != "verified" and not self.reason:
            raise ValueError(f"{self.state!r} without a reason")
        return self


NOT_COMPARED = Verification(state="built, not verified", reason="not compared on a GPU yet")


class EngineManifest(EngineBuild):
    """All that is known of a stored plan. ``key`` is the identity's fingerprint, checked on reading."""

    schema_version: Literal[1]
    key: Sha256
    size_bytes: int = Field(gt=0)
    plan_sha256: Sha256
    verification: Verification

    @model_validator(mode="after")
    def _key_is_the_fingerprint(self) -> EngineManifest:
        if self.key != self.fingerprint():
            raise ValueError(f"key {self.key[:16]}... is not the fingerprint of what the manifest describes")
        return self

    def with_verification(self, verification: Verification) -> EngineManifest:
        """The same engine with another verdict."""
        return self.model_copy(update={"verification": verification})


class _SealedManifest(_Record):
    """The file: a manifest, and the digest that proves it was not altered since it was written."""

    manifest: EngineManifest
    sha256: Sha256

    @model_validator(mode="after")
    def _is_unaltered(self) -> _SealedManifest:
        if self.sha256 != _seal(self.manifest):
            raise ValueError("the content was altered since nemotrt wrote it: its digest differs")
        return self


def identity_from_bundle(
    bundle: Bundle,
    component: ComponentName,
    *,
    ranges: Iterable[Mapping[str, AxisRange]],
    runtime: RuntimeName,
    runtime_version: str,
    compute_capabilities: Iterable[str],
    gpu: Gpu | None = None,
    tf32: bool = False,
) -> EngineIdentity:
    """The identity of the engine that ``component`` of ``bundle`` becomes.

    Args:
        bundle: with the digests of its metadata, which :func:`nemotrt.bundle.verify_digests` proves.
        component: one that the bundle has.
        ranges: one mapping per optimization profile; the axes that the component's inputs have are kept.
        runtime: the library that builds.
        runtime_version: the version it reports.
        compute_capabilities: as given to the builder; ``current`` becomes that of ``gpu``.
        gpu: the GPU of this machine. TensorRT times kernels on it; to TensorRT-RTX it is only ``current``.
        tf32: as given to the builder.

    Raises:
        BundleError: the bundle has no such component.
        EngineError: a value that no engine can have, such as ``current`` where there is no GPU.
    """
    spec = bundle.component(component)
    axes = {axis for tensor in spec.inputs for axis in tensor.shape}
    timed_on = gpu if runtime == "tensorrt" else None
    targets = {timed_on.compute_capability} if timed_on else set(compute_capabilities)
    if gpu and CURRENT_GPU in targets:
        targets = targets - {CURRENT_GPU} | {gpu.compute_capability}
    try:
        return EngineIdentity(
            family=bundle.meta.family,
            component=component,
            precision=bundle.meta.precision,
            graph_files={name: bundle.meta.files[name].sha256 for name in spec.files},
            ranges=tuple({axis: r for axis, r in profile.items() if axis in axes} for profile in ranges),
            runtime=runtime,
            runtime_version=runtime_version,
            compute_capabilities=tuple(sorted(targets)),
            gpu=timed_on.name if timed_on else None,
            tf32=tf32,
        )
    except ValidationError as exc:
        raise _engine_error("the engine cannot be described", exc, where=bundle.path, fix=None) from exc


def manifest_from_build(build: EngineBuild, plan: bytes | memoryview) -> EngineManifest:
    """The manifest of a plan that was just built and not compared with anything yet."""
    return EngineManifest(
        **dict(build),
        schema_version=1,
        key=build.fingerprint(),
        size_bytes=memoryview(plan).nbytes,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        verification=NOT_COMPARED,
    )


def json_from_manifest(manifest: EngineManifest) -> bytes:
    """The sealed manifest as it is stored: UTF-8, readable, ending in a newline."""
    sealed = _SealedManifest(manifest=manifest, sha256=_seal(manifest))
    return sealed.model_dump_json(indent=2).encode() + b"\n"


def manifest_from_json(document: bytes, *, where: str | PathLike[str]) -> EngineManifest:
    """Read a sealed manifest; ``where`` is its path, for the message.

    Raises:
        EngineError: not JSON, another schema version, unknown or missing fields, or content that was altered.
    """
    fix = "delete the engine's folder and build it again with this version of nemotrt"
    if len(document) > MAX_MANIFEST_BYTES:
        raise EngineError(
            "this is not the manifest of an engine",
            where=where,
            found=f"{len(document)} bytes, at most {MAX_MANIFEST_BYTES} expected",
            fix=fix,
        )
    try:
        return _SealedManifest.model_validate_json(document).manifest
    except ValidationError as exc:
        what = f"the engine's manifest does not follow schema version {SCHEMA_VERSION}"
        raise _engine_error(what, exc, where=where, fix=fix) from exc


def _engine_error(what: str, exc: ValidationError, *, where: str | PathLike[str], fix: str | None) -> EngineError:
    problem = exc.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or "document"
    return EngineError(what, where=f"{where}: {field}", found=problem["msg"], fix=fix)


def _seal(manifest: EngineManifest) -> str:
    return _sha256_of_json(manifest.model_dump(mode="json"))


def _sha256_of_json(value: Mapping[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()

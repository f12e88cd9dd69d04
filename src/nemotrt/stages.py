"""The stages that make things, each done once: what is already there and still valid is reused.

    checkpoint --ensure_bundle--> FP32 bundle --ensure_fp16--> FP16 bundle --ensure_engines--> engine store

Valid means: made from the same bytes by the same version. A folder that is damaged or stale is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from nemotrt import __version__
from nemotrt.bundle import Bundle, BundleMeta, ComponentName, load_bundle, sha256_of_file, verify_digests
from nemotrt.bundle_writer import remove_leftovers
from nemotrt.engines.manifest import EngineBuild, EngineIdentity, identity_from_bundle
from nemotrt.engines.store import EngineStore, StoredEngine
from nemotrt.errors import BundleError, EngineError, MachineError, UsageError
from nemotrt.export import ExportOptions, export_isolated
from nemotrt.export.options import Notice, TakenOver
from nemotrt.profiles import AxisRange, Profile, axis_ranges
from nemotrt.tensorrt_api import RuntimeName, best_runtime, can_run, load_api
from nemotrt.trt.build import BuildRequest, build_engine, check_target
from nemotrt.trt.precision import cast_bundle

Progress = Callable[[str, float], None]
"""Called with what is at hand and the fraction of it that is done, 0 to 1."""

NOT_BUILT: frozenset[ComponentName] = frozenset({"preprocessor"})
"""Components that always run on ONNX Runtime: the front end is a few small operators in FP32."""

NOT_BUILT_UNASKED: frozenset[ComponentName] = frozenset(
    {"encoder_streaming", "ctc_head", "decoder_joint", "rnnt_step", "greedy_step", "encoder_nomask", "ctc_nomask"}
)
"""Components that nothing here runs on a GPU yet."""


@dataclass(frozen=True)
class MadeBundle:
    """A bundle, and whether it was there already."""

    bundle: Bundle
    reused: bool


@dataclass(frozen=True)
class MadeEngine:
    """A stored engine, and whether it was there already."""

    engine: StoredEngine
    reused: bool


@dataclass(frozen=True)
class EngineOrder:
    """How to build: one optimization profile per entry of ``profiles``.

    ``compute_capabilities`` as in ``BuildRequest``; empty leaves it to the library.
    """

    profiles: tuple[Profile, ...]
    runtime: RuntimeName
    compute_capabilities: tuple[str, ...] = ()


def runtime_or_best(runtime: RuntimeName | None) -> RuntimeName:
    """``runtime``, or the best one of this machine.

    Raises:
        MachineError: none was named and none is installed.
    """
    chosen = runtime or best_runtime()
    if chosen is None:
        raise MachineError(
            "no TensorRT is installed",
            fix="pip install 'nemotrt[rtx]' (builds without a GPU), or 'nemotrt[tensorrt]' on a GPU host",
        )
    return chosen


def proven_bundle(path: Path) -> Bundle:
    """The bundle at ``path``, with every byte the one that was exported.

    Raises:
        BundleError: it is not a bundle, or a file is missing, foreign or altered.
    """
    bundle = load_bundle(path)
    verify_digests(bundle)
    return bundle


def ensure_bundle(checkpoint: Path, destination: Path, *, on_progress: Progress) -> MadeBundle:
    """The FP32 bundle of ``checkpoint`` at ``destination``, exported in a child process. Raises as that does."""
    on_progress("reading the checkpoint", 0.0)
    existing = _sound_bundle(destination)
    if existing is not None and checkpoint.is_file():
        same_tool = existing.meta.tools.get("nemotrt") == __version__
        same_options = existing.meta.exported == ExportOptions().record()
        if same_tool and same_options and existing.meta.checkpoint_sha256 == sha256_of_file(checkpoint):
            return _reused(existing)
    bundle = export_isolated(
        checkpoint,
        destination,
        overwrite=True,
        on_progress=lambda name: on_progress(f"writing {name}", 0.5),
        on_notice=lambda notice: _tell_taken_over(notice, on_progress),
    )
    return MadeBundle(bundle, reused=False)


def _tell_taken_over(notice: Notice, on_progress: Progress) -> None:
    if isinstance(notice, TakenOver):
        on_progress(f"taken over: {', '.join(notice.components)}", 0.5)


def ensure_fp16(source: Bundle, destination: Path, *, on_progress: Progress) -> MadeBundle:
    """The FP16 twin of ``source`` at ``destination``. Raises as ``cast_bundle``."""
    on_progress("typing the graphs", 0.0)
    existing = _sound_bundle(destination)
    if existing is not None and is_cast_of(source.meta, existing.meta):
        return _reused(existing)
    bundle = cast_bundle(
        source, destination, overwrite=True, on_component=lambda name, _: on_progress(f"wrote {name}", 0.5)
    )
    return MadeBundle(bundle, reused=False)


def ensure_engines(
    bundle: Bundle,
    order: EngineOrder,
    store: EngineStore,
    *,
    components: Sequence[str] = (),
    on_progress: Progress,
) -> tuple[MadeEngine, ...]:
    """Engines of ``components`` (all that run on a GPU, if none are named) of a proven ``bundle`` in ``store``.

    Raises:
        BundleError, UsageError: a component that does not exist or is never built; GPUs that the library does not
            build for; a store that is a file.
        ProfileError: a profile that the model cannot have.
        GraphError, MachineError: as ``build_engine``.
    """
    names = _buildable(bundle, components)
    check_target(order.runtime, order.compute_capabilities)
    _refuse_file(store.root)
    return tuple(
        _ensure_engine(bundle, name, order, store, on_progress=_part(on_progress, name, index, len(names)))
        for index, name in enumerate(names)
    )


def _ensure_engine(
    bundle: Bundle, name: ComponentName, order: EngineOrder, store: EngineStore, *, on_progress: Progress
) -> MadeEngine:
    identity = _identity(bundle, name, order)
    stored = _find(store, identity)
    if stored is not None:
        return MadeEngine(stored, reused=True)
    request = BuildRequest(
        graph=bundle.graph_path(name),
        component=bundle.component(name),
        ranges=_ranges(bundle, order),
        runtime=order.runtime,
        compute_capabilities=order.compute_capabilities,
    )
    result = build_engine(request, on_progress=on_progress)
    build = EngineBuild(
        **dict(identity),
        profile=" + ".join(profile.name for profile in order.profiles),
        inputs=bundle.component(name).inputs,
        outputs=bundle.component(name).outputs,
        layers=result.layers,
        build_seconds=result.seconds,
        created=datetime.now(UTC),
        warnings=result.warnings,
        tools={package: version(package) for package in ("nemotrt", "onnx", "onnx-ir")},
    )
    return MadeEngine(store.put(build, result.plan), reused=False)


def _identity(bundle: Bundle, name: ComponentName, order: EngineOrder) -> EngineIdentity:
    gpus = can_run().gpus
    return identity_from_bundle(
        bundle,
        name,
        ranges=_ranges(bundle, order),
        runtime=order.runtime,
        runtime_version=load_api(order.runtime).version,
        compute_capabilities=order.compute_capabilities,
        gpu=gpus[0] if gpus else None,
    )


def _ranges(bundle: Bundle, order: EngineOrder) -> tuple[dict[str, AxisRange], ...]:
    return tuple(
        {str(axis): limits for axis, limits in axis_ranges(profile, bundle.meta.geometry).items()}
        for profile in order.profiles
    )


def _find(store: EngineStore, identity: EngineIdentity) -> StoredEngine | None:
    """The stored engine; a damaged one counts as absent and is replaced by the build."""
    try:
        engine = store.find(identity.fingerprint())
        if engine is not None:
            store.load_plan(engine)
    except EngineError:
        return None
    return engine


def _buildable(bundle: Bundle, wanted: Iterable[str]) -> tuple[ComponentName, ...]:
    for name in wanted:
        bundle.component(name)
        if name in NOT_BUILT:
            raise UsageError(
                f"{name} is not built into an engine",
                where=bundle.path,
                fix="leave it out: it runs on ONNX Runtime in front of the engines",
            )
    names = set(wanted) or set(bundle.meta.components) - NOT_BUILT - NOT_BUILT_UNASKED
    return tuple(name for name in bundle.meta.components if name in names)


def _refuse_file(store: Path) -> None:
    """An engine takes minutes to build: learn before that there is nowhere to put it."""
    if store.exists() and not store.is_dir():
        raise UsageError("the engine store is a folder", where=store, found="a file", fix="give another --engines")


def _sound_bundle(path: Path) -> Bundle | None:
    """The bundle that is there already."""
    try:
        return proven_bundle(path)
    except BundleError:
        return None


def _reused(bundle: Bundle) -> MadeBundle:
    """Its writer may have been killed after it was published, before it tidied up."""
    remove_leftovers(bundle.path)
    return MadeBundle(bundle, reused=True)


def is_cast_of(source: BundleMeta, cast: BundleMeta) -> bool:
    """Whether ``cast`` is the FP16 twin of exactly this ``source``."""
    return cast.precision == "fp16" and cast.cast_from == source.fingerprint()


def _part(on_progress: Progress, name: str, index: int, total: int) -> Progress:
    return lambda phase, fraction: on_progress(f"{name}: {phase}", (index + fraction) / total)

"""The stages that make things: made once, made again when stale or damaged, refused before minutes are spent."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotrt import stages
from nemotrt.bundle import Bundle, load_bundle
from nemotrt.engines.store import EngineStore
from nemotrt.errors import ArchiveError, BundleError, MachineError, ProfileError, UsageError
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint
from nemotrt.profiles import Profile, load_profile
from nemotrt.stages import (
    EngineOrder,
    ensure_bundle,
    ensure_engines,
    ensure_fp16,
    is_cast_of,
    proven_bundle,
    runtime_or_best,
)


def silent(_what: str, _fraction: float) -> None:
    """Nobody listens."""


def flip_a_byte(path: Path, offset: int = 3000) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 0xFF]))


@pytest.fixture
def bundle(tdt_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that may be damaged."""
    return load_bundle(Path(shutil.copytree(tdt_bundle.path, tmp_path / "bundle")))


@pytest.fixture(scope="module")
def fp16_bundle(tdt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return ensure_fp16(tdt_bundle, tmp_path_factory.mktemp("typed") / "fp16", on_progress=silent).bundle


@pytest.fixture
def demo() -> Profile:
    return load_profile("demo")


def order(profile: Profile, *capabilities: str) -> EngineOrder:
    pytest.importorskip("tensorrt_rtx")
    return EngineOrder((profile,), "tensorrt-rtx", capabilities)


# --- bundles


def test_a_bundle_is_exported_once(tdt_checkpoint: Path, bundle: Bundle) -> None:
    made = ensure_bundle(tdt_checkpoint, bundle.path, on_progress=silent)
    assert made.reused
    assert made.bundle.meta == bundle.meta


@pytest.mark.parametrize("damage", ["byte", "missing file", "foreign file", "no metadata"])
def test_a_damaged_bundle_is_exported_again_to_the_same_bytes(
    tdt_checkpoint: Path, bundle: Bundle, damage: str
) -> None:
    match damage:
        case "byte":
            flip_a_byte(bundle.path / "encoder.onnx.data")
        case "missing file":
            (bundle.path / "joint.onnx").unlink()
        case "foreign file":
            (bundle.path / "notes.txt").write_text("mine")
        case "no metadata":
            shutil.rmtree(bundle.path)
    made = ensure_bundle(tdt_checkpoint, bundle.path, on_progress=silent)
    assert not made.reused
    assert proven_bundle(bundle.path).meta == bundle.meta


def test_another_checkpoint_or_another_version_is_exported_again(
    tdt_checkpoint: Path, hybrid_checkpoint: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ensure_bundle(hybrid_checkpoint, bundle.path, on_progress=silent)
    assert (other.reused, other.bundle.meta.name) == (False, "fastconformer-hybrid-streaming")
    assert not ensure_bundle(tdt_checkpoint, bundle.path, on_progress=silent).reused
    monkeypatch.setattr(stages, "__version__", "99.0")
    assert not ensure_bundle(tdt_checkpoint, bundle.path, on_progress=silent).reused


def test_a_bundle_without_its_checkpoint_is_not_taken_for_that_of_another_one(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(ArchiveError, match="no such checkpoint"):
        ensure_bundle(tmp_path / "gone.nemo", bundle.path, on_progress=silent)
    assert proven_bundle(bundle.path).meta == bundle.meta


def test_the_fp16_twin_follows_its_source(bundle: Bundle, hybrid_bundle: Bundle, fp16_bundle: Bundle) -> None:
    twin = Path(shutil.copytree(fp16_bundle.path, bundle.path.parent / "fp16"))
    assert is_cast_of(bundle.meta, fp16_bundle.meta)
    assert ensure_fp16(bundle, twin, on_progress=silent).reused
    flip_a_byte(twin / "encoder.onnx.data")
    assert not ensure_fp16(bundle, twin, on_progress=silent).reused
    assert proven_bundle(twin).meta == fp16_bundle.meta
    assert not is_cast_of(hybrid_bundle.meta, fp16_bundle.meta)
    assert not is_cast_of(bundle.meta, bundle.meta)


def test_what_a_killed_writer_left_is_removed_even_if_the_bundle_is_reused(
    tdt_checkpoint: Path, bundle: Bundle
) -> None:
    no_process = 2**22 + 1  # beyond the largest id of a process on Linux
    dead, alive = (bundle.path.with_name(f".bundle.{pid}.old.partial") for pid in (no_process, os.getppid()))
    for leftover in (dead, alive):
        shutil.copytree(bundle.path, leftover)
    assert ensure_bundle(tdt_checkpoint, bundle.path, on_progress=silent).reused
    assert (dead.exists(), alive.exists()) == (False, True)


def test_a_proven_bundle_has_no_altered_byte(bundle: Bundle) -> None:
    assert proven_bundle(bundle.path) == bundle
    flip_a_byte(bundle.path / "vocab.txt", offset=3)
    with pytest.raises(BundleError, match=r"vocab\.txt is not the file that was exported"):
        proven_bundle(bundle.path)


# --- engines


def test_an_engine_is_built_once_and_again_when_its_plan_is_damaged(
    fp16_bundle: Bundle, demo: Profile, tmp_path: Path
) -> None:
    store = EngineStore(tmp_path / "store")

    def build(*capabilities: str) -> stages.MadeEngine:
        (made,) = ensure_engines(
            fp16_bundle, order(demo, *capabilities), store, components=["joint"], on_progress=silent
        )
        return made

    first, second = build(), build()
    assert (first.reused, second.reused) == (False, True)
    assert first.engine == second.engine
    flip_a_byte(first.engine.plan_path)
    third = build()
    assert not third.reused
    assert third.engine.key == first.engine.key
    assert len(store.load_plan(third.engine)) == third.engine.manifest.size_bytes
    assert build("8.9").engine.key != first.engine.key
    assert len(store.entries()) == 2


def test_progress_names_the_component_and_never_falls(fp16_bundle: Bundle, demo: Profile, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    ensure_engines(
        fp16_bundle,
        order(demo),
        EngineStore(tmp_path / "store"),
        components=["predictor", "joint"],
        on_progress=lambda what, fraction: seen.append((what, fraction)),
    )
    fractions = [fraction for _, fraction in seen]
    assert {what.split(":")[0] for what, _ in seen} == {"predictor", "joint"}
    assert min(fractions) >= 0
    assert fractions[-1] == 1
    builds = [fraction for what, fraction in seen if what.endswith("build")]
    assert builds == sorted(builds)


@pytest.mark.parametrize(
    ("components", "error", "words"),
    [
        (["decoder"], BundleError, r"no component 'decoder'(.|\n)*encoder, predictor, joint"),
        (["preprocessor"], UsageError, "preprocessor is not built(.|\n)*ONNX Runtime"),
    ],
)
def test_only_components_that_run_on_a_gpu_are_built(
    fp16_bundle: Bundle, demo: Profile, tmp_path: Path, components: list[str], error: type, words: str
) -> None:
    with pytest.raises(error, match=words):
        ensure_engines(fp16_bundle, order(demo), EngineStore(tmp_path), components=components, on_progress=silent)


def test_what_cannot_be_built_is_refused_before_anything_is(fp16_bundle: Bundle, demo: Profile, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("mine")
    long = demo.model_copy(update={"seconds": demo.seconds.model_copy(update={"max": 4000.0})})
    calls: list[str] = []

    def build(profile: Profile, store: Path, *capabilities: str) -> None:
        ensure_engines(
            fp16_bundle,
            order(profile, *capabilities),
            EngineStore(store),
            on_progress=lambda what, _: calls.append(what),
        )

    with pytest.raises(UsageError, match="the engine store is a folder"):
        build(demo, occupied)
    with pytest.raises(UsageError, match=r"cannot build for compute capability 1\.0"):
        build(demo, tmp_path / "store", "1.0")
    with pytest.raises(ProfileError, match="at most 400"):
        build(long, tmp_path / "store")
    assert calls == []
    assert not (tmp_path / "store").exists()


def test_without_any_tensorrt_the_user_learns_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "best_runtime", lambda: None)
    assert runtime_or_best("tensorrt") == "tensorrt"
    with pytest.raises(MachineError, match=r"no TensorRT is installed(.|\n)*nemotrt\[rtx\]"):
        runtime_or_best(None)
    monkeypatch.setattr(stages, "best_runtime", lambda: "tensorrt-rtx")
    assert runtime_or_best(None) == "tensorrt-rtx"


@pytest.fixture
def _ctrl_c_interrupts() -> Iterator[None]:
    """Also where the tests were started in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_interrupts")
def test_ctrl_c_in_the_middle_of_a_build_stops_it_and_stores_nothing(
    fp16_bundle: Bundle, demo: Profile, tmp_path: Path
) -> None:
    """TensorRT swallows what its callbacks raise, and Ctrl-C strikes in one of them more often than not."""
    handler = signal.getsignal(signal.SIGINT)
    is_building = threading.Event()

    def interrupt() -> None:
        is_building.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    def on_progress(what: str, _fraction: float) -> None:
        if what.endswith("build"):
            is_building.set()

    ctrl_c = threading.Thread(target=interrupt)
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        ensure_engines(
            fp16_bundle, order(demo), EngineStore(tmp_path / "store"), components=["encoder"], on_progress=on_progress
        )
    ctrl_c.join()
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "store").exists()


def test_a_bundle_that_was_exported_with_other_options_is_not_taken_for_the_default_one(
    hybrid_checkpoint: Path, tmp_path: Path
) -> None:
    export_checkpoint(hybrid_checkpoint, tmp_path / "b", options=ExportOptions(choices=ModelChoices(lookahead=0)))
    made = ensure_bundle(hybrid_checkpoint, tmp_path / "b", on_progress=silent)
    assert not made.reused
    assert made.bundle.meta.encoder.attention_context == (70, 13)

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from engine_samples import PLAN, sample_build, sample_manifest

from nemotrt.engines import store as store_module
from nemotrt.engines.manifest import Verification, json_from_manifest
from nemotrt.engines.store import ABANDONED_AFTER_SECONDS, EngineStore, StoredEngine, load_plan, read_engine
from nemotrt.errors import EngineError, MachineError

VERIFIED = Verification(
    state="verified",
    reference="onnxruntime CPU",
    gpu="NVIDIA L4",
    checked=datetime(2026, 1, 2, tzinfo=UTC),
    figures={"min_frame_cosine": 0.99999},
)


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def engine(store: EngineStore) -> StoredEngine:
    return store.put(sample_build(), PLAN)


def test_what_is_put_is_found_again_with_its_plan(store: EngineStore, engine: StoredEngine) -> None:
    assert store.find(sample_build().fingerprint()) == engine
    assert store.entries() == (engine,)
    assert store.damaged() == ()
    assert store.load_plan(engine) == PLAN


def test_an_engine_lies_under_its_key_and_is_two_files(store: EngineStore, engine: StoredEngine) -> None:
    assert engine.path == store.root / engine.key[:2] / engine.key
    assert files_under(store.root) == {engine.path / "engine.plan", engine.path / "manifest.json"}


def test_an_engine_copied_elsewhere_is_still_an_engine(
    store: EngineStore, engine: StoredEngine, tmp_path: Path
) -> None:
    copy = engine.path.rename(tmp_path / "encoder-engine")
    assert load_plan(read_engine(copy)) == PLAN


def test_a_store_that_does_not_exist_yet_is_empty(store: EngineStore) -> None:
    assert store.entries() == ()
    assert store.find("0" * 64) is None
    assert not store.root.exists()


@pytest.mark.parametrize("key", ["", "../../etc", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_no_key_is_not_looked_up(store: EngineStore, key: str) -> None:
    with pytest.raises(EngineError, match="not the key"):
        store.find(key)


def test_an_empty_plan_is_not_stored(store: EngineStore) -> None:
    with pytest.raises(EngineError, match="empty"):
        store.put(sample_build(), b"")
    assert not store.root.exists()


def test_a_second_build_of_the_same_key_gets_the_first_plan(store: EngineStore, engine: StoredEngine) -> None:
    again = store.put(sample_build(build_seconds=99.0), b"the same engine, tuned another time")

    assert again == engine
    assert store.load_plan(again) == PLAN
    assert len(files_under(store.root)) == 2


def test_engines_of_other_keys_stand_side_by_side(store: EngineStore, engine: StoredEngine) -> None:
    other = store.put(sample_build(precision="fp32"), b"another plan")
    assert store.entries() == tuple(sorted((engine, other), key=lambda stored: stored.key))


def test_a_changed_byte_of_the_plan_is_refused_before_it_is_handed_out(
    store: EngineStore, engine: StoredEngine
) -> None:
    engine.plan_path.write_bytes(b"X" + PLAN[1:])
    with pytest.raises(EngineError, match="not the one that was built"):
        store.load_plan(engine)


@pytest.mark.parametrize("plan", [b"", PLAN[:-1], PLAN + b"x"])
def test_a_plan_of_another_size_is_refused_without_reading_it(
    store: EngineStore, engine: StoredEngine, plan: bytes
) -> None:
    engine.plan_path.write_bytes(plan)
    with pytest.raises(EngineError, match="wrong size"):
        store.load_plan(engine)
    with pytest.raises(EngineError, match="wrong size"):
        store.find(engine.key)


def test_a_plan_that_is_a_link_is_refused(store: EngineStore, engine: StoredEngine, tmp_path: Path) -> None:
    outside = engine.plan_path.rename(tmp_path / "elsewhere.plan")
    engine.plan_path.symlink_to(outside)
    with pytest.raises(EngineError, match="not a complete engine"):
        store.load_plan(engine)


@pytest.mark.parametrize("name", ["engine.plan", "manifest.json"])
def test_an_entry_with_a_missing_file_is_an_error_not_an_absence(
    store: EngineStore, engine: StoredEngine, name: str
) -> None:
    (engine.path / name).unlink()
    with pytest.raises(EngineError, match=name):
        store.find(engine.key)


def test_a_damaged_entry_does_not_hide_the_others(store: EngineStore, engine: StoredEngine) -> None:
    broken = store.put(sample_build(precision="fp32"), PLAN)
    (broken.path / "manifest.json").write_text("{}")

    assert store.entries() == (engine,)
    (error,) = store.damaged()
    assert broken.key in str(error)


@pytest.mark.parametrize(("name", "content"), [("engine.plan", b"X" + PLAN[1:]), ("manifest.json", b"{")])
def test_putting_an_engine_again_replaces_a_damaged_one(
    store: EngineStore, engine: StoredEngine, name: str, content: bytes
) -> None:
    (engine.path / name).write_bytes(content)

    healed = store.put(sample_build(), PLAN)

    assert store.load_plan(healed) == PLAN
    assert store.damaged() == ()
    assert len(files_under(store.root)) == 2


def test_an_engine_moved_to_another_key_is_refused(store: EngineStore, engine: StoredEngine) -> None:
    impostor = engine.path.with_name(engine.key[:2] + "0" * 62)
    engine.path.rename(impostor)
    with pytest.raises(EngineError, match="named after another engine"):
        store.find(impostor.name)


def test_a_verdict_is_kept_with_the_engine(store: EngineStore, engine: StoredEngine) -> None:
    verified = store.record_verification(engine, VERIFIED)

    assert verified == replace(engine, manifest=engine.manifest.with_verification(VERIFIED))
    assert store.find(engine.key) == verified
    assert len(files_under(store.root)) == 2


def test_a_verdict_about_a_plan_that_was_replaced_is_refused(store: EngineStore, engine: StoredEngine) -> None:
    engine.plan_path.unlink()
    store.put(sample_build(), b"built again")

    with pytest.raises(EngineError, match="built again since it was compared"):
        store.record_verification(engine, VERIFIED)


def test_a_verdict_that_cannot_be_written_leaves_the_old_one(
    store: EngineStore, engine: StoredEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module.os, "fsync", no_space_left)
    with pytest.raises(MachineError, match="No space left"):
        store.record_verification(engine, VERIFIED)
    monkeypatch.undo()

    assert store.find(engine.key) == engine
    assert len(files_under(store.root)) == 2


def test_a_full_disk_is_a_machine_error_and_leaves_nothing(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module.os, "fsync", no_space_left)
    with pytest.raises(MachineError, match="No space left"):
        store.put(sample_build(), PLAN)
    assert files_under(store.root) == set()


def test_a_root_that_is_a_file_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("not a folder")
    with pytest.raises(MachineError, match="cannot be written"):
        EngineStore(tmp_path / "engines").put(sample_build(), PLAN)


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(store: EngineStore) -> None:
    store.root.mkdir()
    dead = leftover(store, pid=process_id_of_the_dead())
    reused_id = leftover(store, pid=os.getpid(), age_seconds=10 * 365 * 24 * 3600)
    other_host_old = leftover(store, pid=1, host="0" * 8, age_seconds=ABANDONED_AFTER_SECONDS + 60)
    other_host_new = leftover(store, pid=1, host="0" * 8)
    living = leftover(store, pid=os.getpid())
    bystander = store.root / ".building-notes.txt"
    bystander.write_text("not ours")

    store.put(sample_build(), PLAN)

    assert not any(path.exists() for path in (dead, reused_id, other_host_old))
    assert all(path.exists() for path in (other_host_new, living, bystander))


def test_threads_racing_for_one_key_end_with_one_engine(store: EngineStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        plans = [PLAN + bytes([number]) for number in range(8)]
        engines = list(pool.map(lambda plan: store.put(sample_build(), plan), plans))
    assert len({stored.manifest.plan_sha256 for stored in engines}) == 1
    assert store.load_plan(engines[0]) in plans
    assert len(files_under(store.root)) == 2


def test_two_processes_racing_for_one_key_get_the_same_engine(store: EngineStore) -> None:
    program = """
        print("ready", flush=True); sys.stdin.readline()
        engine = store.put(sample_build(build_seconds=float(os.getpid())), os.urandom(1 << 20))
        print(engine.manifest.plan_sha256)
    """
    racers = [start(program, store.root) for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    answers = [racer.communicate("go\n")[0].strip() for racer in racers]

    (stored,) = store.entries()
    assert answers == [stored.manifest.plan_sha256] * 2
    assert len(store.load_plan(stored)) == 1 << 20
    assert len(files_under(store.root)) == 2


def test_twenty_kills_at_random_moments_leave_the_store_consistent(store: EngineStore) -> None:
    program = """
        print("ready", flush=True)
        for layers in range(1, 10_000):
            build = sample_build(runtime_version=f"{os.getpid()}.{layers}")
            stored = store.put(build, os.urandom(1 << 18))
            store.record_verification(stored, Verification(state="built, not verified", reason=str(layers)))
    """
    moments = random.Random(7)
    for _ in range(5):
        writers = [start(program, store.root) for _ in range(4)]
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            time.sleep(moments.uniform(0, 0.02))
            writer.kill()
            writer.communicate()
        assert store.damaged() == ()

    for stored in store.entries():
        assert len(store.load_plan(stored)) == 1 << 18
    assert len(store.entries()) > 0
    store.put(sample_build(), PLAN)
    assert list(store.root.glob(".building-*")) == []


def test_the_kill_test_can_fail(store: EngineStore) -> None:
    """Its failing twin: a writer without the rename, killed between the two files."""
    manifest = sample_manifest()
    folder = store.root / manifest.key[:2] / manifest.key
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(json_from_manifest(manifest))
    (folder / "engine.plan").write_bytes(PLAN[:100])

    assert len(store.damaged()) == 1


def files_under(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def leftover(store: EngineStore, *, pid: int, host: str | None = None, age_seconds: float = 0) -> Path:
    host = host or store_module._this_host()
    path = store.root / f".building-{host}-{pid}-{random.randbytes(8).hex()}"
    path.mkdir()
    (path / "engine.plan").write_bytes(PLAN)
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


def process_id_of_the_dead() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def no_space_left(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def start(program: str, root: Path) -> subprocess.Popen[str]:
    """A Python process that runs ``program`` with ``store`` and ``sample_build`` at hand."""
    setup = f"""
        import os, sys
        from pathlib import Path
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        from engine_samples import sample_build
        from nemotrt.engines.manifest import Verification
        from nemotrt.engines.store import EngineStore
        store = EngineStore(Path({str(root)!r}))
    """
    lines = "\n".join(line[8:] for line in (setup + program).splitlines())
    return subprocess.Popen([sys.executable, "-c", lines], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

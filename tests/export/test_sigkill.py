"""An export that is killed leaves a whole bundle or none, and the next one cleans up."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from nemotrt.bundle import META_NAME, Bundle, BundleMeta, load_bundle, verify_digests
from nemotrt.errors import BundleError
from nemotrt.export import export_checkpoint

KILLS = 50
MOST_ROUNDS = 200


def exported(checkpoint: Path, destination: Path) -> None:
    export_checkpoint(checkpoint, destination, overwrite=True)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Children of a server that has the imports done and no threads, so that each costs a few milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nemotrt.export.export"])
    return context


def seconds_of_an_export(processes: ForkServerContext, checkpoint: Path, destination: Path) -> float:
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        child = processes.Process(target=exported, args=(checkpoint, destination))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        seconds.append(time.monotonic() - start)
    return min(seconds)


def accepted(folder: Path, **whole: BundleMeta) -> str | None:
    """Which of the bundles a reader takes ``folder`` for, ``None`` for none. It has to be all of that one."""
    try:
        bundle = load_bundle(folder)
        verify_digests(bundle)
    except BundleError:
        return None
    names = [name for name, meta in whole.items() if meta == bundle.meta]
    assert names, "an incomplete bundle is accepted"
    return names[0]


def test_fifty_killed_exports_leave_a_whole_bundle_or_none(
    processes: ForkServerContext,
    tdt_checkpoint: Path,
    tdt_bundle: Bundle,
    hybrid_bundle: Bundle,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """One in each fiftieth of an export's duration, at a random moment of it; every second one replaces a bundle."""
    folder = tmp_path / "out"
    destination = folder / "bundle"
    duration = seconds_of_an_export(processes, tdt_checkpoint, destination)
    rng, left, leftovers = random.Random(0), Counter[str | None](), 0
    for _ in range(MOST_ROUNDS):
        replaces = left.total() % 2 == 1
        shutil.rmtree(destination, ignore_errors=True)
        if replaces:
            shutil.copytree(hybrid_bundle.path, destination)
        child = processes.Process(target=exported, args=(tdt_checkpoint, destination))
        child.start()
        time.sleep(duration * (left.total() + rng.random()) / KILLS)
        child.kill()
        child.join(60)
        found = accepted(destination, old=hybrid_bundle.meta, new=tdt_bundle.meta)
        assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} <= {"bundle"}
        if child.exitcode == -signal.SIGKILL:  # otherwise it was done before
            left[found] += 1
            leftovers += any(folder.glob(".*"))
        if left.total() == KILLS:
            break
    assert left.total() == KILLS
    verify_digests(export_checkpoint(tdt_checkpoint, destination, overwrite=True))
    assert [path.name for path in folder.iterdir()] == ["bundle"]
    figure(
        f"{KILLS} exports killed within their {duration:.2f} s, half of them replacing a bundle: {left[None]} left no "
        f"bundle, {left['old']} the whole old one, {left['new']} the whole new one, none a part; "
        f"{leftovers} a partial folder, which the next export removed"
    )
    assert leftovers >= KILLS // 10


def exported_until(checkpoint: Path, destination: Path, step: int) -> None:
    """An export that kills itself right before step ``step`` of publishing: writing metadata, renaming, removing."""
    steps = count()

    def kill_at_step(event: str, arguments: tuple[object, ...]) -> None:
        subject = str(arguments[0]) if arguments else ""
        writes_metadata = event == "open" and subject.endswith(META_NAME) and arguments[1] == "w"
        # The graph writer renames its data files, inside of the partial folder.
        moves = event in ("os.rename", "shutil.rmtree") and not subject.endswith(".onnx.data")
        if (writes_metadata or moves) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill_at_step)
    exported(checkpoint, destination)


@pytest.mark.parametrize(
    ("replaces", "left"),
    [
        # before: metadata, rename into place, removing the partial folder
        (False, [None, None, "new"]),
        # before: metadata, rename out of the way, rename into place, removing the old one, removing the partial folder
        (True, ["old", "old", None, "new", "new"]),
    ],
    ids=["new", "replacing"],
)
def test_a_kill_between_two_steps_of_publishing_leaves_a_whole_bundle_or_none(
    processes: ForkServerContext,
    tdt_checkpoint: Path,
    tdt_bundle: Bundle,
    hybrid_bundle: Bundle,
    tmp_path: Path,
    replaces: bool,
    left: list[str | None],
) -> None:
    for step, expected in enumerate([*left, "new"]):
        destination = tmp_path / str(step) / "bundle"
        if replaces:
            shutil.copytree(hybrid_bundle.path, destination)
        child = processes.Process(target=exported_until, args=(tdt_checkpoint, destination, step))
        child.start()
        child.join(60)
        assert child.exitcode == (0 if step == len(left) else -signal.SIGKILL)
        assert accepted(destination, old=hybrid_bundle.meta, new=tdt_bundle.meta) == expected


@pytest.mark.parametrize("missing", ["encoder.onnx.data", "encoder.onnx", "tokens.txt", "model_meta.json"])
def test_a_part_of_a_bundle_would_be_seen(tdt_bundle: Bundle, tmp_path: Path, missing: str) -> None:
    shutil.copytree(tdt_bundle.path, tmp_path / "b")
    assert accepted(tmp_path / "b", new=tdt_bundle.meta) == "new"
    (tmp_path / "b" / missing).unlink()
    assert accepted(tmp_path / "b", new=tdt_bundle.meta) is None

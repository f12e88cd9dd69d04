"""Two hundred damaged checkpoints: each a named error or a whole bundle; no traceback, no hang, nothing left behind."""

from __future__ import annotations

import io
import random
import shutil
import signal
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import archives
import pytest

from nemotrt.bundle import load_bundle, verify_digests
from nemotrt.errors import NemotrtError
from nemotrt.export import export_checkpoint
from nemotrt.export.archive import CONFIG_MEMBER, WEIGHTS_MEMBER

CASES = 200
SECONDS_PER_CASE = 20
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Checkpoint:
    """An archive as bytes, and the places where a changed byte can do the most: (start, end)."""

    data: bytes
    members: archives.Members
    places: tuple[tuple[int, int], ...]

    @staticmethod
    def of(path: Path) -> Checkpoint:
        data = path.read_bytes()
        places: list[tuple[int, int]] = []
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for info in tar:
                places.append((info.offset, info.offset_data))
                end = info.offset_data + info.size
                if info.name.endswith(WEIGHTS_MEMBER):
                    pickled = data.index(b"data.pkl", info.offset_data)
                    index = data.index(b"PK\x01\x02", info.offset_data)
                    places += [(pickled - 30, pickled + 30_000), (index, end)] * 3
                elif info.size:
                    places += [(info.offset_data, end)] * (3 if info.name.endswith(CONFIG_MEMBER) else 1)
        return Checkpoint(data, archives.read_members(path), tuple(places))


def flipped(checkpoint: Checkpoint, _other: Checkpoint, rng: random.Random) -> bytes:
    data = bytearray(checkpoint.data)
    for _ in range(rng.choice((1, 1, 2, 16))):
        start, end = rng.choice(checkpoint.places) if rng.random() < 0.85 else (0, len(data))
        place = rng.randrange(start, end)
        data[place] = rng.randrange(256) if rng.random() < 0.5 else data[place] ^ 1 << rng.randrange(8)
    return bytes(data)


def truncated(checkpoint: Checkpoint, _other: Checkpoint, rng: random.Random) -> bytes:
    return checkpoint.data[: rng.randrange(len(checkpoint.data))]


def repeated(checkpoint: Checkpoint, _other: Checkpoint, rng: random.Random) -> bytes:
    """Some blocks of the tar stand in it twice."""
    start = rng.randrange(len(checkpoint.data) // _BLOCK) * _BLOCK
    end = start + _BLOCK * rng.choice((1, 2, 50))
    return checkpoint.data[:end] + checkpoint.data[start:]


def blanked(checkpoint: Checkpoint, _other: Checkpoint, rng: random.Random) -> bytes:
    start, end = rng.choice(checkpoint.places)
    place, size = rng.randrange(start, end), rng.choice((1, 40, 4096))
    return checkpoint.data[:place] + bytes(size) + checkpoint.data[place + size :]


def swapped(checkpoint: Checkpoint, _other: Checkpoint, rng: random.Random) -> bytes:
    """Two members exchange their contents."""
    members = dict(checkpoint.members)
    a, b = rng.sample(sorted(members), 2)
    members[a], members[b] = members[b], members[a]
    return archived(members)


def transplanted(checkpoint: Checkpoint, other: Checkpoint, rng: random.Random) -> bytes:
    """One member is that of the other model."""
    members = dict(checkpoint.members)
    name = rng.choice(sorted(members))
    twin = next(n for n in other.members if n.rpartition("_")[2] == name.rpartition("_")[2])
    return archived(members | {name: other.members[twin]})


def removed(checkpoint: Checkpoint, _other: Checkpoint, rng: random.Random) -> bytes:
    gone = rng.choice(sorted(checkpoint.members))
    return archived({name: data for name, data in checkpoint.members.items() if name != gone})


def archived(members: archives.Members) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            tar.addfile(*archives.entry(name, data))
    return stream.getvalue()


MUTATIONS = (flipped, flipped, flipped, flipped, truncated, repeated, blanked, swapped, transplanted, removed)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """A hang becomes an exception, which no test expects."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(checkpoint: Path, folder: Path) -> str:
    """The class of the named error, or ``loads`` for a whole bundle. Anything else is raised."""
    bundle = folder / "bundle"
    error: NemotrtError | None = None
    try:
        with time_limit(SECONDS_PER_CASE):
            export_checkpoint(checkpoint, bundle)
    except NemotrtError as exc:
        error = exc
    if error is not None:
        assert str(error).replace("\n", "").isprintable()
        assert list(folder.iterdir()) == []
        return type(error).__name__
    verify_digests(load_bundle(bundle))
    assert list(folder.iterdir()) == [bundle]
    shutil.rmtree(bundle)
    return "loads"


def test_two_hundred_damaged_checkpoints(
    tdt_checkpoint: Path,
    hybrid_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    sources = [Checkpoint.of(tdt_checkpoint), Checkpoint.of(hybrid_checkpoint)]
    folder, temporary, path = tmp_path / "out", tmp_path / "tmp", tmp_path / "m.nemo"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    outcomes: Counter[str] = Counter()
    for case in range(CASES):
        rng = random.Random(case)
        checkpoint, other = sources if case % 2 else sources[::-1]
        mutation = rng.choice(MUTATIONS)
        path.write_bytes(mutation(checkpoint, other, rng))
        try:
            outcomes[outcome(path, folder)] += 1
        except BaseException as exc:
            exc.add_note(f"case {case}: {mutation.__name__}")
            raise
        assert list(temporary.iterdir()) == [], f"case {case}: {mutation.__name__}"
    told = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
    figure(f"{CASES} damaged checkpoints: {told}")
    assert outcomes.total() == CASES
    assert 0 < outcomes["loads"] < CASES / 2


def test_an_undamaged_checkpoint_loads(tdt_checkpoint: Path, tmp_path: Path) -> None:
    assert outcome(tdt_checkpoint, tmp_path) == "loads"


def test_what_is_not_a_named_error_would_be_seen(
    tdt_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("nemotrt.export.model_graphs.model_config", broken)
    with pytest.raises(KeyError):
        outcome(tdt_checkpoint, tmp_path)


def test_a_hang_would_be_seen() -> None:
    with pytest.raises(TimeoutError), time_limit(1):
        time.sleep(60)

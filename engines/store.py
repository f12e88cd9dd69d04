"""The engine store: a folder of plans, each under the fingerprint of everything that decided it.

    ROOT/<key[:2]>/<key>/engine.plan + manifest.json     a stored engine, published by one rename
    ROOT/.building-<host>-<pid>-<token>                  being written; removed later if its writer died

Several processes may share a store, also over a network file system. Those that build the same key race for
one rename: the first to finish is the engine, the others discard theirs and get the winner's. A reader sees
all of an engine or none of it. A plan is machine code: only bytes whose digest the manifest names are handed
out.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import psutil

from nemotrt.engines.manifest import (
    MAX_MANIFEST_BYTES,
    EngineBuild,
    EngineManifest,
    Verification,
    json_from_manifest,
    manifest_from_build,
    manifest_from_json,
)
from nemotrt.errors import EngineError, MachineError

PLAN_NAME = "engine.plan"
MANIFEST_NAME = "manifest.json"

# A leftover whose writer cannot be asked (another host) is abandoned after this long.
# The longest known build of one engine takes minutes, and the folder exists only while files are written.
ABANDONED_AFTER_SECONDS = 24 * 3600.0
_CLOCK_GRANULARITY_SECONDS = 2.0

_KEY = re.compile(r"[0-9a-f]{64}")
_LEFTOVER = re.compile(r"\.building-(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]{1,10})-[0-9a-f]{16}")
_REBUILD = "delete this folder and build the engine again"


@dataclass(frozen=True)
class StoredEngine:
    """An engine on disk whose manifest was read and believed. Its plan is checked when it is loaded."""

    path: Path
    manifest: EngineManifest

    @property
    def key(self) -> str:
        """The fingerprint it is stored under."""
        return self.manifest.key

    @property
    def plan_path(self) -> Path:
        """The file that :func:`load_plan` reads."""
        return self.path / PLAN_NAME


class EngineStore:
    """Engines under ``root``, which is created by the first :meth:`put`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> StoredEngine | None:
        """The engine stored under ``key`` (see ``EngineIdentity.fingerprint``), or ``None``.

        Raises:
            EngineError: ``key`` is no fingerprint, or the entry was damaged.
        """
        folder = self._folder(key)
        return read_engine(folder) if os.path.lexists(folder) else None

    def entries(self) -> tuple[StoredEngine, ...]:
        """Every sound engine, in key order. What is damaged is told by :meth:`damaged`."""
        return tuple(entry for entry in self._scan() if isinstance(entry, StoredEngine))

    def damaged(self) -> tuple[EngineError, ...]:
        """One error for each entry that cannot be used, in key order."""
        return tuple(entry for entry in self._scan() if isinstance(entry, EngineError))

    def put(self, build: EngineBuild, plan: bytes | memoryview) -> StoredEngine:
        """Store ``plan`` under the fingerprint of ``build`` and return what the store holds afterwards.

        That is the engine that was stored under the same key before, if it is sound; a damaged one is
        replaced. What killed processes left behind is removed first.

        Raises:
            EngineError: the plan is empty.
            MachineError: the store cannot be written (permissions, disk full).
        """
        if not memoryview(plan).nbytes:
            raise EngineError("the plan is empty", where=self.root, fix="read the build log: nothing was built")
        manifest = manifest_from_build(build, plan)
        with _storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            with self._private_path() as folder:
                folder.mkdir()
                _write_durably(folder / PLAN_NAME, plan)
                _write_durably(folder / MANIFEST_NAME, json_from_manifest(manifest))
                _sync_folder(folder)
                return self._publish(folder, manifest)

    def load_plan(self, engine: StoredEngine) -> bytes:
        """See :func:`load_plan`, which takes engines outside of a store too."""
        return load_plan(engine)

    def record_verification(self, engine: StoredEngine, verification: Verification) -> StoredEngine:
        """Replace what is known about ``engine``; the new state is on disk, or the old one still is.

        Raises:
            EngineError: the engine is gone, was damaged, or was replaced by another build since it was read.
            MachineError: the store cannot be written.
        """
        stored = read_engine(engine.path)
        if stored.manifest.plan_sha256 != engine.manifest.plan_sha256:
            raise EngineError(
                "the engine was built again since it was compared",
                where=engine.path,
                found=f"sha256 {stored.manifest.plan_sha256[:16]}..., {engine.manifest.plan_sha256[:16]}... compared",
                fix="compare the stored engine: a rebuilt engine is another engine",
            )
        manifest = stored.manifest.with_verification(verification)
        with _storage_errors(engine.path), self._private_path() as draft:
            _write_durably(draft, json_from_manifest(manifest))
            draft.replace(engine.path / MANIFEST_NAME)
            _sync_folder(engine.path)
        return replace(stored, manifest=manifest)

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise EngineError("this is not the key of an engine", found=repr(key), fix="a key is 64 hex digits")
        return self.root / key[:2] / key

    def _scan(self) -> Iterator[StoredEngine | EngineError]:
        for folder in sorted(self.root.glob("??/*")):
            if _KEY.fullmatch(folder.name) and folder.parent.name == folder.name[:2]:
                try:
                    yield read_engine(folder)
                except EngineError as exc:
                    yield exc

    def _publish(self, folder: Path, manifest: EngineManifest) -> StoredEngine:
        destination = self._folder(manifest.key)
        destination.parent.mkdir(exist_ok=True)
        _sync_folder(self.root)
        while not _renamed(folder, destination):
            winner = _sound_engine(destination)
            if winner is not None:
                return winner
            self._set_aside(destination)
        _sync_folder(destination.parent)
        return StoredEngine(destination, manifest)

    def _set_aside(self, damaged: Path) -> None:
        with self._private_path() as grave, suppress(FileNotFoundError):
            damaged.rename(grave)

    @contextmanager
    def _private_path(self) -> Iterator[Path]:
        """A new name in the root for this process alone. What is still there at the end is removed."""
        path = self.root / f".building-{_this_host()}-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            yield path
        finally:
            _remove(path)

    def _remove_leftovers(self) -> None:
        for path in self.root.iterdir():
            match = _LEFTOVER.fullmatch(path.name)
            if match and _is_abandoned(path, host=match["host"], pid=int(match["pid"])):
                _remove(path)


def read_engine(path: Path) -> StoredEngine:
    """The engine in the folder ``path``, wherever it stands.

    Raises:
        EngineError: a file is missing, is a link or has the wrong size, or the manifest cannot be believed.
    """
    with _opened(path / MANIFEST_NAME) as stream:
        manifest = manifest_from_json(stream.read(MAX_MANIFEST_BYTES + 1), where=path / MANIFEST_NAME)
    if _KEY.fullmatch(path.name) and path.name != manifest.key:
        raise EngineError(
            "the engine's folder is named after another engine",
            where=path,
            found=f"the manifest's key is {manifest.key[:16]}...",
            fix=_REBUILD,
        )
    with _opened(path / PLAN_NAME) as stream:
        _check_size(stream, manifest, where=path / PLAN_NAME)
    return StoredEngine(path, manifest)


def load_plan(engine: StoredEngine) -> bytes:
    """The bytes of the plan, after size and SHA-256 were compared with the manifest.

    Raises:
        EngineError: missing, not a plain file, or not the plan that was built.
    """
    with _opened(engine.plan_path) as stream:
        _check_size(stream, engine.manifest, where=engine.plan_path)
        plan = stream.read(engine.manifest.size_bytes + 1)
    digest = hashlib.sha256(plan).hexdigest()
    if digest != engine.manifest.plan_sha256:
        raise EngineError(
            "the plan is not the one that was built",
            where=engine.plan_path,
            found=f"sha256 {digest[:16]}..., {engine.manifest.plan_sha256[:16]}... recorded",
            fix=_REBUILD,
        )
    return plan


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """``path`` for reading, refused if it is a link or no plain file: a store entry points nowhere else."""
    if path.is_symlink() or not path.is_file():
        found = "a link" if path.is_symlink() else "something else" if path.exists() else "no such file"
        raise EngineError("this is not a complete engine", where=path, found=found, fix=_REBUILD)
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as exc:
        raise EngineError(
            "the engine cannot be read",
            where=path,
            found=exc.strerror or str(exc),
            fix="check the permissions of the engine store",
        ) from exc


def _check_size(stream: BinaryIO, manifest: EngineManifest, *, where: Path) -> None:
    size_bytes = os.fstat(stream.fileno()).st_size
    if size_bytes != manifest.size_bytes:
        raise EngineError(
            "the plan has the wrong size",
            where=where,
            found=f"{size_bytes} bytes, {manifest.size_bytes} recorded",
            fix=_REBUILD,
        )


def _sound_engine(path: Path) -> StoredEngine | None:
    """The engine at ``path`` if its plan is intact."""
    try:
        engine = read_engine(path)
        load_plan(engine)
    except EngineError:
        return None
    return engine


def _renamed(folder: Path, destination: Path) -> bool:
    """Whether ``folder`` became ``destination``; false where something is there already."""
    try:
        folder.rename(destination)
    except OSError:
        if os.path.lexists(destination):
            return False
        raise
    return True


def _is_abandoned(path: Path, *, host: str, pid: int) -> bool:
    try:
        modified = path.lstat().st_mtime
    except FileNotFoundError:
        return False
    if host == _this_host() and not _process_existed_at(modified, pid=pid):
        return True
    return time.time() - modified > ABANDONED_AFTER_SECONDS


def _process_existed_at(moment: float, *, pid: int) -> bool:
    """Whether process ``pid`` lives, and did at ``moment``: ids are used again, in containers at once."""
    try:
        return psutil.Process(pid).create_time() <= moment + _CLOCK_GRANULARITY_SECONDS
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _this_host() -> str:
    """Eight digits that tell hosts apart: a process id means something on its own host only."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_durably(path: Path, content: bytes | memoryview) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    """Make renames and new names in ``path`` survive a power cut, where the system can open a folder."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _storage_errors(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise MachineError(
            "the engine store cannot be written",
            where=where,
            found=exc.strerror or str(exc),
            fix="free disk space, or name a store in a folder that is writable",
        ) from exc

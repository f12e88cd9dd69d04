"""Open a ``.nemo`` checkpoint: a tar (plain or gzipped) of a YAML config, a weights file and tokenizer files.

    .nemo -> members checked -> config (mapping), weights (Weights), named artifacts (bytes)

The archive is untrusted: names that leave the folder, links, devices and decompression bombs are refused, nothing is
unpacked beside the user's files, and the weights' pickle is read with an allow-list (see ``weights.py``).
"""

from __future__ import annotations

import gzip
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import yaml

from nemotrt.errors import ArchiveError, ConfigError, MachineError
from nemotrt.export.disk_room import inflated_bytes, refuse_full_disk
from nemotrt.export.weights import Weights, open_weights

CONFIG_MEMBER = "model_config.yaml"
WEIGHTS_MEMBER = "model_weights.ckpt"
ARTIFACT_PREFIX = "nemo:"

_MAX_MEMBERS = 1000
_MAX_TEXT_BYTES = 32 << 20
_MAX_EXPANSION = 32  # weights barely compress; a bomb expands a thousandfold
_MAX_YAML_DEPTH = 100  # libyaml recurses in C: a hundred thousand brackets end the process
_MAX_YAML_SCALAR = 1 << 16
_MORE_ROOM = "free disk space, or set TMPDIR to a folder with more"
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class NemoArchive:
    """An open checkpoint. ``weights`` reads from the archive on demand, so it lives as long as the archive is open."""

    path: Path
    config: Mapping[str, Any]
    weights: Weights
    _tar: tarfile.TarFile
    _members: Mapping[str, tarfile.TarInfo]

    def artifact(self, reference: str) -> bytes:
        """The content of a file that the config names as ``nemo:<member>``.

        Raises:
            ArchiveError: the member does not exist, or is too large for a tokenizer.
        """
        with _readable(self.path):
            return _read_member(self._tar, self._members, reference.removeprefix(ARTIFACT_PREFIX), self.path)


@contextmanager
def open_nemo(path: Path) -> Iterator[NemoArchive]:
    """Open the checkpoint at ``path`` and close it, and every temporary file, on exit.

    Raises:
        ArchiveError: no such file, not a tar, truncated, hostile, or a member is missing.
        ConfigError: the YAML cannot be parsed.
        MachineError: no room for the temporary file that a gzipped archive is inflated into.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise ArchiveError("no such checkpoint", where=path, found=found, fix="give the path of a .nemo file")
    with ExitStack() as stack:
        with _readable(path):
            stream = stack.enter_context(_plain_tar(path))
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
            members = _checked_members(tar, path, size_bytes=_size_of(stream))
            config = _parse_config(_read_member(tar, members, CONFIG_MEMBER, path), path)
            weights_stream = tar.extractfile(_member(members, WEIGHTS_MEMBER, path))
            if weights_stream is None:
                raise ArchiveError(f"{WEIGHTS_MEMBER} is not a file", where=path)
            weights = stack.enter_context(open_weights(weights_stream, origin=path))
        yield NemoArchive(path, config, weights, tar, members)


# What a byte stream can make the gzip and tar readers raise, beside the file system's own errors: a chain of long-name
# headers recurses, and a header's size can be any number.
_UNREADABLE = (
    tarfile.TarError, EOFError, zlib.error, OSError, RecursionError, OverflowError, MemoryError, UnicodeError,
    struct.error,
)  # fmt: skip


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as exc:
        raise ArchiveError(
            "the checkpoint is not a readable tar archive",
            where=path,
            found=str(exc) or type(exc).__name__,
            fix="download it again; a .nemo file is a tar of model_config.yaml, model_weights.ckpt and tokenizers",
        ) from exc


@contextmanager
def _plain_tar(path: Path) -> Iterator[IO[bytes]]:
    """The tar itself; a gzipped one is inflated into an anonymous temporary file, up to a limit."""
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if not is_gzip:
            yield raw
            return
        limit = _MAX_EXPANSION * max(path.stat().st_size, 1 << 20)
        refuse_full_disk(
            min(inflated_bytes(raw), limit), Path(tempfile.gettempdir()), what="a gzipped checkpoint", fix=_MORE_ROOM
        )
        with tempfile.TemporaryFile(prefix="nemotrt-") as plain:
            _inflate(raw, plain, limit, path)
            plain.seek(0)
            yield plain


def _inflate(raw: IO[bytes], plain: IO[bytes], limit: int, origin: Path) -> None:
    with gzip.GzipFile(fileobj=raw) as inflated:
        while block := inflated.read(1 << 20):
            limit -= len(block)
            if limit < 0:
                raise ArchiveError(
                    f"the gzipped checkpoint inflates to more than {_MAX_EXPANSION} times its size",
                    where=origin,
                    fix="this is not how weights compress: do not use this file",
                )
            _spill(block, plain)


def _spill(block: bytes, plain: IO[bytes]) -> None:
    try:
        plain.write(block)
        plain.flush()
    except OSError as exc:
        raise MachineError(
            "no room to inflate a gzipped checkpoint",
            where=tempfile.gettempdir(),
            found=exc.strerror,
            fix=_MORE_ROOM,
        ) from exc


def _checked_members(tar: tarfile.TarFile, path: Path, *, size_bytes: int) -> dict[str, tarfile.TarInfo]:
    members: dict[str, tarfile.TarInfo] = {}
    for count, info in enumerate(tar):
        if count >= _MAX_MEMBERS:
            raise ArchiveError(f"more than {_MAX_MEMBERS} members", where=path, fix="this is not a NeMo checkpoint")
        pure = PurePosixPath(info.name)
        if pure.is_absolute() or ".." in pure.parts:
            raise ArchiveError("a member's name leaves the archive", where=path, found=repr(info.name))
        if info.isdir():
            continue
        if not info.isreg():
            raise ArchiveError("a member is a link or device", where=path, found=repr(info.name))
        if info.size < 0 or info.offset_data + info.size > size_bytes:
            raise ArchiveError("the archive is truncated", where=f"{path}: {info.name!r}", fix="download it again")
        if str(pure) in members:
            raise ArchiveError("two members have one name", where=path, found=repr(str(pure)))
        members[str(pure)] = info
    return members


def _member(members: Mapping[str, tarfile.TarInfo], name: str, path: Path) -> tarfile.TarInfo:
    if name not in members:
        raise ArchiveError(
            f"the archive has no {name}",
            where=path,
            found=", ".join(map(repr, sorted(members)[:10])) or "an empty archive",
            fix="save the model with NeMo's save_to()",
        )
    return members[name]


def _read_member(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str, path: Path) -> bytes:
    info = _member(members, name, path)
    if info.size > _MAX_TEXT_BYTES:
        raise ArchiveError(f"{name} is larger than {_MAX_TEXT_BYTES >> 20} MiB", where=path, found=f"{info.size} bytes")
    stream = tar.extractfile(info)
    return b"" if stream is None else stream.read()


def _parse_config(text: bytes, path: Path) -> Mapping[str, Any]:
    where = f"{path}: {CONFIG_MEMBER}"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse_yaml_bombs(text, loader, where=where)
        config = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise ConfigError("the config is not valid YAML", where=where, found=" ".join(str(exc).split())) from exc
    if not isinstance(config, dict):
        raise ConfigError("the config is not a mapping", where=where, found=type(config).__name__)
    return config


def _refuse_yaml_bombs(text: bytes, loader: type[yaml.SafeLoader], *, where: str) -> None:
    """NeMo writes neither aliases (which multiply), nor deep nesting, nor long scalars."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliased = isinstance(event, yaml.AliasEvent)
        too_long = isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_YAML_SCALAR
        if aliased or too_long or depth > _MAX_YAML_DEPTH:
            raise ConfigError(
                "the config is built like an attack on its reader",
                where=where,
                found="an alias" if aliased else "a scalar of great length" if too_long else "deep nesting",
                fix="save the model with NeMo's save_to()",
            )


def _size_of(stream: IO[bytes]) -> int:
    size = stream.seek(0, 2)
    stream.seek(0)
    return size

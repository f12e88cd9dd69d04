"""Take ``.nemo`` archives apart and put altered ones together."""

from __future__ import annotations

import copy
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nemotrt.errors import NemotrtError
from nemotrt.export.archive import CONFIG_MEMBER, WEIGHTS_MEMBER

Members = dict[str, bytes]
Refusal = Callable[[Path, type[NemotrtError]], NemotrtError]
"""What the fixture ``refusal`` gives: exports a checkpoint that must be refused with that error."""

REMOVED = object()


def read_members(path: Path) -> Members:
    """The files of an archive by name, without a leading ``./``."""
    with tarfile.open(path) as tar:
        streams = {info.name.removeprefix("./"): tar.extractfile(info) for info in tar if info.isreg()}
        return {name: stream.read() for name, stream in streams.items() if stream is not None}


def write_archive(path: Path, members: Mapping[str, bytes], *extra: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A tar of ``members``, then of ``extra`` headers with their content; gzipped if ``path`` ends in ``.gz``."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items():
            tar.addfile(*entry(name, data))
        for info, data in extra:
            tar.addfile(info, io.BytesIO(data))
    return path


def entry(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, target: str = ""
) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """One tar entry of any type."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    return info, io.BytesIO(data)


def config_of(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The parsed config of an archive."""
    config: dict[str, Any] = yaml.safe_load(members[CONFIG_MEMBER])
    return config


def with_config(members: Mapping[str, bytes], config: Mapping[str, Any]) -> Members:
    """The archive with another config."""
    return {**members, CONFIG_MEMBER: yaml.safe_dump(dict(config), allow_unicode=True).encode()}


def with_state(members: Mapping[str, bytes], state: Mapping[str, Any]) -> Members:
    """The archive with other weights (tensors by name)."""
    return {**members, WEIGHTS_MEMBER: state_bytes(state)}


def changed(config: Mapping[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy of ``config`` with the dotted ``key`` set, or removed where ``value`` is ``REMOVED``."""
    result = copy.deepcopy(dict(config))
    *parents, last = key.split(".")
    section = result
    for parent in parents:
        section = section[parent]
    if value is REMOVED:
        del section[last]
    else:
        section[last] = value
    return result


def state_bytes(state: Mapping[str, Any]) -> bytes:
    """``torch.save`` of a state dict."""
    import torch

    stream = io.BytesIO()
    torch.save(dict(state), stream)
    return stream.getvalue()


def state_of(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The tensors of an archive, read by torch."""
    import torch

    state: dict[str, Any] = torch.load(io.BytesIO(members[WEIGHTS_MEMBER]), weights_only=True)
    return dict(state)


def torch_zip(
    pickled: bytes, storages: Mapping[str, bytes] | None = None, *, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A torch zip file around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as entries:
        entries.writestr("model/data.pkl", pickled)
        for key, data in (storages or {}).items():
            entries.writestr(f"model/data/{key}", data)
    return stream.getvalue()

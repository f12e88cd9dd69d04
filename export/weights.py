"""Read tensors out of ``model_weights.ckpt`` one at a time, without torch and without running its pickle.

    zip of {data.pkl, data/0, data/1, ...} -> {parameter name: where its numbers are} -> numpy array on demand

``data.pkl`` is read by an unpickler that knows five harmless names and refuses every other; storages are read when a
tensor is asked for, and their CRC is checked then. So memory holds one tensor, not the model.
Source of the format: ``torch.serialization`` (zip format, torch >= 1.6).
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nemotrt.errors import ArchiveError, WeightsError

FloatArray = NDArray[np.float32]
Loader = Callable[[], FloatArray]

_MAX_PICKLE_BYTES = 64 << 20
# Wrappers that leave a prefix in parameter names: torch.compile and DistributedDataParallel.
_WRAPPER_PREFIXES = ("_orig_mod.", "module.")
_STORAGE_DTYPES: Mapping[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "BoolStorage": np.dtype(np.bool_),
}


class _StoredTensor(NamedTuple):
    """Where a tensor's numbers are: a storage (zip entry), an offset and strides in elements.

    A tuple, because a pickle can rewrite the attributes of every object that has any (its BUILD instruction).
    """

    key: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def last_element(self) -> int:
        return self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


class Weights:
    """The state dict of a checkpoint, lazily. Names come without wrapper prefixes such as ``_orig_mod.``."""

    def __init__(self, entries: zipfile.ZipFile, root: str, tensors: Mapping[str, _StoredTensor], origin: Path) -> None:
        self._zip, self._root, self._tensors, self._origin = entries, root, tensors, origin
        self._expected: set[str] = set()

    @property
    def largest_storage_bytes(self) -> int:
        """Of what is read at once: a storage may hold more than the tensor that is asked for."""
        return max((entry.file_size for entry in self._zip.infolist()), default=0)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises :class:`WeightsError` when there is no such parameter."""
        return self._tensor(name).shape

    def expect(self, name: str, shape: tuple[int, ...]) -> Loader:
        """Check now that a parameter exists with this shape; return a function that reads it as float32.

        Raises:
            WeightsError: no such parameter, or of another shape.
        """
        found = self.shape(name)
        if found != shape:
            raise WeightsError(
                "a weight does not have the shape that the config asks for",
                where=f"{self._origin}: {name}",
                found=f"{list(found)}, {list(shape)} expected",
                fix="config and weights are of different models: export the checkpoint from NeMo again",
            )
        self._expected.add(name)
        return lambda: self.read(name)

    def read(self, name: str) -> FloatArray:
        """The parameter as a contiguous float32 array.

        Raises:
            WeightsError: no such parameter.
            ArchiveError: its bytes are damaged (the archive's CRC does not match) or missing.
        """
        tensor = self._tensor(name)
        data = self._storage(tensor, name)
        storage = np.frombuffer(data[: len(data) // tensor.dtype.itemsize * tensor.dtype.itemsize], tensor.dtype)
        if prod(tensor.shape) > storage.size or tensor.last_element() >= storage.size:
            raise ArchiveError("a tensor reaches beyond its storage", where=f"{self._origin}: {name}")
        strides = (s * tensor.dtype.itemsize if n > 1 else 0 for n, s in zip(tensor.shape, tensor.strides, strict=True))
        view = np.lib.stride_tricks.as_strided(
            storage[tensor.offset :], shape=tensor.shape, strides=tuple(strides), writeable=False
        )
        return np.asarray(view, dtype=np.float32, order="C")

    def refuse_unexpected(self, prefixes: tuple[str, ...]) -> None:
        """Raise :class:`WeightsError` if a parameter under one of ``prefixes`` was never asked for.

        A weight that nothing reads means that the graph is not the model.
        """
        ignored = ("num_batches_tracked",)
        left = [
            n for n in self._tensors if n.startswith(prefixes) and n not in self._expected and not n.endswith(ignored)
        ]
        if left:
            raise WeightsError(
                "the checkpoint has weights that its config does not account for",
                where=self._origin,
                found=", ".join(sorted(left)[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else ""),
                fix="adapters and custom modules are not supported: export the base model",
            )

    def _tensor(self, name: str) -> _StoredTensor:
        if name not in self._tensors:
            raise WeightsError(
                "the checkpoint lacks a weight that its config asks for",
                where=self._origin,
                found=f"no {name}",
                fix="config and weights are of different models: export the checkpoint from NeMo again",
            )
        return self._tensors[name]

    def _storage(self, tensor: _StoredTensor, name: str) -> bytes:
        try:
            return self._zip.read(f"{self._root}/data/{tensor.key}")
        except _ZIP_FAILURES as exc:
            raise ArchiveError(
                "the bytes of a weight are damaged",
                where=f"{self._origin}: {name}",
                found=str(exc),
                fix="download the checkpoint again",
            ) from exc


@contextmanager
def open_weights(stream: IO[bytes], *, origin: Path) -> Iterator[Weights]:
    """Read the index of a torch zip file; tensors are read later, while the context is open.

    Raises:
        ArchiveError: not a zip, encrypted or compressed entries, a pickle that asks for code, damaged index.
    """
    try:
        entries = zipfile.ZipFile(stream)
    except _ZIP_FAILURES as exc:
        raise ArchiveError(
            "model_weights.ckpt is not a torch zip file",
            where=origin,
            found=str(exc),
            fix="download it again, or save it again with NeMo and torch >= 1.6",
        ) from exc
    with entries:
        root, index = _index(entries, origin)
        yield Weights(entries, root, index, origin)


# Everything that damaged headers can make the zip reader raise.
_ZIP_FAILURES = (
    zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, OSError, OverflowError, RuntimeError, UnicodeError,
    ValueError, struct.error,
)  # fmt: skip


def _index(entries: zipfile.ZipFile, origin: Path) -> tuple[str, dict[str, _StoredTensor]]:
    pickles = [i for i in entries.infolist() if i.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
        raise ArchiveError("model_weights.ckpt holds no readable data.pkl", where=origin)
    if any(i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1 for i in entries.infolist()):
        raise ArchiveError("model_weights.ckpt has compressed or encrypted entries", where=origin)
    try:
        state = _StateUnpickler(io.BytesIO(entries.read(pickles[0]))).load()
    except ArchiveError as exc:
        raise ArchiveError(exc.what, where=f"{origin}: model_weights.ckpt", found=exc.found, fix=exc.fix) from exc
    except _UNPICKLING_FAILURES as exc:
        raise ArchiveError("data.pkl is damaged", where=origin, found=f"{type(exc).__name__}: {exc}") from exc
    return pickles[0].filename.removesuffix("/data.pkl"), _cleaned(state, origin)


# Everything that a byte stream can make the unpickler or our five constructors raise.
_UNPICKLING_FAILURES = (
    *_ZIP_FAILURES, pickle.UnpicklingError, AttributeError, IndexError, MemoryError, TypeError,
)  # fmt: skip


def _cleaned(state: object, origin: Path) -> dict[str, _StoredTensor]:
    if not isinstance(state, dict):
        raise ArchiveError("model_weights.ckpt is not a state dict", where=origin, found=type(state).__name__)
    tensors: dict[str, _StoredTensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, _StoredTensor):
            raise ArchiveError("the state dict holds something else than tensors", where=origin, found=ascii(key)[:80])
        name = key
        for prefix in _WRAPPER_PREFIXES:
            name = name.replace(prefix, "") if prefix == "_orig_mod." else name.removeprefix(prefix)
        if not name.isprintable():
            raise ArchiveError("a weight has an unprintable name", where=origin, found=ascii(name)[:80])
        if name in tensors:
            raise ArchiveError("two weights have one name once wrapper prefixes are removed", where=origin, found=name)
        tensors[name] = value
    return tensors


class _StorageType(NamedTuple):
    dtype: np.dtype[Any]


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype[Any]


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_unused: object) -> _StoredTensor:
    """Stands for ``torch._utils._rebuild_tensor_v2``: keeps the place, reads nothing."""
    if not (isinstance(storage, _Storage) and isinstance(size, tuple) and isinstance(stride, tuple)):
        raise pickle.UnpicklingError("malformed tensor")
    numbers = (offset, *size, *stride)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers) or len(size) != len(stride):
        raise pickle.UnpicklingError("malformed tensor shape")
    if prod(size) > 1 << 40:
        raise pickle.UnpicklingError("tensor of an impossible size")
    return _StoredTensor(storage.key, storage.dtype, int(str(offset)), size, stride)


def _rebuild_parameter(data: object, *_unused: object) -> object:
    return data


class _StateUnpickler(pickle.Unpickler):
    """Knows the names a state dict consists of; anything else is refused before it exists."""

    _ALLOWED: Mapping[tuple[str, str], object] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_DTYPES.items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise ArchiveError(
                "the weights' pickle asks for more than tensors",
                found=ascii(f"{module}.{name}")[1:-1],
                fix="do not use this file: loading it in torch could run code",
            )
        return self._ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype=dtype), str(key), *_) if key.isprintable():
                return _Storage(key, dtype)
        raise pickle.UnpicklingError("malformed storage reference")

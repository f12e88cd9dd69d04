"""Weights that are stored in files beside the graph: whether all are there, whole, and nothing else is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

from nemotrt.errors import GraphError
from nemotrt.graph_contract import read_without_weights
from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import SMALL_BYTES, Subject
from nemotrt.trt.check.weights import Fault, StoredWeight, stored_weights

_PADDING_BYTES = 64 * 1024  # weights are put at page boundaries
_WEIGHT_SUFFIXES = (".data", "_data", ".weight", ".bias")
_TRACED_PREFIX = "onnx__"  # what torch calls a weight that it has made from others
_BLOCK_BYTES = 1 << 24


class _DataRule(Rule):
    """Looks at where weights lie, whatever the graph makes of them."""

    needs_valid_graph = False


class _FaultyRange(_DataRule):
    """One finding for each file: the weights whose range has ``fault``."""

    severity = "error"
    fault: ClassVar[Fault]
    what: ClassVar[str]

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each file."""
        by_file: dict[str, list[str]] = defaultdict(list)
        for weight in subject.weights:
            if weight.fault == self.fault:
                by_file[weight.location].append(weight.name)
        for location, names in by_file.items():
            yield self.found(subject, self.what.format(file=location or "the graph"), places=names)


class DataOutside(_FaultyRange):
    """Locations are relative paths inside of the folder."""

    id, fault = "data-outside", "outside"
    what = "the weights' file {file} is not a plain path inside of the graph's folder"
    reason = "an absolute path, '..' or a link reads files that have nothing to do with the model"
    fix = "do not load the graph; export it again, or ask where it comes from"


class DataMissing(_FaultyRange):
    """Every file that a weight names."""

    id, fault = "data-missing", "missing"
    what = "{file} is not there"
    reason = "a graph without its weights does not load, most often after it was moved alone"
    fix = "copy the data file into the folder of the graph"


class DataLength(_FaultyRange):
    """Bytes stored against bytes that type and shape need."""

    id, fault = "data-length", "length"
    what = "the ranges in {file} are not as long as types and shapes of the weights ask for"
    reason = "what is read is not the weight: bytes of a neighbour, or of nothing"
    fix = "export the graph again"


class DataTruncated(_FaultyRange):
    """Ranges against the end of the file."""

    id, fault = "data-truncated", "truncated"
    what = "{file} ends before its weights do"
    reason = "an interrupted copy: the graph does not load"
    fix = "copy the data file again"


class DataOverlap(_DataRule):
    """Two weights may share a range, but not a part of one."""

    id = "data-overlap"
    severity = "error"
    reason = "weights that overlap without being the same: one of them was written over the other"
    fix = "export the graph again"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each pair of neighbours."""
        for file, weights in _by_file(subject.weights).items():
            last: StoredWeight | None = None
            for weight in sorted(weights, key=lambda one: (one.offset, one.length)):
                if last is not None and weight.offset < last.offset + last.length and _range(weight) != _range(last):
                    yield self.found(subject, f"two weights overlap in {file.name}", places=(last.name, weight.name))
                if last is None or sum(_range(weight)) > sum(_range(last)):
                    last = weight


class DataOrphaned(_DataRule):
    """Weight files, and large parts of them, that no graph of the folder refers to."""

    id = "data-orphaned"
    severity = "warning"
    reason = "left over from another export, and copied along with every move of the model"
    fix = "delete what no graph uses, or export into an empty folder"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for files, one for each file with a gap. Every file is looked at with one graph of its folder."""
        folder = subject.path.parent
        files = sorted(path for path in folder.iterdir() if path.is_file())
        graphs = [subject.path, *(path for path in files if path.suffix == ".onnx" and path != subject.path)]
        named = {weight.location for weight in subject.weights}
        own = [
            path
            for path in files
            if (path.name in named or _is_weights(path.name)) and _owner(path, graphs) == subject.path
        ]
        users: dict[str, list[StoredWeight]] = defaultdict(list)
        for graph in graphs if own else ():
            for weight in _weights_of(graph):
                users[weight.location].append(weight)
        left = [path.name for path in own if path.name not in users]
        if left:
            yield self.found(subject, "no graph of the folder uses these weight files", places=left)
        for path in own:
            unused = _unused_bytes(path, users[path.name])
            if unused:
                yield self.found(subject, f"{unused:,} bytes of the file belong to no weight", places=(path.name,))


class DataScattered(_DataRule):
    """The number of files that one graph needs."""

    id = "data-scattered"
    severity = "warning"
    reason = "hundreds of loose files beside a small .onnx: one that is forgotten, and the model does not load"
    fix = "save the graph with one data file (onnx.save with all_tensors_to_one_file, or nemotrt export)"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        files = sorted({weight.location for weight in subject.weights if weight.is_external})
        if len(files) > 1:
            yield self.found(subject, f"the weights are scattered over {len(files)} files", places=files)


class DataDuplicate(_DataRule):
    """The same bytes under two names at two places."""

    id = "data-duplicate"
    severity = "note"
    reason = "weights that are stored twice are loaded twice"
    fix = "let both names refer to one initializer"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each group of equal weights."""
        readable = [weight for weight in subject.weights if not weight.fault and weight.size_bytes > SMALL_BYTES]
        by_start: dict[object, list[StoredWeight]] = defaultdict(list)
        for weight in readable:
            start = weight.read_bytes()[:SMALL_BYTES].tobytes()
            by_start[weight.tensor.data_type, tuple(weight.tensor.dims), start].append(weight)
        for alike in by_start.values():
            by_digest: dict[bytes, list[StoredWeight]] = defaultdict(list)
            for weight in alike if len(alike) > 1 else ():
                by_digest[_digest(weight)].append(weight)
            for same in by_digest.values():
                copies = len({_range(one) if one.is_external else one.name for one in same}) - 1
                if copies:
                    wasted = copies * same[0].size_bytes
                    names = (one.name for one in same)
                    yield self.found(
                        subject, f"the same weight is stored {copies + 1} times ({wasted:,} bytes more)", places=names
                    )


def _by_file(weights: Iterable[StoredWeight]) -> dict[Path, list[StoredWeight]]:
    """The external weights that can be read."""
    found: dict[Path, list[StoredWeight]] = defaultdict(list)
    for weight in weights:
        if weight.is_external and weight.fault is None:
            found[weight.file].append(weight)
    return found


def _range(weight: StoredWeight) -> tuple[int, int]:
    return weight.offset, weight.length


def _is_weights(name: str) -> bool:
    return name.endswith(_WEIGHT_SUFFIXES) or name.startswith(_TRACED_PREFIX)


def _owner(file: Path, graphs: Sequence[Path]) -> Path:
    """The graph that a file is named after; else the first by name."""
    namesakes = [graph for graph in graphs if file.name.startswith(graph.name)]
    return max(namesakes, key=lambda graph: len(graph.name)) if namesakes else min(graphs)


def _unused_bytes(file: Path, weights: Sequence[StoredWeight]) -> int:
    """Bytes of the file in no range, page padding not counted; 0 where ranges are not known."""
    if not weights or any(weight.fault for weight in weights):
        return 0
    unused = end = 0
    for offset, length in (*sorted(map(_range, weights)), (file.stat().st_size, 0)):
        unused += gap if (gap := offset - end) > _PADDING_BYTES else 0
        end = max(end, offset + length)
    return unused


def _weights_of(graph: Path) -> Iterator[StoredWeight]:
    try:
        yield from stored_weights(read_without_weights(graph).graph, graph.parent)
    except GraphError:
        return  # what is wrong with another graph is said where that one is checked


def _digest(weight: StoredWeight) -> bytes:
    raw, digest = weight.read_bytes(), blake2b(digest_size=16)
    for start in range(0, len(raw), _BLOCK_BYTES):
        digest.update(raw[start : start + _BLOCK_BYTES].tobytes())
    return digest.digest()


RULES = (
    DataOutside(),
    DataMissing(),
    DataLength(),
    DataTruncated(),
    DataOverlap(),
    DataOrphaned(),
    DataScattered(),
    DataDuplicate(),
)

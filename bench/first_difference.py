"""The first tensor of a graph that differs from its reference, found in a few runs.

    outputs differ --> probe some of their ancestors --> the first that differs --> probe its ancestors --> ...
                   --> a tensor that differs while all it is computed from does not: its node is to blame

A run computes one set of probes in both graphs. Probes are spread evenly, so each round leaves one gap between two of
them: 1000 tensors take three rounds. What leads to a probe that is right is not looked at again, unless the search ends
at a tensor whose inputs are unknown: they are probed before a node is blamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from nemotrt.bench.system import Progress, silent
from nemotrt.bench.tensor_difference import TensorDifference, tensor_difference
from nemotrt.bench.tolerances import TensorTolerance
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Array, Arrays, Runner
from nemotrt.errors import GraphError
from nemotrt.trt.node_difference import node_differences
from nemotrt.trt.tensor_graph import TensorGraph, scope_of
from nemotrt.trt.tensor_pairs import TensorPair, pair_tensors

PROBES = 32
"""Tensors of one round, where they are small enough."""

ROUND_BYTES = 1 << 30
"""What the probes of one round may take in each graph, by the largest tensor seen so far."""

OpenMarked = Callable[[Path, Path], Runner]
"""Opens a runner of a marked graph, given that and the folder of its weights."""


@dataclass(frozen=True)
class InputDifference:
    """A tensor that the blamed node's result is computed from, by its name in the candidate."""

    tensor: str
    difference: TensorDifference


@dataclass(frozen=True)
class FirstDifference:
    """The node to blame.

    Attributes:
        tensor, reference_tensor: the first tensor that differs, by its names in both graphs.
        node, op, scope: what computes it in the candidate.
        inputs: what it is computed from, all of it right.
        between: further nodes between these and it, whose results have no counterpart to compare with.
        causes: what the node has otherwise than in the reference; empty where both are the same, so that one runtime
            computes it wrong.
    """

    tensor: str
    reference_tensor: str
    node: str
    op: str
    scope: str
    difference: TensorDifference
    inputs: tuple[InputDifference, ...]
    between: tuple[str, ...]
    causes: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """What was found in how many runs of both graphs. ``first`` is ``None`` where no output differs.

    ``vanished``: outputs differ, but not when tensors on the way are outputs too. A fusion of the runtime is to blame.
    """

    first: FirstDifference | None
    vanished: bool
    runs: int
    tensors: int
    unpaired: int


def open_in_onnxruntime(marked: Path, data_folder: Path, *, threads: int | None = None) -> Runner:
    """A marked graph on ONNX Runtime."""
    return OnnxRuntimeRunner(marked, threads=threads, data_folder=data_folder)


def find_first_difference(
    reference: Path,
    candidate: Path,
    feeds: Arrays,
    *,
    tolerance: TensorTolerance,
    open_reference: OpenMarked = open_in_onnxruntime,
    open_candidate: OpenMarked = open_in_onnxruntime,
    probes: int = PROBES,
    on_progress: Progress = silent,
) -> Search:
    """Find the node whose result is the first to differ when both graphs get ``feeds``.

    Args:
        reference, candidate: ONNX files with the same inputs.
        feeds: arrays by input name.
        tolerance: how far a tensor may be off.
        open_reference, open_candidate: what runs them: ONNX Runtime, or an engine built of the marked graph.
        probes: tensors of one round.
        on_progress: hears of every round.

    Raises:
        GraphError: a file is not a graph, cannot be run, or the graphs have no output in common.
    """
    left, right = TensorGraph(reference), TensorGraph(candidate)
    pairs = {pair.candidate: pair for pair in pair_tensors(left, right)}
    outputs = [pairs[name] for name in right.outputs if name in pairs]
    if not outputs:
        raise GraphError(
            "the two graphs have no output in common",
            where=candidate,
            found=f"{', '.join(right.outputs)}; the reference has {', '.join(left.outputs)}",
            fix="compare the same component of two bundles of one checkpoint",
        )
    with TemporaryDirectory(prefix="nemotrt-debug-") as folder:
        prober = _Prober(
            left, right, feeds, tolerance, folder=Path(folder), open_left=open_reference, open_right=open_candidate
        )
        search = _Descent(prober, pairs, probes=probes, on_progress=on_progress)
        first, vanished = search.descend(outputs)
    unpaired = len(right.computed) - len(pairs)
    return Search(first, vanished, runs=prober.runs, tensors=len(pairs), unpaired=unpaired)


class _Prober:
    """Runs both graphs with some pairs as outputs, and remembers what was found."""

    def __init__(
        self,
        left: TensorGraph,
        right: TensorGraph,
        feeds: Arrays,
        tolerance: TensorTolerance,
        *,
        folder: Path,
        open_left: OpenMarked,
        open_right: OpenMarked,
    ) -> None:
        self.left, self.right = left, right
        self._feeds, self._tolerance, self._folder = feeds, tolerance, folder
        self._open_left, self._open_right = open_left, open_right
        self.runs, self.largest_bytes = 0, 1
        self.found: dict[str, TensorDifference] = {}

    def probe(self, pairs: Sequence[TensorPair]) -> None:
        """Measure ``pairs``; the results are in ``found`` by the name in the candidate."""
        self.runs += 1
        wanted = self._outputs_of(self.left, [pair.reference for pair in pairs], self._open_left)
        got = self._outputs_of(self.right, [pair.candidate for pair in pairs], self._open_right)
        for pair in pairs:
            array = wanted[pair.reference]
            self.largest_bytes = max(self.largest_bytes, array.nbytes)
            self.found[pair.candidate] = tensor_difference(
                array,
                got[pair.candidate],
                limit=self._tolerance.at(self.right.depth(pair.candidate)),
                frame_axis=self.right.frame_axis(pair.candidate),
            )

    def _outputs_of(self, graph: TensorGraph, names: list[str], open_marked: OpenMarked) -> dict[str, Array]:
        marked = graph.mark(tuple(names), self._folder / "marked.onnx")
        with closing(open_marked(marked, graph.path.parent)) as runner:
            return runner.run({name: self._feeds[name] for name in graph.inputs})


class _Descent:
    """From a wrong output towards the inputs, one round of probes at a time."""

    def __init__(self, prober: _Prober, pairs: dict[str, TensorPair], *, probes: int, on_progress: Progress) -> None:
        self._prober, self._pairs, self._probes, self._progress = prober, pairs, probes, on_progress
        self._paired = frozenset(pairs)

    def descend(self, outputs: Sequence[TensorPair]) -> tuple[FirstDifference | None, bool]:
        """The difference, and whether it vanished when it was looked for."""
        self._prober.probe(outputs)
        wrong = self._first_wrong(pair.candidate for pair in outputs)
        if wrong is None:
            return None, False
        again = [wrong]
        while candidates := self._open_ancestors(wrong) or self._open_inputs(wrong):
            self._progress(f"{len(candidates)} tensors left", 1 / (1 + len(candidates)))
            chosen = _spread(candidates, self._count())
            self._prober.probe([self._pairs[name] for name in [*chosen, *again]])
            again = []
            if not self._prober.found[wrong].differs:
                return None, True
            wrong = self._first_wrong([*chosen, wrong]) or wrong
        return self._blamed(wrong), False

    def _count(self) -> int:
        return max(1, min(self._probes, ROUND_BYTES // self._prober.largest_bytes))

    def _first_wrong(self, names: Iterable[str]) -> str | None:
        return next((name for name in names if self._prober.found[name].differs), None)

    def _open_ancestors(self, wrong: str) -> list[str]:
        """What leads to ``wrong``, was not probed, and does not lead to something that is right."""
        graph = self._prober.right
        behind = graph.ancestors(wrong) - {wrong}
        cleared: set[str] = set()
        for name in behind & self._prober.found.keys():
            difference = self._prober.found[name]
            # An integer is right more often than not: the shape of a wrong tensor, say.
            if difference.limit and not difference.differs:
                cleared |= graph.ancestors(name)
        return [name for name in self._pairs if name in behind and name not in cleared | self._prober.found.keys()]

    def _open_inputs(self, wrong: str) -> list[str]:
        return [name for name in self._prober.right.nearest(wrong, self._paired) if name not in self._prober.found]

    def _blamed(self, wrong: str) -> FirstDifference:
        graph, pair = self._prober.right, self._pairs[wrong]
        inputs = graph.nearest(wrong, self._paired)
        node = graph.origin(wrong)
        reached = frozenset(name for source in inputs for name in graph.ancestors(source))
        between = {str(graph.origin(name).name) for name in graph.ancestors(wrong) - reached} - {str(node.name)}
        return FirstDifference(
            tensor=wrong,
            reference_tensor=pair.reference,
            node=str(node.name or node.outputs[0].name),
            op=node.op_type,
            scope=scope_of(node),
            difference=self._prober.found[wrong],
            inputs=tuple(InputDifference(name, self._prober.found[name]) for name in inputs),
            between=tuple(sorted(between)),
            causes=node_differences(self._prober.left.origin(pair.reference), node),
        )


def _spread(names: Sequence[str], count: int) -> list[str]:
    """At most ``count`` of ``names``, in order, each in the middle of a stretch: a single one halves them."""
    if len(names) <= count:
        return list(names)
    return [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]

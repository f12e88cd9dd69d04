"""The fewest nodes that must stay in float32 for a half precision model to pass the speech gate.

bundle --> typed, some nodes kept --> runner --> the same audio as float32 --> pass | fail
                    ^                                                             |
                    `---- bisection: the blocks, then the nodes in those of them -'

A block is a layer (``layers.3``), or what stands beside the layers (``pre_encode``). The gate is that of ``compare``,
with no other token allowed.

What a comparison sees depends on the runner. ONNX Runtime's CPU computes a float16 graph mostly in float32, so an
overflow would only be seen where a Cast happens to store a value. By default it therefore runs the typed graph's
rounded twin (``trt.rounded_graph``), which stores every value in half and so overflows where the value does. What a
half accumulator overflows inside of one operator takes a runner on the hardware that does so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import log2
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import onnx_ir as ir
from pydantic import Field, ValidationError

from nemotrt import __version__
from nemotrt.bench.compare import compare
from nemotrt.bench.record import Record
from nemotrt.bench.system import Progress, System, silent
from nemotrt.bench.tolerances import Tolerance, tolerance_for
from nemotrt.bench.utterance import Utterance
from nemotrt.bundle import Bundle, ComponentName, ComponentSpec, Decoder
from nemotrt.engines.component_runners import FRONT_END
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Runner
from nemotrt.engines.transcriber import Transcriber, components_of
from nemotrt.errors import ComparisonFailed
from nemotrt.trt.half_types import computes_in_half
from nemotrt.trt.irreducible import irreducible_part
from nemotrt.trt.keep_list import write_keep_list
from nemotrt.trt.precision import CastPlan, HalfPrecision, refuse_half_precision, save_component, typed_component
from nemotrt.trt.rounded_graph import round_stored_values

CACHE_SUFFIX = ".search.json"
"""Behind the name of the keep list: what was compared so far, to go on from."""

_ROWS = 4

OpenTyped = Callable[[ir.Model, ComponentSpec, Path], Runner]
"""A runner of a typed graph, which is the caller's to close; it may fill the folder."""


def open_rounded(model: ir.Model, component: ComponentSpec, folder: Path) -> Runner:
    """ONNX Runtime on the CPU, every value that ``model`` types as half rounded to it."""
    round_stored_values(model)
    spec = save_component(model, component, folder)
    return OnnxRuntimeRunner(folder / spec.graph, spec=component)


@dataclass(frozen=True)
class SearchPlan:
    """How to search. ``backend`` names what ``open_typed`` opens: verdicts of another one do not count."""

    to: HalfPrecision = "fp16"
    decoder: Decoder | None = None
    open_typed: OpenTyped = open_rounded
    backend: str = "rounded values, ONNX Runtime CPU"


@dataclass(frozen=True)
class PrecisionSearch:
    """The nodes to keep, in order, and the blocks they are in; ``half_nodes`` is how many nodes could be half.

    ``comparisons`` were run, ``recalled`` ones were known from an earlier search.
    """

    keep: tuple[str, ...]
    blocks: tuple[str, ...]
    half_nodes: int
    comparisons: int
    recalled: int


def search_precision(
    bundle: Bundle,
    utterances: Sequence[Utterance],
    output: Path,
    plan: SearchPlan = SearchPlan(),
    *,
    on_progress: Progress = silent,
) -> PrecisionSearch:
    """Find the nodes of a float32 ``bundle`` that must stay float32, and write the keep list to ``output``.

    None of them can be left out. Each culprit costs about log2 of the blocks and log2 of a block's nodes in
    comparisons. Verdicts are kept beside ``output``; a search that was interrupted goes on from them.

    Raises:
        UsageError: no clips, a bundle that was cast already, or a decoder that it does not have.
        ComparisonFailed: the gate fails with every node in float32: precision is not what is wrong.
        AudioError, GraphError: as ``compare`` and ``cast_bundle``.
    """
    refuse_half_precision(bundle)
    with Transcriber(bundle, decoder=plan.decoder) as reference:
        gate = _Gate(System("float32", reference), utterances, plan, folder=output.absolute().parent)
        nodes = gate.half_nodes()
        blocks: dict[str, list[str]] = {}
        for name in nodes:
            blocks.setdefault(block_of(name), []).append(name)
        expected = 2 + log2(max(1, len(blocks))) + log2(max(map(len, blocks.values()), default=1))
        verdicts = _Verdicts(gate, output.with_name(output.name + CACHE_SUFFIX), on_progress, expected=expected)
        found = _culprits(blocks, verdicts)
        inside = [name for block in found for name in blocks[block]]
        keep = irreducible_part(inside, verdicts.passes)
    write_keep_list(output, keep)
    return PrecisionSearch(keep, found, len(nodes), verdicts.comparisons, verdicts.recalled)


def block_of(name: str) -> str:
    """The layer of a node, or the outermost scope: ``layers.3.conv.MatMul`` is in ``layers.3``."""
    parts = name.split(".")
    numbered = next((index for index, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: numbered + 1])


def _culprits(blocks: Mapping[str, Sequence[str]], verdicts: _Verdicts) -> tuple[str, ...]:
    def passes(kept: frozenset[str]) -> bool:
        return verdicts.passes(frozenset(name for block in kept for name in blocks[block]))

    if passes(frozenset()):
        return ()
    if not passes(frozenset(blocks)):
        raise ComparisonFailed(
            "the model fails the gate with every node in float32",
            found=verdicts.last_reason,
            fix="precision is not what is wrong: nemotrt check the bundle, and look at the clips",
        )
    return irreducible_part(list(blocks), passes)


class _Gate:
    """Judges the model with some nodes kept."""

    def __init__(self, reference: System, utterances: Sequence[Utterance], plan: SearchPlan, *, folder: Path) -> None:
        self._reference, self._utterances, self._plan, self._folder = reference, utterances, plan, folder
        self._bundle, self._decoder = reference.transcriber.bundle, reference.transcriber.decoder
        row = tolerance_for(self._bundle.meta.family, plan.to, decoder=self._decoder)
        self._tolerance: Tolerance = row.model_copy(update={"token_error_rate": 0.0, "word_error_rate": 0.0})
        self._components: list[ComponentName] = [name for name in components_of(self._decoder) if name != FRONT_END]

    def half_nodes(self) -> list[str]:
        """Names of the nodes that are half if none is kept, in the order of the data."""
        models = (typed_component(self._bundle, name, CastPlan(self._plan.to))[0] for name in self._components)
        nodes = (node for model in models for node in model.graph if computes_in_half(node))
        return list(dict.fromkeys(str(node.name) for node in nodes))

    def subject(self) -> str:
        """Digest of everything but the nodes that are kept."""
        files = {file for name in self._components for file in self._bundle.component(name).files}
        graphs = sorted(self._bundle.meta.files[file].sha256 for file in files)
        clips = [hashlib.sha256(u.waveform.samples.tobytes()).hexdigest() for u in self._utterances]
        limits = self._tolerance.model_dump(mode="json")
        parts = (__version__, graphs, clips, limits, self._decoder, self._plan.backend)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def reasons(self, kept: frozenset[str]) -> tuple[str, ...]:
        """Why the model fails with ``kept`` in float32; nothing if it passes. A failure on the first clip is enough."""
        plan = CastPlan(self._plan.to, keep=tuple(kept))
        with TemporaryDirectory(dir=self._folder, prefix=".precision-search.") as folder, ExitStack() as opened:
            runners: dict[str, Runner] = {}
            for name in self._components:
                model, _ = typed_component(self._bundle, name, plan)
                runners[name] = self._plan.open_typed(model, self._bundle.component(name), Path(folder))
                opened.callback(runners[name].close)
            candidate = Transcriber(self._bundle, decoder=self._decoder, runners=runners)
            system = System(self._plan.backend, opened.enter_context(candidate))
            rows = None if self._bundle.meta.fixed_feature_frames is not None else _ROWS
            return self._compared(system, self._utterances[:1], None) or self._compared(system, self._utterances, rows)

    def _compared(self, candidate: System, utterances: Sequence[Utterance], rows: int | None) -> tuple[str, ...]:
        judged = compare(self._reference, candidate, utterances, tolerance=self._tolerance, batch_size=rows)
        return judged.reasons


class _Known(Record):
    """The file of verdicts: reasons to fail by the digest of what was kept; none is a pass."""

    version: Literal[1] = 1
    subject: str
    reasons: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class _Verdicts:
    """Asks the gate once for each set of nodes, and notes every answer in a file. ``expected`` is about how often."""

    def __init__(self, gate: _Gate, path: Path, on_progress: Progress, *, expected: float) -> None:
        self._gate, self._path, self._on_progress, self._expected = gate, path, on_progress, expected
        self._known = _read(path, gate.subject())
        self._asked: set[str] = set()
        self.comparisons = self.recalled = 0
        self.last_reason = ""

    def passes(self, kept: frozenset[str]) -> bool:
        """Whether the model passes with ``kept`` in float32."""
        key = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()
        if key not in self._known.reasons:
            what = f"comparison {self.comparisons + 1}, {len(kept)} nodes in float32"
            self._on_progress(what, self.comparisons / (self.comparisons + self._expected))
            self._note(key, self._gate.reasons(kept))
            self.comparisons += 1
        elif key not in self._asked:
            self.recalled += 1
        self._asked.add(key)
        self.last_reason = "; ".join(self._known.reasons[key])
        return not self.last_reason

    def _note(self, key: str, reasons: tuple[str, ...]) -> None:
        self._known = self._known.model_copy(update={"reasons": {**self._known.reasons, key: reasons}})
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_text(self._known.model_dump_json(indent=1), encoding="utf-8")
        partial.replace(self._path)


def _read(path: Path, subject: str) -> _Known:
    """What an earlier search of the same subject found out; a file of another one, or a damaged one, is nothing."""
    try:
        known = _Known.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return _Known(subject=subject)
    return known if known.subject == subject else _Known(subject=subject)

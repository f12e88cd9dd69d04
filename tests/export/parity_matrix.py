"""The models nemotrt builds, as a matrix of choices, and how far each is from the NeMo modules it was saved from.

    family x head x norm x bias x context -> tiny random checkpoint -> bundle -> ONNX Runtime | NeMo

Each cell runs twenty batches of one to five rows, the longest of 20 lengths, padded by up to a half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from nemo_oracle import FloatArray, IntArray, NemoModel
from onnx_sessions import Graph, worst_of_rows
from small_models import VOCABULARY, SmallModel, small_ctc, small_transducer

from nemotrt.bundle import Bundle
from nemotrt.export import export_checkpoint

OWN_FEATURES = 7
BATCHES = 20
LARGEST_BATCH = 5

FAMILIES: dict[str, dict[str, Any]] = {
    "FastConformer x8": {"subsampling": "dw_striding", "subsampling_factor": 8},
    "FastConformer x8, causal": {
        "subsampling": "dw_striding", "subsampling_factor": 8, "causal_downsampling": True,
        "conv_context_size": "causal",
    },
    "FastConformer x8, local attention": {
        "subsampling": "dw_striding", "subsampling_factor": 8, "self_attention_model": "rel_pos_local_attn",
    },
    "Conformer x4": {"subsampling": "striding", "subsampling_factor": 4},
    "Conformer x4, absolute positions": {
        "subsampling": "striding", "subsampling_factor": 4, "self_attention_model": "abs_pos",
    },
    "own features, no subsampling": {"feat_in": OWN_FEATURES, "subsampling_factor": 1},
}  # fmt: skip
HEADS: dict[str, dict[str, Any]] = {
    "CTC": {},
    "RNNT": {"durations": ()},
    "RNNT, 2 LSTM layers": {"durations": (), "prednet": {"pred_rnn_layers": 2}},
    "TDT": {"durations": (0, 1, 2, 3, 4)},
    "hybrid RNNT-CTC": {"durations": (), "ctc": True},
    "hybrid TDT-CTC": {"durations": (0, 1, 2), "ctc": True},
}
NORMS = {
    "batch": "batch_norm", "fused": "fused_batch_norm", "layer": "layer_norm", "group": "group_norm4",
    "instance": "instance_norm",
}  # fmt: skip
BIASES = {"bias": True, "no bias": False}
CONTEXTS: dict[str, dict[str, Any]] = {
    "all": {"att_context_size": [-1, -1]},
    "window": {"att_context_size": [5, 3]},
    "chunks": {"att_context_size": [6, 2], "att_context_style": "chunked_limited"},
    "look-aheads": {"att_context_size": [[-1, 1], [0, 3]], "att_context_style": "chunked_limited"},
}
LOCAL_CONTEXTS: dict[str, dict[str, Any]] = {"window": {"att_context_size": [4, 4]}}

# NeMo takes these statistics over the padding too, so a row there depends on its neighbours: it is asked row by row.
NORMS_OVER_FRAMES = ("group", "instance")

REFUSED: tuple[tuple[str, object], ...] = (
    ("subsampling", "vggnet"),
    ("subsampling", "stacking"),
    ("subsampling", "stacking_norm"),
    ("subsampling", "striding_conv1d"),
    ("subsampling", "dw_striding_conv1d"),
    ("subsampling_factor", 16),
    ("reduction", "pooling"),
    ("feat_out", 24),
    ("self_attention_model", "rel_pos_local_attn"),  # of an unlimited window
    ("att_context_style", "chunked_limited_with_rc"),
)


@dataclass(frozen=True)
class Cell:
    """One model, by the names of its choices."""

    family: str
    head: str
    norm: str
    bias: str
    context: str

    def encoder_options(self) -> dict[str, Any]:
        """Arguments of ``ConformerEncoder``."""
        context = _contexts(self.family)[self.context]
        norm, bias = {"conv_norm_type": NORMS[self.norm]}, {"use_bias": BIASES[self.bias]}
        return FAMILIES[self.family] | context | norm | bias


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences on valid frames; ``encoder`` is ``None`` for a CTC model, which is one graph."""

    encoder: float | None
    heads: float


def every_cell() -> list[Cell]:
    """The whole matrix."""
    return [
        Cell(family, head, norm, bias, context)
        for family in FAMILIES
        for head, norm, bias, context in product(HEADS, NORMS, BIASES, _contexts(family))
    ]


def difference(cell: Cell, checkpoint: Path, *, seed: int) -> Difference:
    """Make the model of ``cell`` at ``checkpoint``, export it beside, run both.

    Raises:
        AssertionError: lengths differ, or the variant without masks gives other numbers than the graph with them.
    """
    make = small_ctc if cell.head == "CTC" else small_transducer
    model = make(checkpoint, encoder=cell.encoder_options(), seed=seed, **HEADS[cell.head])
    pair = _Pair(model, export_checkpoint(checkpoint, checkpoint.with_suffix("")), cell.norm in NORMS_OVER_FRAMES, seed)
    return pair.difference()


def _contexts(family: str) -> dict[str, dict[str, Any]]:
    return LOCAL_CONTEXTS if "local" in family else CONTEXTS


def _batches(shortest: int, longest: int) -> Iterator[list[int]]:
    """Lengths of the rows: the first one the longest, the others down to half of it."""
    for index, frames in enumerate(np.linspace(shortest, longest, BATCHES).round().astype(int)):
        rows = 1 + index % LARGEST_BATCH
        yield [max(shortest, int(frames * (1 - 0.5 * row / max(rows - 1, 1)))) for row in range(rows)]


class _Pair:
    def __init__(self, model: SmallModel, bundle: Bundle, row_by_row: bool, seed: int) -> None:
        self._nemo: NemoModel = model.nemo
        self._bundle, self._row_by_row = bundle, row_by_row
        self._graphs = {name: Graph.of(bundle, name) for name in bundle.meta.components if name != "preprocessor"}
        self._rng = np.random.default_rng(seed)

    def difference(self) -> Difference:
        encoder, heads = [], []
        factor = self._bundle.meta.encoder.subsampling_factor
        # torch takes no statistics of a single frame
        for lengths in _batches(2 * factor if self._row_by_row else 1, 16 * factor + 9):
            shape = (len(lengths), self._bundle.meta.encoder.features, max(lengths))
            signal = 3 * self._rng.standard_normal(shape).astype(np.float32)
            wanted, wanted_lengths = self._nemo_encoder(signal, np.array(lengths))
            if "encoder" in self._graphs:
                encoder.append(self._graph("encoder", signal, lengths, wanted, wanted_lengths, axis=2))
            if "ctc" in self._graphs:
                logprobs = self._nemo.ctc(wanted)
                heads.append(self._graph("ctc", signal, lengths, logprobs, wanted_lengths, axis=1))
        if "predictor" in self._graphs:
            heads.append(self._transducer())
        return Difference(max(encoder) if encoder else None, max(heads))

    def _graph(
        self, name: str, signal: FloatArray, lengths: list[int], wanted: FloatArray, counts: IntArray, *, axis: int
    ) -> float:
        found, found_lengths = self._graphs[name](audio_signal=signal, length=np.array(lengths))
        assert found_lengths.tolist() == counts.tolist(), (name, lengths)
        if len(lengths) == 1:
            (unmasked,) = self._graphs[f"{name}_nomask"](audio_signal=signal)
            assert worst_of_rows(unmasked, found, counts, axis=axis) <= 1e-6, f"{name}_nomask"
        return worst_of_rows(found, wanted, counts, axis=axis)

    def _nemo_encoder(self, signal: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        if not self._row_by_row:
            return self._nemo.encoder(signal, lengths)
        rows = [self._nemo.encoder(row[None, :, :n], np.array([n])) for row, n in zip(signal, lengths, strict=True)]
        counts = np.concatenate([count for _, count in rows])
        wanted = np.zeros((len(rows), rows[0][0].shape[1], int(counts.max())), np.float32)
        for place, (output, count) in zip(wanted, rows, strict=True):
            place[:, : count[0]] = output[0, :, : count[0]]
        return wanted, counts

    def _transducer(self) -> float:
        spec = self._bundle.meta.transducer
        assert spec is not None
        y = self._rng.integers(0, len(VOCABULARY) + 1, (3, 4))
        states = self._rng.standard_normal((2, spec.predictor_layers, 3, spec.predictor_hidden)).astype(np.float32)
        encoded = self._rng.standard_normal((3, self._bundle.meta.encoder.d_model, 6)).astype(np.float32)
        wanted = self._nemo.predictor(y, *states)
        found = self._graphs["predictor"](y=y, h=states[0], c=states[1])
        (logits,) = self._graphs["joint"](encoder_output=encoded, predictor_output=wanted[0])
        pairs = [*zip(found, wanted, strict=True), (logits, self._nemo.joint(encoded, wanted[0]))]
        return max(float(np.abs(a - b).max()) for a, b in pairs)

"""Greedy RNNT and TDT: NeMo is the oracle, on scripted adversarial logits and on its own random modules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotrt.bundle import TensorSpec, TransducerSpec
from nemotrt.engines.decoding_transducer import GreedyTransducer
from nemotrt.engines.hypothesis import Hypothesis
from nemotrt.engines.runner import Array, Arrays
from nemotrt.errors import GraphError

BLANK = 3
TDT = (0, 1, 2, 4)
# Logits of one step, by the number of tokens so far and the frame.
Script = Callable[[int, int], Sequence[float]]


class FunctionRunner:
    """A Runner over a Python function, with a count of its runs."""

    label = "python"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, function: Callable[[Arrays], dict[str, Array]]) -> None:
        self._function = function
        self.runs = 0

    def run(self, feeds: Arrays) -> dict[str, Array]:
        self.runs += 1
        return self._function(feeds)

    def close(self) -> None:
        pass


def spec(durations: tuple[int, ...], max_symbols: int) -> TransducerSpec:
    return TransducerSpec(
        predictor_layers=1, predictor_hidden=1, durations=durations, max_symbols_per_frame=max_symbols
    )


def counting_predictor() -> FunctionRunner:
    """Its output and its state are the number of tokens it was given, blank not counted."""

    def predict(feeds: Arrays) -> dict[str, Array]:
        count = feeds["h"] + (feeds["y"] != BLANK).T[None].transpose(0, 2, 1)
        return {"g": count[0][:, :, None], "h_out": count.astype(np.float32), "c_out": feeds["c"]}

    return FunctionRunner(predict)


def scripted_joint(scripts: Sequence[Script]) -> FunctionRunner:
    """Reads row and frame from the encoder output and the token count from the predictor's."""

    def join(feeds: Arrays) -> dict[str, Array]:
        rows, frames = feeds["encoder_output"][:, :, 0].astype(int).T
        counts = feeds["predictor_output"][:, 0, 0].astype(int)
        logits = [scripts[row](count, frame) for row, count, frame in zip(rows, counts, frames, strict=True)]
        return {"joint_output": np.array(logits, dtype=np.float32)[:, None, None]}

    return FunctionRunner(join)


def rows_and_frames(rows: Sequence[int], frames: int) -> Array:
    """``[batch, 2, frames]``: each frame says which row and which frame it is."""
    return np.stack(
        [
            np.broadcast_to(np.array(rows)[:, None], (len(rows), frames)),
            np.tile(np.arange(frames), (len(rows), 1)),
        ],
        axis=1,
    ).astype(np.float32)


class Scripted:
    """A decode over scripted logits; keeps the runners to be asked how often they ran."""

    def __init__(self, *scripts: Script, durations: tuple[int, ...] = (), max_symbols: int = 10) -> None:
        self.predictor = counting_predictor()
        self.joint = scripted_joint(scripts)
        self._count = len(scripts)
        self._search = GreedyTransducer(self.predictor, self.joint, spec=spec(durations, max_symbols), blank_id=BLANK)

    def decode(self, lengths: Sequence[int], rows: Sequence[int] | None = None) -> tuple[Hypothesis, ...]:
        rows = range(self._count) if rows is None else rows
        return self._search.decode(rows_and_frames(rows, max(lengths)), np.array(lengths, dtype=np.int64))


def step(token: int, duration: int | None = None) -> list[float]:
    """Logits that say ``token``, and for TDT ``duration``."""
    logits = [float(label == token) for label in range(BLANK + 1)]
    return logits if duration is None else logits + [float(choice == duration) for choice in TDT]


def test_a_blank_moves_one_frame_and_a_token_stays():
    said = {(0, 1): 2, (1, 1): 0, (2, 3): 1}
    (hypothesis,) = Scripted(lambda count, frame: step(said.get((count, frame), BLANK))).decode([5])
    assert hypothesis == Hypothesis((2, 0, 1), (1, 1, 3))


def test_no_frame_gives_more_than_max_symbols_tokens():
    (hypothesis,) = Scripted(lambda count, frame: step(1), max_symbols=3).decode([2])
    assert hypothesis == Hypothesis((1,) * 6, (0, 0, 0, 1, 1, 1))


def test_a_blank_of_duration_zero_moves_one_frame():
    scripted = Scripted(lambda count, frame: step(BLANK, 0), durations=TDT)
    assert scripted.decode([7]) == (Hypothesis((), ()),)
    assert scripted.joint.runs == 7


def test_a_token_of_duration_zero_stays_until_max_symbols():
    (hypothesis,) = Scripted(lambda count, frame: step(2, 0), durations=TDT, max_symbols=2).decode([3])
    assert hypothesis == Hypothesis((2,) * 6, (0, 0, 1, 1, 2, 2))


def test_the_count_of_symbols_starts_again_on_every_frame():
    durations = [0, 0, 1, 0, 0, 1]  # three tokens on a frame, the third one leaves it
    (hypothesis,) = Scripted(lambda count, frame: step(0, durations[count]), durations=TDT, max_symbols=4).decode([2])
    assert hypothesis.frames == (0, 0, 0, 1, 1, 1)


def test_the_last_symbol_of_a_frame_keeps_its_own_duration():
    durations = [0, 2, 0, 2]
    (hypothesis,) = Scripted(lambda count, frame: step(0, durations[count]), durations=TDT, max_symbols=2).decode([4])
    assert hypothesis.frames == (0, 0, 2, 2)


def test_a_duration_beyond_the_end_ends_the_row():
    (hypothesis,) = Scripted(lambda count, frame: step(0, 4), durations=TDT).decode([6])
    assert hypothesis == Hypothesis((0, 0), (0, 4))


def test_a_duration_logit_never_competes_with_a_token():
    (hypothesis,) = Scripted(
        lambda count, frame: [0.0, 1.0, 0.0, 0.0, -50.0, 90.0, -50.0, -50.0], durations=TDT
    ).decode([2])
    assert hypothesis == Hypothesis((1, 1), (0, 1))


def test_of_equal_logits_the_lowest_index_wins():
    (rnnt,) = Scripted(lambda count, frame: [0.0] * 4, max_symbols=1).decode([2])
    (tdt,) = Scripted(lambda count, frame: [0.0] * 8, durations=TDT, max_symbols=1).decode([2])
    assert rnnt == tdt == Hypothesis((0, 0), (0, 1))


def test_the_predictor_runs_once_and_then_only_after_a_token():
    said = {(0, 2): 1, (1, 6): 2}
    scripted = Scripted(lambda count, frame: step(said.get((count, frame), BLANK)), lambda count, frame: step(BLANK))
    scripted.decode([9, 9])
    assert scripted.predictor.runs == 1 + 2


def test_blank_leaves_the_state_alone_while_other_rows_emit():
    def late(count: int, frame: int) -> list[float]:
        return step(2) if (count, frame) == (0, 4) else step(BLANK)

    talkative, silent = Scripted(lambda count, frame: step(1), late, max_symbols=2).decode([5, 5])
    assert silent == Hypothesis((2,), (4,))
    assert len(talkative.token_ids) == 10


def test_rows_of_no_frames_say_nothing_and_run_nothing():
    scripted = Scripted(lambda count, frame: step(1))
    encoder_output = np.zeros((1, 2, 0), dtype=np.float32)
    search = GreedyTransducer(scripted.predictor, scripted.joint, spec=spec((), 10), blank_id=BLANK)
    assert search.decode(encoder_output, np.array([0])) == (Hypothesis((), ()),)
    assert scripted.predictor.runs == scripted.joint.runs == 0


@pytest.mark.parametrize("length", [-1, 4])
def test_a_length_outside_of_the_output_is_refused(length: int):
    scripted = Scripted(lambda count, frame: step(BLANK))
    search = GreedyTransducer(scripted.predictor, scripted.joint, spec=spec((), 10), blank_id=BLANK)
    with pytest.raises(GraphError, match="encoded length"):
        search.decode(rows_and_frames([0], 3), np.array([length]))


def test_a_joint_without_the_durations_is_refused():
    with pytest.raises(GraphError, match="durations") as caught:
        Scripted(lambda count, frame: step(1), durations=TDT).decode([3])
    assert "(1, 1, 1, 8) expected" in str(caught.value)


# Integer logits of a narrow range: ties in most steps.
TABLE_FRAMES, TABLE_TOKENS = 9, 7


def table_scripts(seed: int, rows: int, durations: tuple[int, ...]) -> list[Script]:
    width = BLANK + 1 + len(durations)
    table = np.random.default_rng(seed).integers(0, 3, (rows, TABLE_TOKENS, TABLE_FRAMES, width))
    return [lambda count, frame, own=own: own[count % TABLE_TOKENS, frame] for own in table]


lengths_lists = st.lists(st.integers(0, TABLE_FRAMES), min_size=1, max_size=4).filter(any)


@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=lengths_lists,
    durations=st.sampled_from([(), TDT, (0,), (0, 1), (1, 2), (4, 0, 2)]),
    max_symbols=st.integers(1, 5),
)
def test_a_row_does_not_depend_on_its_neighbours(
    seed: int, lengths: list[int], durations: tuple[int, ...], max_symbols: int
):
    scripts = table_scripts(seed, len(lengths), durations)
    scripted = Scripted(*scripts, durations=durations, max_symbols=max_symbols)
    together = scripted.decode(lengths)
    alone = [scripted.decode([length], rows=[row])[0] for row, length in enumerate(lengths) if length]
    assert [hypothesis for hypothesis, length in zip(together, lengths, strict=True) if length] == alone


cuts = st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any)


def in_pieces(lengths: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[slice, Array]]:
    """Pieces of ``sizes`` frames, repeated, until the longest row has ended; and how many frames of each row."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= max(lengths):
            return
        yield slice(start, start + size), np.clip(np.array(lengths) - start, 0, size)
        start += size


def joined(pieces: Sequence[tuple[Hypothesis, ...]]) -> tuple[Hypothesis, ...]:
    return tuple(
        Hypothesis(sum((h.token_ids for h in row), ()), sum((h.frames for h in row), ()))
        for row in zip(*pieces, strict=True)
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=lengths_lists,
    sizes=cuts,
    durations=st.sampled_from([(), TDT, (0,), (0, 1), (1, 2), (4, 0, 2)]),
    max_symbols=st.integers(1, 5),
)
def test_frames_in_any_pieces_decode_as_all_at_once(
    seed: int, lengths: list[int], sizes: list[int], durations: tuple[int, ...], max_symbols: int
):
    scripts = table_scripts(seed, len(lengths), durations)
    predictor, joint = counting_predictor(), scripted_joint(scripts)
    model = GreedyTransducer(predictor, joint, spec=spec(durations, max_symbols), blank_id=BLANK)
    encoder_output = rows_and_frames(range(len(lengths)), max(lengths))
    search = model.start(len(lengths))
    pieces = [search.push(encoder_output[:, :, cut], counts) for cut, counts in in_pieces(lengths, sizes)]
    assert joined(pieces) == model.decode(encoder_output, np.array(lengths))


def test_a_duration_that_leaves_the_piece_skips_frames_of_the_next_ones():
    scripted = Scripted(lambda count, frame: step(0, 4), durations=TDT)
    model = GreedyTransducer(scripted.predictor, scripted.joint, spec=spec(TDT, 10), blank_id=BLANK)
    encoder_output, search = rows_and_frames([0], 9), model.start(1)
    pieces = [search.push(encoder_output[:, :, i : i + 3], np.array([3])) for i in (0, 3, 6)]
    assert [piece[0].frames for piece in pieces] == [(0,), (4,), (8,)]
    forgetful = [model.decode(encoder_output[:, :, i : i + 3], np.array([3]))[0].frames for i in (0, 3, 6)]
    assert forgetful == [(0,), (0,), (0,)]


def test_the_last_token_of_a_piece_reaches_the_predictor_when_more_frames_come():
    said = [1, 2, 0]
    scripted = Scripted(lambda count, frame: step(said[count] if count == frame else BLANK), max_symbols=1)
    model = GreedyTransducer(scripted.predictor, scripted.joint, spec=spec((), 1), blank_id=BLANK)
    encoder_output, search = rows_and_frames([0], 3), model.start(1)
    pieces = [search.push(encoder_output[:, :, i : i + 1], np.array([1]))[0].token_ids for i in range(3)]
    assert pieces == [(1,), (2,), (0,)]
    assert scripted.predictor.runs == 1 + 2
    forgetful = [model.decode(encoder_output[:, :, i : i + 1], np.array([1]))[0].token_ids for i in range(3)]
    assert forgetful == [(1,), (), ()]


class ScriptedNemoModules:
    """The decoder and joint interface of NeMo's label-looping decoders, over the same scripts."""

    def __init__(self, scripts: Sequence[Script], torch: object) -> None:
        self._joint = scripted_joint(scripts)
        self._predictor = counting_predictor()
        self._torch = torch
        self.num_classes_with_blank = BLANK + 1

    def initialize_state(self, encoder_output):
        zeros = self._torch.zeros(1, len(encoder_output), 1)
        return zeros, zeros.clone()

    def predict(self, y, state, *, add_sos, batch_size):
        h, c = state
        outputs = self._predictor.run({"y": y.numpy(), "h": h.numpy(), "c": c.numpy()})
        arrays = (outputs["g"].transpose(0, 2, 1), outputs["h_out"], outputs["c_out"])
        g, h, c = (self._torch.from_numpy(np.array(array, dtype=np.float32)) for array in arrays)
        return g, (h, c)

    def batch_replace_states_mask(self, *, src_states, dst_states, mask):
        for source, target in zip(src_states, dst_states, strict=True):
            target[:, mask] = source[:, mask]

    def project_encoder(self, encoder_output):
        return encoder_output

    def project_prednet(self, predictor_output):
        return predictor_output

    def joint_after_projection(self, encoder_frames, predictor_output):
        outputs = self._joint.run(
            {
                "encoder_output": encoder_frames.numpy().transpose(0, 2, 1),
                "predictor_output": predictor_output.numpy().transpose(0, 2, 1),
            }
        )
        return self._torch.from_numpy(outputs["joint_output"])


def nemo_search(modules: object, *, durations: tuple[int, ...], max_symbols: int, joint: object = None):
    """NeMo's label-looping decoder over ``modules`` (a decoder, and a joint if it is another object)."""
    looping = "nemo.collections.asr.parts.submodules.transducer_decoding"
    options = {"blank_index": BLANK, "max_symbols_per_step": max_symbols, "allow_cuda_graphs": False}
    if durations:
        module = pytest.importorskip(f"{looping}.tdt_label_looping")
        return module.GreedyBatchedTDTLabelLoopingComputer(
            modules, joint or modules, durations=list(durations), **options
        )
    module = pytest.importorskip(f"{looping}.rnnt_label_looping")
    return module.GreedyBatchedRNNTLabelLoopingComputer(modules, joint or modules, **options)


def hypotheses_of(batched: object) -> tuple[Hypothesis, ...]:
    """Ours from NeMo's ``BatchedHyps``."""
    rows = zip(batched.current_lengths, batched.transcript, batched.timestamps, strict=True)
    return tuple(
        Hypothesis(tuple(tokens[:count].tolist()), tuple(frames[:count].tolist())) for count, tokens, frames in rows
    )


@settings(deadline=None)  # the first example imports NeMo
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=lengths_lists,
    durations=st.sampled_from([(), TDT, (0,), (0, 1), (1, 2), (4, 0, 2)]),
    max_symbols=st.integers(1, 5),
)
def test_adversarial_logits_decode_as_in_nemo(
    seed: int, lengths: list[int], durations: tuple[int, ...], max_symbols: int
):
    torch = pytest.importorskip("torch")
    scripts = table_scripts(seed, len(lengths), durations)
    ours = Scripted(*scripts, durations=durations, max_symbols=max_symbols).decode(lengths)
    search = nemo_search(ScriptedNemoModules(scripts, torch), durations=durations, max_symbols=max_symbols)
    encoder_output = rows_and_frames(range(len(lengths)), max(lengths)).transpose(0, 2, 1)
    batched, _ = search.torch_impl(torch.tensor(encoder_output), torch.tensor(lengths))
    assert ours == hypotheses_of(batched)


ENCODER_WIDTH, HIDDEN, LAYERS = 12, 8, 2


@pytest.fixture(scope="module")
def nemo():
    """NeMo's predictor and joint modules, and torch."""
    rnnt = pytest.importorskip("nemo.collections.asr.modules.rnnt")
    return SimpleNamespace(rnnt=rnnt, torch=pytest.importorskip("torch"))


def random_modules(nemo: SimpleNamespace, *, durations: tuple[int, ...], seed: int):
    """A predictor and a joint with random weights, biased so that blanks are as frequent as in speech."""
    nemo.torch.manual_seed(seed)
    decoder = nemo.rnnt.RNNTDecoder(
        prednet={"pred_hidden": HIDDEN, "pred_rnn_layers": LAYERS, "dropout": 0.0}, vocab_size=BLANK
    )
    joint = nemo.rnnt.RNNTJoint(
        jointnet={
            "encoder_hidden": ENCODER_WIDTH,
            "pred_hidden": HIDDEN,
            "joint_hidden": 16,
            "activation": "relu",
        },
        num_classes=BLANK,
        num_extra_outputs=len(durations),
        vocabulary=["a", "b", "c"],
        log_softmax=False,
    )
    for parameter in (*decoder.parameters(), *joint.parameters()):
        nemo.torch.nn.init.normal_(parameter, std=0.7)
    with nemo.torch.no_grad():
        decoder.prediction["embed"].weight[BLANK] = 0
        joint.joint_net[-1].bias[BLANK] += 1.5
    return decoder.eval(), joint.eval()


def runners_from_modules(nemo: SimpleNamespace, decoder: object, joint: object):
    torch = nemo.torch

    @torch.inference_mode()
    def predict(feeds: Arrays) -> dict[str, Array]:
        y, h, c = (torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in ("y", "h", "c"))
        g, (h, c) = decoder.predict(y, [h, c], add_sos=False, batch_size=len(y))
        return {"g": g.transpose(1, 2).numpy(), "h_out": h.numpy(), "c_out": c.numpy()}

    @torch.inference_mode()
    def join(feeds: Arrays) -> dict[str, Array]:
        f, g = (
            torch.from_numpy(np.ascontiguousarray(feeds[name])).transpose(1, 2)
            for name in ("encoder_output", "predictor_output")
        )
        return {"joint_output": joint.joint(f, g).numpy()}

    return FunctionRunner(predict), FunctionRunner(join)


@pytest.mark.parametrize("max_symbols", [1, 3, 10])
@pytest.mark.parametrize("durations", [(), TDT, (0, 1, 2, 3, 4)], ids=["rnnt", "tdt-0124", "tdt-01234"])
def test_random_nemo_modules_decode_as_in_nemo(nemo: SimpleNamespace, durations: tuple[int, ...], max_symbols: int):
    lengths = np.array([40, 0, 17, 1, 39, 25])
    tokens = 0
    for seed in range(6):
        decoder, joint = random_modules(nemo, durations=durations, seed=seed)
        encoder_output = np.random.default_rng(seed).normal(size=(len(lengths), ENCODER_WIDTH, 40))
        encoder_output = encoder_output.astype(np.float32)
        own_spec = TransducerSpec(
            predictor_layers=LAYERS,
            predictor_hidden=HIDDEN,
            durations=durations,
            max_symbols_per_frame=max_symbols,
        )
        predictor_runner, joint_runner = runners_from_modules(nemo, decoder, joint)
        search = GreedyTransducer(predictor_runner, joint_runner, spec=own_spec, blank_id=BLANK)
        reference = nemo_search(decoder, durations=durations, max_symbols=max_symbols, joint=joint)
        with nemo.torch.inference_mode():
            batched, _ = reference.torch_impl(
                nemo.torch.from_numpy(encoder_output.transpose(0, 2, 1).copy()),
                nemo.torch.from_numpy(lengths),
            )
        ours = search.decode(encoder_output, lengths)
        assert ours == hypotheses_of(batched)
        continued = search.start(len(lengths))
        cut = list(in_pieces(lengths, [1 + seed, 7]))
        assert joined([continued.push(encoder_output[:, :, piece], counts) for piece, counts in cut]) == ours
        tokens += sum(len(hypothesis.token_ids) for hypothesis in ours)
    assert tokens > 100, "the random modules hardly spoke, so this proved little"

"""Passes that know encoders: each on the smallest graph it is for, and on one that only looks like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_surgery import noise, operated, write_graph

from nemotrt.trt.surgery.fold_batch_norm import FoldBatchNorm
from nemotrt.trt.surgery.fold_pads import FoldPads
from nemotrt.trt.surgery.fold_scales import FoldScales
from nemotrt.trt.surgery.fuse_activations import FuseActivations
from nemotrt.trt.surgery.layer_norm import FuseLayerNorm
from nemotrt.trt.surgery.mask_convolutions import MaskConvolutions
from nemotrt.trt.surgery.merge_projections import MergeProjections, SharePositions
from nemotrt.trt.surgery.onnx_session import OnnxSession
from nemotrt.trt.surgery.relative_shift import RelativeShift
from nemotrt.trt.surgery.share_masks import ShareMasks

WIDTH, HEADS, LONGEST = 8, 2, 40


# --- convolutions


def padded_convolution(folder: Path, *, pad: str = "Pad (x, widths)", conv: str = "", **weights: NDArray) -> Path:
    text = f"""g (float[batch, {WIDTH}, frames] x) => (float[batch, {WIDTH}, n] y) {{
        padded = {pad}
        y = Conv <group = {WIDTH}{conv}> (padded, kernel)
    }}"""
    own = {"widths": np.array([0, 0, 2, 0, 0, 1]), "kernel": noise(WIDTH, 1, 4), "zero": np.float32(0)}
    return write_graph(folder, text, **{**own, "other": np.float32(1), **weights})


@pytest.mark.parametrize("pad", ["Pad (x, widths)", "Pad (x, widths, zero)"])
def test_a_pad_with_zeros_is_the_padding_of_the_convolution(tmp_path: Path, pad: str) -> None:
    assert operated(padded_convolution(tmp_path, pad=pad), FoldPads()).after == {"Conv": 1}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"pad": "Pad (x, widths, other)"}, "does not pad with zeros"),
        ({"pad": 'Pad <mode = "edge"> (x, widths)'}, "does not pad with zeros"),
        ({"widths": np.array([0, 0, 3, 0, 0, -1])}, "or cuts"),
        ({"widths": np.array([1, 0, 2, 0, 0, 1])}, "rows or channels"),
        ({"conv": ', auto_pad = "SAME_UPPER"'}, "pads by itself"),
    ],
)
def test_a_pad_that_no_convolution_can_do_stays(tmp_path: Path, changed: dict, reason: str) -> None:
    assert reason in operated(padded_convolution(tmp_path, **changed), FoldPads()).refusal


def normed_convolution(folder: Path, *, bias: str = "", more: str = "", outputs: str = "") -> Path:
    text = f"""g (float[batch, {WIDTH}, frames] x) => (float[batch, {WIDTH}, n] y{outputs}) {{
        c = Conv (x, kernel{bias})
        y = BatchNormalization <epsilon = 0.001> (c, gamma, beta, mean, variance)
        {more}
    }}"""
    vectors = {name: noise(WIDTH, seed=seed) for seed, name in enumerate(("gamma", "beta", "mean", "b"))}
    variance = np.linspace(0.1, 3, WIDTH, dtype=np.float32)
    return write_graph(folder, text, kernel=noise(WIDTH, WIDTH, 1), variance=variance, **vectors)


@pytest.mark.parametrize("bias", ["", ", b"])
def test_a_batch_norm_is_part_of_the_convolution(tmp_path: Path, bias: str) -> None:
    assert operated(normed_convolution(tmp_path, bias=bias), FoldBatchNorm()).after == {"Conv": 1}


def test_a_batch_norm_of_a_convolution_that_others_read_stays(tmp_path: Path) -> None:
    path = normed_convolution(tmp_path, more="z = Relu (c)", outputs=f", float[batch, {WIDTH}, n] z")
    assert "somebody else reads" in operated(path, FoldBatchNorm()).refusal


UNMASKED = f"""g (float[batch, {WIDTH}, frames] x, int64[batch] length)
        => (float[batch, {WIDTH}, frames] y, int64[batch] n) {{
    n = Identity (length)
    %s
    y = Conv <group = {WIDTH}, pads = [1, 1]> (glu, kernel)
}}"""


def test_a_convolution_that_sees_padding_is_only_reported(tmp_path: Path) -> None:
    path = write_graph(tmp_path, UNMASKED % "glu = Relu (x)", kernel=noise(WIDTH, 1, 3))
    assert "it sees padding" in operated(path, MaskConvolutions()).refusal


def test_a_missing_mask_is_added_where_it_is_asked_for(tmp_path: Path) -> None:
    path = write_graph(tmp_path, UNMASKED % "glu = Relu (x)", kernel=noise(WIDTH, 1, 3))
    found = operated(path, MaskConvolutions(add=True), ragged=False)
    x, lengths = noise(2, WIDTH, 9), np.array([9, 4])
    leaking, tight = (OnnxSession(one) for one in (path, found.path))
    alone = tight.run({"x": x[1:, :, :4], "length": lengths[1:]})[0]
    assert np.allclose(tight.run({"x": x, "length": lengths})[0][1:, :, :4], alone, atol=1e-6)
    assert not np.allclose(leaking.run({"x": x, "length": lengths})[0][1:, :, :4], alone, atol=1e-6)


def test_a_masked_convolution_is_not_reported(tmp_path: Path) -> None:
    masked = """shape = Shape (x) frames_0 = Gather (shape, two) r = Range (nil, frames_0, one)
        column = Unsqueeze (length, axes) valid = Less (r, column) glu = Where (valid, x, zero)"""
    path = write_graph(
        tmp_path, UNMASKED % masked, kernel=noise(WIDTH, 1, 3), two=np.array(2), nil=np.array(0), one=np.array(1),
        axes=np.array([1, 2]), zero=np.float32(0),
    )  # fmt: skip
    assert operated(path, MaskConvolutions()).outcome.refusals == ()


# --- norms and activations


def spelled_out_norm(folder: Path, *, axis: int = -1, square: str = "Mul (d, d)", over: str = "d") -> Path:
    text = f"""g (float[batch, frames, {WIDTH}] x) => (float[batch, frames, {WIDTH}] y) {{
        mean = ReduceMean <axes = [{axis}]> (x)
        d = Sub (x, mean)
        square = {square}
        variance = ReduceMean <axes = [{axis}]> (square)
        more = Add (variance, epsilon)
        root = Sqrt (more)
        normed = Div ({over}, root)
        scaled = Mul (normed, scale)
        y = Add (scaled, bias)
    }}"""
    constants = {"epsilon": np.float32(1e-3), "two": np.float32(2), "three": np.float32(4)}
    return write_graph(folder, text, scale=noise(WIDTH), bias=noise(WIDTH, seed=1), **constants)


@pytest.mark.parametrize("form", [{}, {"square": "Pow (d, two)"}, {"axis": 2}])
def test_a_layer_norm_in_words_is_one_operator(tmp_path: Path, form: dict) -> None:
    assert operated(spelled_out_norm(tmp_path, **form), FuseLayerNorm()).after == {"LayerNormalization": 1}


@pytest.mark.parametrize("form", [{"square": "Pow (d, three)"}, {"axis": 1}, {"over": "x"}, {"square": "Mul (d, x)"}])
def test_another_norm_stays_as_it_is(tmp_path: Path, form: dict) -> None:
    assert "less its mean" in operated(spelled_out_norm(tmp_path, **form), FuseLayerNorm()).refusal


def test_a_sigmoid_in_words_is_one_operator(tmp_path: Path) -> None:
    text = """g (float[batch, 4] x) => (float[batch, 4] y) {
        m = Neg (x) e = Exp (m) s = Add (one, e) g = Div (one, s) y = Mul (x, g)
    }"""
    assert operated(write_graph(tmp_path, text, one=np.float32(1)), FuseActivations()).after == {"Sigmoid": 1, "Mul": 1}


def test_something_like_a_sigmoid_stays(tmp_path: Path) -> None:
    text = (
        """g (float[batch, 4] x) => (float[batch, 4] y) { m = Neg (x) e = Exp (m) s = Add (two, e) y = Div (one, s) }"""
    )
    path = write_graph(tmp_path, text, one=np.float32(1), two=np.float32(2))
    assert operated(path, FuseActivations()).outcome.changes == 0


def gated(folder: Path, *, gate: str = "Sigmoid", middle: int = 4) -> Path:
    text = f"""g (float[batch, {WIDTH}] x) => (float[batch, n] y) {{
        a = Slice (x, start, middle, axis)
        b = Slice (x, middle, end, axis)
        g = {gate} (b)
        y = Mul (a, g)
    }}"""
    bounds = {"start": 0, "middle": middle, "end": 2**62, "axis": 1}
    return write_graph(folder, text, **{name: np.array([number]) for name, number in bounds.items()})


def test_a_glu_is_one_split(tmp_path: Path) -> None:
    assert operated(gated(tmp_path), FuseActivations()).after == {"Split": 1, "Sigmoid": 1, "Mul": 1}


def test_halves_without_a_gate_are_no_glu(tmp_path: Path) -> None:
    assert "no gate" in operated(gated(tmp_path, gate="Relu"), FuseActivations()).refusal


# --- masks


MASK = f"""g (float[batch, {WIDTH}, frames] x, bool[batch, 1, frames] m) => (float[batch, {WIDTH}, frames] y) {{
    n = Cast <to = 1> (m)
    a = Mul (x, n)
    b = Conv <kernel_shape = [%d]%s> (a, kernel)
    c = Relu (b)
    y = Mul (c, n)
}}"""


def test_a_mask_before_a_pointwise_convolution_and_after_it_is_applied_once(tmp_path: Path) -> None:
    path = write_graph(tmp_path, MASK % (1, ""), kernel=noise(WIDTH, WIDTH, 1))
    assert operated(path, ShareMasks()).after == {"Cast": 1, "Conv": 1, "Relu": 1, "Mul": 1}


def test_a_mask_before_a_convolution_over_frames_stays(tmp_path: Path) -> None:
    path = write_graph(tmp_path, MASK % (3, ", pads = [1, 1]"), kernel=noise(WIDTH, WIDTH, 3))
    assert operated(path, ShareMasks()).outcome.changes == 0


def attention(folder: Path, *, fill: float = -10000.0, second: str = "m", axis: int = -1) -> Path:
    text = f"""g (float[batch, 2, frames, frames] s, bool[batch, 1, frames, frames] m, bool[batch, 1, frames, frames] o,
            float[batch, 2, frames, 4] v) => (float[batch, 2, frames, 4] y) {{
        filled = Where (m, fill, s)
        weights = Softmax <axis = {axis}> (filled)
        zeroed = Where ({second}, zero, weights)
        y = MatMul (zeroed, v)
    }}"""
    return write_graph(folder, text, fill=np.float32(fill), zero=np.float32(0))


def test_selections_in_an_attention_become_a_sum_and_rows_without_a_key_stay_zero(tmp_path: Path) -> None:
    found = operated(attention(tmp_path), ShareMasks())
    assert found.after["Where"] == 1
    everything = {"s": noise(1, 2, 5, 5), "m": np.ones((1, 1, 5, 5), bool), "o": np.ones((1, 1, 5, 5), bool)}
    assert not OnnxSession(found.path).run({**everything, "v": noise(1, 2, 5, 4)})[0].any()


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"fill": -1.0}, "to forbid a key"),
        ({"fill": -np.inf}, "to forbid a key"),
        ({"axis": 2}, "not over the last axis"),
    ],
)
def test_a_selection_that_is_no_mask_of_keys_stays(tmp_path: Path, form: dict, reason: str) -> None:
    assert reason in operated(attention(tmp_path, **form), ShareMasks()).refusal


def test_two_different_masks_in_an_attention_stay(tmp_path: Path) -> None:
    assert operated(attention(tmp_path, second="o"), ShareMasks()).outcome.changes == 0


# --- scales and projections


def test_half_of_a_feed_forward_goes_into_its_weights(tmp_path: Path) -> None:
    text = f"""g (float[batch, frames, {WIDTH}] x) => (float[batch, frames, 4] y) {{
        a = MatMul (x, weight) b = Add (bias, a) y = Mul (half, b)
    }}"""
    path = write_graph(tmp_path, text, weight=noise(WIDTH, 4), bias=noise(4), half=np.float32(0.5))
    assert operated(path, FoldScales()).after == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("a = MatMul (x, weight) b = Relu (a) c = Mul (b, half) y = Add (c, b)", "would have to pass Relu"),
        ("a = MatMul (x, weight) b = Mul (a, half) y = Add (a, b)", "a is read elsewhere"),
        ("a = Mul (x, half) y = MatMul (a, weight)", "would reach x"),
        ("t = Transpose <perm = [0, 2, 1]> (x) a = MatMul (t, x) b = Mul (a, half) y = MatMul (x, b)", "would reach x"),
    ],
)
def test_a_factor_that_does_not_reach_weights_stays(tmp_path: Path, nodes: str, reason: str) -> None:
    text = f"g (float[batch, frames, {WIDTH}] x) => (float[batch, frames, {WIDTH}] y) {{ {nodes} }}"
    path = write_graph(tmp_path, text, weight=noise(WIDTH, WIDTH), half=np.float32(0.5))
    assert reason in operated(path, FoldScales()).refusal


def heads_of(x: str, name: str, *, perm: str = "0, 2, 1, 3", vector: str = "") -> str:
    added = f"{name}_v = Add ({name}_h, {vector})" if vector else f"{name}_v = Identity ({name}_h)"
    return f"""{name}_p = MatMul ({x}, {name}_w) {name}_h = Reshape ({name}_p, heads) {added if vector else ""}
        {name} = Transpose <perm = [{perm}]> ({name}_{"v" if vector else "h"})"""


def projected(folder: Path, *, keys: str = "0, 2, 3, 1", source: str = "x") -> Path:
    text = f"""g (float[batch, frames, {WIDTH}] x) => (float[batch, {HEADS}, frames, 4] y) {{
        other = Relu (x)
        {heads_of("x", "q", vector="u")}
        {heads_of(source, "k", perm=keys)}
        {heads_of("x", "v")}
        s = MatMul (q, k)
        y = MatMul (s, v)
    }}"""
    weights = {f"{name}_w": noise(WIDTH, WIDTH, seed=seed) for seed, name in enumerate("qkv")}
    return write_graph(folder, text, heads=np.array([0, 0, HEADS, 4]), u=noise(HEADS, 4), **weights)


def test_queries_keys_and_values_are_one_product(tmp_path: Path) -> None:
    found = operated(projected(tmp_path), MergeProjections())
    assert (found.after["MatMul"], found.after["Reshape"], found.after["Split"]) == (3, 1, 1)


def test_a_projection_of_something_else_is_not_merged(tmp_path: Path) -> None:
    found = operated(projected(tmp_path, source="other"), MergeProjections())
    assert (found.after["MatMul"], found.after["Reshape"]) == (4, 2)


def test_heads_that_are_transposed_otherwise_are_refused(tmp_path: Path) -> None:
    text = f"""g (float[batch, frames, {WIDTH}] x) => (float[a, b, c, d] y) {{
        {heads_of("x", "q", perm="1, 0, 2, 3")}
        {heads_of("x", "k", perm="1, 0, 2, 3")}
        y = Add (q, k)
    }}"""
    path = write_graph(
        tmp_path, text, heads=np.array([0, 0, HEADS, 4]), q_w=noise(WIDTH, WIDTH), k_w=noise(WIDTH, WIDTH)
    )
    found = operated(path, MergeProjections())
    assert (found.outcome.changes, len(found.outcome.refusals)) == (0, 2)


def shifted(folder: Path, *, layers: int = 1, front: int = 1, extra: str = "y_0 = Identity (shifted_0)") -> Path:
    """NeMo's relative attention scores, of a table of ``2 * LONGEST - 1`` rows."""
    layer = """%(q)s
        positions_%(i)d = MatMul (rows, pos_%(i)d) by_head_%(i)d = Reshape (positions_%(i)d, heads)
        columns_%(i)d = Transpose <perm = [0, 2, 3, 1]> (by_head_%(i)d)
        scores_%(i)d = MatMul (q_%(i)d, columns_%(i)d)
        padded_%(i)d = Pad (scores_%(i)d, pads) folded_%(i)d = Reshape (padded_%(i)d, fold)
        cut_%(i)d = Slice (folded_%(i)d, one, most, two, one) back_%(i)d = Reshape (cut_%(i)d, unfold)
        shifted_%(i)d = Slice (back_%(i)d, nil, t, three, one)"""
    body = "\n".join(layer % {"i": i, "q": heads_of("x", f"q_{i}")} for i in range(layers))
    total = "y = Sum (" + ", ".join(f"shifted_{i}" for i in range(layers)) + ")"
    results = f"float[batch, {HEADS}, frames, frames] y" + (", float[a, b, c] z" if extra else "")
    text = f"""g (float[batch, frames, {WIDTH}] x) => ({results}) {{
        t = Shape <start = 1, end = 2> (x) b = Shape <start = 0, end = 1> (x)
        start = Sub (longest, t) middle = Add (longest, t) end = Sub (middle, one)
        rows = Slice (table, start, end, one, one)
        fold = Concat <axis = 0> (b, two, minus, t)
        wide = Add (t, t) columns = Sub (wide, one) unfold = Concat <axis = 0> (b, two, t, columns)
        {body}
        {total}
        {extra}
    }}"""
    numbers = {"nil": 0, "one": 1, "two": 2, "three": 3, "minus": -1, "most": 2**62, "longest": LONGEST}
    weights = {
        f"{name}_{i}{end}": noise(WIDTH, WIDTH, seed=i)
        for i in range(layers)
        for name, end in (("pos", ""), ("q", "_w"))
    }
    return write_graph(
        folder, text, heads=np.array([0, -1, HEADS, 4]), table=noise(1, 2 * LONGEST - 1, WIDTH),
        pads=np.array([0, 0, 0, front, 0, 0, 0, 1 - front]),
        **weights, **{name: np.array([number]) for name, number in numbers.items()},
    )  # fmt: skip


@pytest.mark.parametrize("layers", [1, 3])
def test_the_relative_shift_is_a_reshape_and_a_slice(tmp_path: Path, layers: int) -> None:
    found = operated(shifted(tmp_path, layers=layers, extra=""), RelativeShift())
    assert (found.after["Pad"], found.after["Slice"]) == (0, 1 + layers)
    x = {"x": noise(2, LONGEST, WIDTH)}
    before, after = (OnnxSession(one).run(x)[0] for one in (tmp_path / "before.onnx", found.path))
    assert np.abs(before - after).max() < 1e-4


def test_a_shift_of_rows_that_somebody_else_reads_stays(tmp_path: Path) -> None:
    found = operated(shifted(tmp_path, extra="z = Relu (rows)"), RelativeShift())
    assert "read by something else" in found.refusal


def test_a_column_behind_the_scores_is_no_shift(tmp_path: Path) -> None:
    assert operated(shifted(tmp_path, front=0, extra=""), RelativeShift()).outcome.changes == 0


def test_positions_of_all_layers_are_one_product(tmp_path: Path) -> None:
    found = operated(shifted(tmp_path, layers=3, extra=""), SharePositions())
    assert found.after["MatMul"] == found.before["MatMul"] - 2
    assert found.after["Split"] == 1


def test_positions_of_one_layer_are_left_alone(tmp_path: Path) -> None:
    assert operated(shifted(tmp_path, extra=""), SharePositions()).outcome.changes == 0

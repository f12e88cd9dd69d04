"""Passes that clean any graph: each on the smallest graph it is for, and on one that only looks like it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_surgery import operated, write_graph

from nemotrt.trt.surgery.fold_constants import FoldConstants
from nemotrt.trt.surgery.merge_duplicates import MergeDuplicates
from nemotrt.trt.surgery.name_batch import NameBatch
from nemotrt.trt.surgery.remove_broadcasts import RemoveBroadcasts
from nemotrt.trt.surgery.remove_dead_nodes import RemoveDeadNodes
from nemotrt.trt.surgery.remove_no_ops import RemoveNoOps
from nemotrt.trt.surgery.simplify_casts import SimplifyCasts
from nemotrt.trt.surgery.simplify_shapes import SimplifyShapes


def test_what_depends_on_constants_only_is_computed(tmp_path: Path) -> None:
    text = """g (float[batch, 4] x) => (float[batch, 4] y) {
        count = Constant <value = int64[1] {4}> ()
        zeros = ConstantOfShape <value = float[1] {0.5}> (count)
        twice = Add (zeros, zeros)
        y = Add (x, twice)
    }"""
    found = operated(write_graph(tmp_path, text), FoldConstants())
    assert found.after == {"Add": 1}


def test_a_large_table_is_computed_when_it_runs_and_not_stored(tmp_path: Path) -> None:
    text = """g (float[batch, frames] x) => (float[n] y) {
        zeros = ConstantOfShape (size)
        total = ReduceMax <keepdims = 0> (x)
        y = Add (zeros, total)
    }"""
    found = operated(write_graph(tmp_path, text, size=np.array([1_000_000])), FoldConstants())
    assert found.outcome.changes == 0
    assert found.after == found.before


def test_what_no_output_needs_is_removed_and_the_rest_is_not(tmp_path: Path) -> None:
    text = """g (float[batch, 4] x) => (float[batch, 4] y) {
        a = Relu (x)
        b = Neg (a)
        c = Sigmoid (b)
        y = Tanh (a)
    }"""
    assert operated(write_graph(tmp_path, text), RemoveDeadNodes()).after == {"Relu": 1, "Tanh": 1}


def test_equal_expressions_are_one(tmp_path: Path) -> None:
    text = """g (float[batch, 4] x) => (float[batch, 4] y) {
        a = Mul (x, two)
        b = Mul (x, also_two)
        y = Add (a, b)
    }"""
    path = write_graph(tmp_path, text, two=np.float32(2), also_two=np.float32(2))
    assert operated(path, MergeDuplicates()).after == {"Mul": 1, "Add": 1}


def test_expressions_of_different_constants_are_two(tmp_path: Path) -> None:
    text = """g (float[batch, 4] x) => (float[batch, 4] y) {
        a = Mul (x, two)
        b = Mul (x, three)
        y = Add (a, b)
    }"""
    path = write_graph(tmp_path, text, two=np.float32(2), three=np.float32(3))
    assert operated(path, MergeDuplicates()).after == {"Mul": 2, "Add": 1}


def test_an_axis_counted_from_the_back_is_the_same_axis(tmp_path: Path) -> None:
    text = """g (float[batch, frames] x) => (float[batch, frames, 1] y) {
        a = Unsqueeze (x, last)
        b = Unsqueeze (x, second)
        y = Add (a, b)
    }"""
    path = write_graph(tmp_path, text, last=np.array([-1]), second=np.array([2]))
    assert operated(path, MergeDuplicates()).after == {"Unsqueeze": 1, "Add": 1}


def test_a_cast_that_loses_nothing_is_left_out(tmp_path: Path) -> None:
    text = """g (int64[batch] n) => (bool[batch] y) {
        valid = Greater (n, five)
        number = Cast <to = 1> (valid)
        y = Cast <to = 9> (number)
    }"""
    assert operated(write_graph(tmp_path, text, five=np.array(5)), SimplifyCasts()).after["Cast"] == 0


def test_a_cast_that_loses_digits_stays(tmp_path: Path) -> None:
    text = """g (float[batch, 4] x) => (float[batch, 4] y) {
        short = Cast <to = 10> (x)
        y = Cast <to = 1> (short)
    }"""
    assert "does not fit" in operated(write_graph(tmp_path, text), SimplifyCasts()).refusal


SHAPES = {
    "zero": np.array(0),
    "one": np.array(1),
    "first": np.array([0]),
    "heads": np.array([2, 2]),
    "rest": np.array([-1]),
}


def test_the_shape_of_a_reshape_becomes_a_constant(tmp_path: Path) -> None:
    text = """g (float[batch, frames, 4] x) => (float[batch, frames, 2, 2] y) {
        shape = Shape (x)
        rows = Gather (shape, zero)
        rows_1 = Unsqueeze (rows, first)
        wanted = Concat <axis = 0> (rows_1, rest, heads)
        y = Reshape (x, wanted)
    }"""
    assert operated(write_graph(tmp_path, text, **SHAPES), SimplifyShapes()).after == {"Reshape": 1}


def test_a_shape_whose_axes_change_place_is_not_written_as_a_constant(tmp_path: Path) -> None:
    text = """g (float[batch, frames, 4] x) => (float[frames, batch, 4] y) {
        shape = Shape (x)
        rows = Gather (shape, zero)
        frames_0 = Gather (shape, one)
        rows_1 = Unsqueeze (rows, first)
        frames_1 = Unsqueeze (frames_0, first)
        wanted = Concat <axis = 0> (frames_1, rows_1, four)
        y = Reshape (x, wanted)
    }"""
    found = operated(write_graph(tmp_path, text, four=np.array([4]), **SHAPES), SimplifyShapes())
    assert found.outcome.refusals == ("Reshape Reshape_6: 2 axes that are neither numbers nor those of the input",)
    assert found.after == {"Shape": 2, "Concat": 1, "Reshape": 1}


def test_an_expand_before_an_operator_that_broadcasts_is_left_out(tmp_path: Path) -> None:
    text = """g (float[batch, 4, frames] x, float[batch, 1, frames] m) => (float[batch, 4, frames] y) {
        shape = Shape (x)
        wide = Expand (m, shape)
        y = Mul (x, wide)
    }"""
    assert operated(write_graph(tmp_path, text), RemoveBroadcasts()).after == {"Mul": 1}


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        ("y = ReduceSum <keepdims = 0> (wide, axes)", "needs its shape"),
        ("y = Relu (wide)", "an output of the graph"),
    ],
)
def test_an_expand_that_somebody_needs_stays(tmp_path: Path, reader: str, reason: str) -> None:
    text = f"""g (float[batch, 4, frames] x, float[batch, 1, frames] m) => (float[...] y) {{
        shape = Shape (x)
        wide = Expand (m, shape)
        {reader}
    }}"""
    path = write_graph(
        tmp_path, text.replace("float[...]", "float[a, b]" if "Sum" in reader else "float[a, b, c]"), axes=np.array([1])
    )
    assert reason in operated(path, RemoveBroadcasts()).refusal


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Mul (x, one)",
        "y = Add (zero, x)",
        "y = Transpose <perm = [0, 1, 2]> (x)",
        "y = Cast <to = 1> (x)",
        "y = Pad (x, none)",
        "s = Shape (x) y = Reshape (x, s)",
        "a = Transpose <perm = [2, 0, 1]> (x) y = Transpose <perm = [1, 2, 0]> (a)",
    ],
)
def test_what_changes_nothing_is_left_out(tmp_path: Path, nodes: str) -> None:
    text = f"g (float[batch, frames, 4] x) => (float[batch, frames, 4] z) {{ {nodes} z = Relu (y) }}"
    path = write_graph(tmp_path, text, one=np.float32(1), zero=np.float32(0), none=np.zeros(6, np.int64))
    assert operated(path, RemoveNoOps(), RemoveNoOps()).after == {"Relu": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Mul (x, two)",
        "y = Sub (zero, x)",
        "y = Mul (x, wide_one)",
        "y = Slice (x, last, before_first, axis, back)",
        "y = Pad (x, shifted)",
        "a = Cast <to = 10> (x) y = Cast <to = 1> (a)",
    ],
)
def test_what_only_looks_as_if_it_changed_nothing_stays(tmp_path: Path, nodes: str) -> None:
    text = f"g (float[batch, 1, 4] x) => (float[batch, n, 4] z) {{ {nodes} z = Relu (y) }}"
    path = write_graph(
        tmp_path, text, two=np.float32(2), zero=np.float32(0), wide_one=np.ones((3, 1), np.float32),
        last=np.array([-1]), before_first=np.array([-9]), axis=np.array([2]), back=np.array([-1]),
        shifted=np.array([0, 0, 1, 0, 0, -1]),
    )  # fmt: skip
    found = operated(path, RemoveNoOps())
    assert (found.outcome.changes, found.after) == (0, found.before)


def test_inputs_that_meet_are_one_batch(tmp_path: Path) -> None:
    text = "g (float[batch, 4] x, float[rows, 4] m) => (float[n, 4] y) { y = Mul (x, m) }"
    assert operated(write_graph(tmp_path, text), NameBatch()).outcome.limits == ("batch = rows",)


def test_inputs_that_do_not_meet_keep_their_names(tmp_path: Path) -> None:
    text = """g (float[batch, 4] x, float[4, rows] m) => (float[batch, rows] y) { y = MatMul (x, m) }"""
    assert operated(write_graph(tmp_path, text), NameBatch()).outcome.changes == 0


def test_a_pass_says_which_opset_it_needs(tmp_path: Path) -> None:
    text = "g (float[batch, 4] x) => (float[batch, 4] y) { y = Relu (x) }"
    assert "opset 13, and 15" in operated(write_graph(tmp_path, text, opset=13), SimplifyShapes()).refusal


def test_a_constant_that_an_input_may_override_is_no_constant(tmp_path: Path) -> None:
    text = "g (float[batch, 4] x, float[1] factor) => (float[batch, 4] y) { y = Mul (x, factor) }"
    path = write_graph(tmp_path, text, factor=np.ones(1, np.float32))
    assert operated(path, RemoveNoOps()).outcome.changes == 0

"""Lengths in floats become lengths in integers. Oracle: Python's integers, and the graph that was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_surgery import operated, write_graph

from nemotrt.trt.surgery.integer_lengths import IntegerLengths
from nemotrt.trt.surgery.onnx_session import OnnxSession

NUMBERS = {
    "one": np.float32(1),
    "two": np.float32(2),
    "three": np.float32(3),
    "half": np.float32(0.5),
    "limit": np.float32(2.5),
}
SUBSAMPLED = """g (int64[batch] length) => (int64[batch] y) {
    a = Cast <to = 1> (length)
    b = Add (a, one)
    c = Add (b, one)
    d = Sub (c, three)
    e = Div (d, two)
    f = %s
    g = Add (f, two)
    h = Add (g, one)
    i = Sub (h, three)
    j = Div (i, two)
    k = %s
    l = Add (k, one)
    y = Cast <to = 7> (l)
}"""


def test_two_halvings_with_floor_are_exact_for_every_length(tmp_path: Path) -> None:
    found = operated(write_graph(tmp_path, SUBSAMPLED % ("Floor (e)", "Floor (j)"), **NUMBERS), IntegerLengths())
    assert set(found.after) == {"Add", "Div"}
    assert found.outcome.limits == ("length >= 0",)
    lengths = np.arange(100_000)
    (counted,) = OnnxSession(found.path).run({"length": lengths})
    assert (counted == ((lengths - 1) // 2 + 1 - 1) // 2 + 1).all()


def test_beyond_what_float32_counts_the_integers_are_right_and_the_floats_were_not(tmp_path: Path) -> None:
    path = write_graph(tmp_path, SUBSAMPLED % ("Floor (e)", "Floor (j)"), **NUMBERS)
    found = operated(path, IntegerLengths())
    lengths = np.arange(2**26 + 1, 2**26 + 4001)
    right = ((lengths - 1) // 2 + 1 - 1) // 2 + 1
    assert (OnnxSession(found.path).run({"length": lengths})[0] == right).all()
    assert (OnnxSession(path).run({"length": lengths})[0] != right).any()


def test_a_cast_cuts_towards_zero_and_so_does_the_division(tmp_path: Path) -> None:
    text = """g (int64[batch] length) => (int64[batch] y) {
        a = Cast <to = 1> (length)
        b = Sub (a, three)
        c = Div (b, two)
        y = Cast <to = 7> (c)
    }"""
    path = write_graph(tmp_path, text, **NUMBERS)
    found = operated(path, IntegerLengths())
    assert found.after == {"Add": 1, "Div": 1}
    lengths = np.arange(50)
    assert (OnnxSession(found.path).run({"length": lengths})[0] == OnnxSession(path).run({"length": lengths})[0]).all()


def test_a_comparison_of_lengths_is_one_of_integers(tmp_path: Path) -> None:
    text = """g (int64[batch] length) => (bool[batch] y) {
        a = Cast <to = 1> (length)
        b = Sub (a, three)
        y = Less (two, b)
    }"""
    assert operated(write_graph(tmp_path, text, **NUMBERS), IntegerLengths()).after == {"Add": 1, "Less": 1}


@pytest.mark.parametrize("middle", ["Mul (a, half)", "Div (a, half)", "Sqrt (a)", "Add (a, half)"])
def test_numbers_that_may_have_a_fraction_stay_floats(tmp_path: Path, middle: str) -> None:
    text = f"""g (int64[batch] length) => (int64[batch] y) {{
        a = Cast <to = 1> (length)
        b = {middle}
        c = Add (b, one)
        y = Cast <to = 7> (c)
    }}"""
    found = operated(write_graph(tmp_path, text, **NUMBERS), IntegerLengths())
    assert found.outcome.changes == 0


def test_a_comparison_with_a_fraction_is_refused(tmp_path: Path) -> None:
    text = """g (int64[batch] length) => (bool[batch] y) {
        a = Cast <to = 1> (length)
        y = Less (a, limit)
    }"""
    assert "may have a fraction" in operated(write_graph(tmp_path, text, **NUMBERS), IntegerLengths()).refusal

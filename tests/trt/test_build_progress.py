"""TensorRT's nested phases as one fraction. Oracle: counting by hand, and any order of calls."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemotrt.trt.build_progress import PhaseTree


def test_a_phase_inside_a_step_counts_as_a_part_of_that_step() -> None:
    tree = PhaseTree()
    tree.start("build", None, 4)
    tree.complete_step("build", 0)
    assert tree.fraction == 1 / 4
    tree.start("optimize", "build", 2)
    tree.complete_step("optimize", 0)
    assert tree.fraction == (1 + 1 / 2) / 4
    tree.finish("optimize")
    tree.complete_step("build", 1)
    assert tree.fraction == 2 / 4
    tree.complete_step("build", 3)
    assert tree.fraction == 1


names = st.sampled_from("abc")
calls = st.lists(
    st.one_of(
        st.tuples(st.just("start"), names, st.none() | names, st.integers(-1, 5)),
        st.tuples(st.just("complete_step"), names, st.integers(0, 9)),
        st.tuples(st.just("finish"), names),
    ),
    max_size=30,
)


@given(program=calls)
def test_the_fraction_never_falls_and_stays_within_nothing_and_everything(program: list[tuple]) -> None:
    tree = PhaseTree()
    seen = [0.0]
    for name, *arguments in program:
        getattr(tree, name)(*arguments)
        seen.append(tree.fraction)
    assert seen == sorted(seen)
    assert seen[-1] <= 1

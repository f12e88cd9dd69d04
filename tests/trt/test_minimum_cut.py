"""Dinic's algorithm. Oracle: every one of the 2^n partitions of a small graph."""

from __future__ import annotations

from itertools import pairwise, product

from hypothesis import given
from hypothesis import strategies as st

from nemotrt.trt.minimum_cut import UNBOUNDED, CutGraph

INNER = 4
edges = st.lists(st.tuples(st.integers(0, INNER + 1), st.integers(0, INNER + 1), st.integers(0, 5)), max_size=20)


def cost_of(sink_side: frozenset[int], network: list[tuple[int, int, int]]) -> int:
    return sum(room for tail, head, room in network if tail not in sink_side and head in sink_side)


@given(network=edges)
def test_the_cut_is_the_cheapest_and_its_sink_side_the_smallest(network: list[tuple[int, int, int]]) -> None:
    graph = CutGraph()
    for _ in range(INNER):
        graph.add_node()
    for edge in network:
        graph.add_edge(*edge)
    cost, sink_side = graph.cut()

    partitions = [
        frozenset({1, *(node for node, far in zip(range(2, INNER + 2), sides, strict=True) if far)})
        for sides in product((False, True), repeat=INNER)
    ]
    cheapest = min(cost_of(side, network) for side in partitions)
    assert cost == cheapest == cost_of(sink_side, network)
    assert all(sink_side <= side for side in partitions if cost_of(side, network) == cheapest)


def test_a_chain_is_cut_at_its_narrowest_edge_and_everything_before_it_stays_with_the_source() -> None:
    graph = CutGraph()
    first, second = graph.add_node(), graph.add_node()
    graph.add_edge(CutGraph.source, first, UNBOUNDED)
    graph.add_edge(first, second, 3)
    graph.add_edge(second, CutGraph.sink, 2)
    assert graph.cut() == (2, frozenset({CutGraph.sink}))


def test_a_long_chain_needs_no_recursion() -> None:
    graph = CutGraph()
    nodes = [CutGraph.source, *(graph.add_node() for _ in range(20000)), CutGraph.sink]
    for tail, head in pairwise(nodes):
        graph.add_edge(tail, head, 1)
    assert graph.cut()[0] == 1

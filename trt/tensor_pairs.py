"""Which tensor of one graph is which of another: two exports, or a graph and its twin in another precision.

    the same name                 where both graphs use names alike
    the same place in the graph   elsewhere: the same operators lead to it from inputs of the same name

Casts do not count as operators, so a graph and its float16 twin have the same structure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import onnx_ir as ir

from nemotrt.trt.tensor_graph import PASSES_ON, TensorGraph


@dataclass(frozen=True)
class TensorPair:
    """One tensor by its names in both graphs."""

    reference: str
    candidate: str


def pair_tensors(reference: TensorGraph, candidate: TensorGraph) -> tuple[TensorPair, ...]:
    """The pairs that runners can return, in the topological order of ``candidate``; no tensor is in two of them."""
    by_candidate = _by_name(reference, candidate)
    known = frozenset(by_candidate.values())
    numbers: dict[Hashable, int] = {}
    by_place = {place: name for name, place in _places(reference, numbers).items() if name not in known}
    for name, place in _places(candidate, numbers).items():
        if name not in by_candidate and place in by_place:
            by_candidate[name] = by_place.pop(place)
    return tuple(
        TensorPair(by_candidate[name], name)
        for name in candidate.computed
        if name in by_candidate and candidate.is_readable(name) and reference.is_readable(by_candidate[name])
    )


def _by_name(reference: TensorGraph, candidate: TensorGraph) -> dict[str, str]:
    """Names that both have; where most of them stand for other operators, the names mean nothing but for outputs."""
    there = frozenset(reference.computed)
    shared = [name for name in candidate.computed if name in there]
    alike = sum(reference.origin(name).op_type == candidate.origin(name).op_type for name in shared)
    means_the_same = 2 * alike > len(shared)
    outputs = frozenset(reference.outputs) & frozenset(candidate.outputs)
    return {name: name for name in shared if means_the_same or name in outputs}


def _places(graph: TensorGraph, numbers: dict[Hashable, int]) -> dict[str, tuple[int, int]]:
    """Tensor -> a number for the operators that lead to it, and which one of several such tensors it is.

    ``numbers`` is filled on the way: the same operators have the same number in every graph.
    """

    def number(key: Hashable) -> int:
        return numbers.setdefault(key, len(numbers))

    def number_of(value: ir.Value | None) -> int:
        if value is None or value.is_initializer():
            return number("absent" if value is None else "weight")
        return led_by[value] if value in led_by else number(("input", value.name))

    led_by: dict[ir.Value, int] = {}
    times: Counter[int] = Counter()
    places: dict[str, tuple[int, int]] = {}
    for name in graph.computed:
        value = graph.value(name)
        node = value.producer()
        if node is None:
            continue
        read = tuple(number_of(before) for before in node.inputs)
        if node.op_type in PASSES_ON:
            led_by[value] = read[0]
            continue
        led_by[value] = number((node.domain, node.op_type, value.index(), read))
        places[name] = (led_by[value], times[led_by[value]])
        times[led_by[value]] += 1
    return places

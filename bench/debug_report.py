"""What a bisection found, as values, as one JSON document, and as lines for people.

ComponentSwap + a Search for each component to blame --> DebugReport --> debug.json | lines
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemotrt.bench import quantities
from nemotrt.bench.component_swap import ComponentSwap, SwappedComponent
from nemotrt.bench.first_difference import FirstDifference, Search
from nemotrt.bench.polygraphy_lines import INSTALL, SavedInputs
from nemotrt.bench.tensor_difference import TensorDifference
from nemotrt.bench.text_file import write_whole

REPORT_NAME = "debug.json"


@dataclass(frozen=True, eq=False)
class ComponentSearch:
    """The search within one component that differs, on the clip where it first did."""

    component: str
    clip: str
    call: int
    search: Search
    seconds: float
    saved: SavedInputs
    polygraphy: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class DebugReport:
    """The whole bisection. ``reference`` and ``candidate`` are the paths of the two bundles."""

    reference: str
    candidate: str
    swap: ComponentSwap
    searches: tuple[ComponentSearch, ...]

    @property
    def agrees(self) -> bool:
        """Whether there is nothing to debug."""
        return self.swap.agrees

    def document(self) -> dict[str, Any]:
        """The report for ``--json``; everything but the arrays."""
        swap = self.swap
        return {
            "reference": self.reference,
            "candidate": self.candidate,
            "agrees": self.agrees,
            "decoder": swap.decoder,
            "clips": swap.clips,
            "to_blame": [one.component for one in swap.to_blame],
            "components": [_component(one) for one in swap.components],
            "tokens_differ_together": list(swap.together),
            "searches": [_search(one) for one in self.searches],
        }

    def write(self, folder: Path) -> Path:
        """Write the document into ``folder`` and return its path. Raises as ``write_whole``."""
        return write_whole(json.dumps(self.document(), indent=1, ensure_ascii=False) + "\n", folder / REPORT_NAME)


def report_lines(report: DebugReport) -> Iterator[str]:
    """The report for people."""
    swap = report.swap
    clips = quantities.counted(swap.clips, "clip")
    yield f"{clips}, decoder {swap.decoder}: {report.candidate} against {report.reference}"
    for one in swap.components:
        yield f"  {one.component:<20} {'differs' if one.is_to_blame else 'agrees '}  {_effect(one)}"
    if swap.together and not swap.to_blame:
        yield f"  only together the components change the tokens of {', '.join(swap.together)}: look at the metadata"
    for search in report.searches:
        yield ""
        yield from _search_lines(search)
    if report.agrees:
        yield "A and B agree"


def difference_sentence(difference: TensorDifference) -> str:
    """How far and where, in one line."""
    if difference.state == "another shape":
        return f"shape {list(difference.shape)}, {list(difference.reference_shape)} in the reference"
    if difference.relative is None:
        size = f"{quantities.scientific(difference.max_abs)} where the reference is zero"
    else:
        limit = quantities.scientific(difference.limit)
        size = f"{quantities.scientific(difference.relative)} of the largest element, limit {limit}"
    if difference.state == "same":
        return size
    odd = f"{difference.not_finite:,} NaN or infinite; " if difference.not_finite else ""
    parts = [f"{odd}{size}; {difference.elements:,} of {difference.size:,} elements"]
    if difference.rows is not None:
        parts.append(f"rows {_span(difference.rows)}")
    if difference.frames is not None:
        parts.append(f"frames {_span(difference.frames)} of {difference.frame_count}")
    return ", ".join(parts)


def _effect(one: SwappedComponent) -> str:
    parts = []
    if one.output is not None:
        call = one.output.call
        parts.append(f"{one.output.tensor} of {call.clip}, call {call.number}")
        parts.append(difference_sentence(one.output.difference))
    if one.lengths:
        parts.append(f"lengths of {quantities.counted(len(one.lengths), 'clip')}")
    if one.tokens:
        parts.append(f"tokens of {quantities.counted(len(one.tokens), 'clip')}")
    if one.failed:
        parts.append(f"cannot be decoded: {one.failed}")
    if one.tokens and one.output is None:
        parts.append("every output is within its limit: a near-tie")
    return "; ".join(parts)


def _search_lines(one: ComponentSearch) -> Iterator[str]:
    search = one.search
    found = f"{quantities.counted(search.runs, 'run')} of each graph, {search.tensors} tensors, {one.seconds:.1f} s"
    yield f"{one.component}, {one.clip}, call {one.call}: {found}"
    if search.first is not None:
        yield from _first_lines(search.first)
    elif search.vanished:
        yield "  no tensor differs once tensors on the way are outputs: a fusion of the runtime is to blame"
    else:
        yield "  ONNX Runtime computes equal outputs from both graphs: what else ran the component is to blame"
    yield f"  inputs      {one.saved.npz}"
    for line in one.polygraphy:
        yield f"  $ {line}"
    if one.saved.json is None:
        yield f"  for Polygraphy command lines: {INSTALL}"


def _first_lines(first: FirstDifference) -> Iterator[str]:
    yield f"  node        {first.node} ({first.op}) in {first.scope or 'the graph itself'}"
    yield f"  tensor      {first.tensor}: {difference_sentence(first.difference)}"
    if first.difference.heat:
        yield f"  frames      {first.difference.heat}"
    for source in first.inputs:
        yield f"  from        {source.tensor}: {difference_sentence(source.difference)}"
    for cause in first.causes:
        yield f"  because     {cause}"
    if not first.causes:
        yield "  because     the node and its weights are the same in both: it is computed otherwise"
    if first.between:
        yield f"  or one of   {', '.join(first.between)}: what they compute has no counterpart"


def _component(one: SwappedComponent) -> dict[str, Any]:
    output = one.output
    return {
        "component": one.component,
        "to_blame": one.is_to_blame,
        "first_output": None
        if output is None
        else {
            "tensor": output.tensor,
            "clip": output.call.clip,
            "call": output.call.number,
            "difference": asdict(output.difference),
        },
        "tokens_differ": list(one.tokens),
        "lengths_differ": list(one.lengths),
        "failed": one.failed,
    }


def _search(one: ComponentSearch) -> dict[str, Any]:
    return {
        "component": one.component,
        "clip": one.clip,
        "call": one.call,
        "seconds": round(one.seconds, 3),
        **asdict(one.search),
        "inputs": {"npz": str(one.saved.npz), "polygraphy": None if one.saved.json is None else str(one.saved.json)},
        "polygraphy": list(one.polygraphy),
    }


def _span(span: tuple[int, int]) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]} to {span[1]}"

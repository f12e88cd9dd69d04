"""A pass: one change to a graph, that says what it is, where it applies, and what holds when it is done.

conditions before -> rewrite, with refusals -> nodes that nobody reads are removed -> conditions after
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nemotrt.errors import GraphError
from nemotrt.trt.surgery.graph_edit import GraphEdit

Interface = tuple[tuple[str | None, ir.DataType | None, int | None], ...]


@dataclass(frozen=True)
class PassOutcome:
    """What one run of a pass did. ``limits`` are what has to hold of the inputs for the change to be right."""

    name: str
    changes: int
    nodes_before: int
    nodes_after: int
    refusals: tuple[str, ...]
    limits: tuple[str, ...]


class SurgeryPass(ABC):
    """Rewrites a graph in place. Passes keep nothing between two calls."""

    name: ClassVar[str]
    does: ClassVar[str]
    opset: ClassVar[int] = 13
    """The oldest version of the standard operators that it writes."""

    @property
    def keeps_padding(self) -> bool:
        """Whether rows that are padded give what they gave. Without it only full rows are compared."""
        return True

    def __call__(self, graph: ir.Graph) -> PassOutcome:
        """Change ``graph``, or leave it and say why.

        Raises:
            GraphError: the graph that came out is not one: inputs, outputs or the order of nodes are wrong.
        """
        before, count = _interface(graph), len(graph)
        edit = GraphEdit(graph)
        if edit.opset < self.opset:
            refusal = f"the graph is of opset {edit.opset}, and {self.opset} is needed"
            return PassOutcome(self.name, 0, count, count, (refusal,), ())
        self.rewrite(edit)
        if edit.changes:
            RemoveUnusedNodesPass()(ir.Model(graph, ir_version=10))
            self._check(graph, before)
        limits = tuple(edit.facts_used.limits) if edit.changes and edit.facts_used is not None else ()
        return PassOutcome(self.name, edit.changes, count, len(graph), tuple(dict.fromkeys(edit.refusals)), limits)

    @abstractmethod
    def rewrite(self, edit: GraphEdit) -> None:
        """Make the change wherever it is right, and refuse where it only looks right."""

    def missed(self, edit: GraphEdit) -> Sequence[str]:
        """What should not be there any more after :meth:`rewrite`: the pass's own condition, empty if it holds."""
        del edit
        return ()

    def _check(self, graph: ir.Graph, before: Interface) -> None:
        problems = list(self.missed(GraphEdit(graph)))
        if _interface(graph) != before:
            problems.append("inputs or outputs have other names, types or ranks")
        problems += _out_of_order(graph)
        if problems:
            raise GraphError(
                f"pass {self.name} left a wrong graph",
                where=graph.name,
                found="; ".join(problems[:3]),
                fix=f"leave it out: --skip {self.name}",
            )


def _interface(graph: ir.Graph) -> Interface:
    values = (*graph.inputs, *graph.outputs)
    return tuple((v.name, v.dtype, None if v.shape is None else len(v.shape)) for v in values)


def _out_of_order(graph: ir.Graph) -> list[str]:
    """Values that are read before they are made, or by nobody's making."""
    made = {*graph.inputs, *graph.initializers.values()}
    problems = []
    for node in graph:
        problems += [f"{node.name} reads {v.name} too early" for v in node.inputs if v is not None and v not in made]
        made.update(node.outputs)
    return problems + [f"nobody makes output {value.name}" for value in graph.outputs if value not in made]

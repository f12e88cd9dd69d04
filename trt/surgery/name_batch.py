"""The rows of all inputs are one batch: inputs that meet in an element-wise operator get one name for their first axis.

NeMo names the rows of ``audio_signal`` and of ``length`` apart, so that nobody can tell that a mask of the one fits
the other. What changes is a name; that the sizes are equal is stated as a limit.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from nemotrt.trt.surgery.axis_size import Size
from nemotrt.trt.surgery.graph_edit import GraphEdit
from nemotrt.trt.surgery.surgery_pass import SurgeryPass


class NameBatch(SurgeryPass):
    """Renames the first axis of inputs."""

    name: ClassVar[str] = "name-batch"
    does: ClassVar[str] = "gives the rows of all inputs that are used together one name"

    def rewrite(self, edit: GraphEdit) -> None:
        """Only where the graph itself takes the two for one."""
        rows = {value.shape[0]: value for value in reversed(edit.graph.inputs) if value.shape}
        by_size = {Size.named(axis.value): axis for axis in rows if isinstance(axis, ir.SymbolicDim) and axis.value}
        for a, b in edit.facts.meetings:
            if a in by_size and b in by_size and by_size[a] != by_size[b]:
                first, second = sorted((by_size[a], by_size[b]), key=list(rows)[::-1].index)
                edit.facts.limit(f"{first.value} = {second.value}")
                _rename(edit, second, first)
                by_size = {size: first if axis == second else axis for size, axis in by_size.items()}


def _rename(edit: GraphEdit, old: ir.SymbolicDim, new: ir.SymbolicDim) -> None:
    for value in (*edit.graph.inputs, *edit.graph.outputs):
        if value.shape is not None and old in value.shape:
            value.shape = ir.Shape([new if axis == old else axis for axis in value.shape])
            edit.changes += 1

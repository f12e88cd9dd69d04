"""Nodes and constants that no output needs are removed, backwards from the end."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nemotrt.trt.surgery.graph_edit import GraphEdit
from nemotrt.trt.surgery.surgery_pass import SurgeryPass


class RemoveDeadNodes(SurgeryPass):
    """What every pass does after a change, for what was dead from the beginning."""

    name: ClassVar[str] = "remove-dead-nodes"
    does: ClassVar[str] = "removes nodes and constants that no output needs"

    def rewrite(self, edit: GraphEdit) -> None:
        """All of them at once, by onnx-ir."""
        edit.changes += int(RemoveUnusedNodesPass()(ir.Model(edit.graph, ir_version=10)).modified)

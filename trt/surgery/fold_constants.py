"""What depends on constants only is computed once, by ONNX Runtime: pad widths, shapes of constants, scalars.

Only results of a known, small size: a table is better computed than stored, and weights are never read.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from nemotrt.errors import GraphError
from nemotrt.trt.surgery.graph_edit import SMALL_ELEMENTS, GraphEdit, small_constant
from nemotrt.trt.surgery.onnx_session import run_once
from nemotrt.trt.surgery.shape_rules import elements
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


class FoldConstants(SurgeryPass):
    """Constant nodes become initializers, and small nodes that read nothing else are computed."""

    name: ClassVar[str] = "fold-constants"
    does: ClassVar[str] = "computes what depends on constants only, where the result is small"

    def rewrite(self, edit: GraphEdit) -> None:
        """Lift, then compute all of them in one session."""
        lifted = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(_model(edit.graph))
        edit.changes += int(lifted.modified)
        nodes = _constant_nodes(edit)
        read_outside = [
            value
            for node in nodes
            for value in node.outputs
            if value.is_graph_output() or any(user not in nodes for user, _ in value.uses())
        ]
        if not read_outside:
            return
        try:
            arrays = run_once(_part(edit.graph, nodes, read_outside))
        except GraphError as exc:
            edit.refuse(nodes[0], f"ONNX Runtime does not compute it and {len(nodes) - 1} others: {exc.found}")
            return
        for value, array in zip(read_outside, arrays, strict=True):
            edit.replace(value, edit.constant(array))

    def missed(self, edit: GraphEdit) -> tuple[str, ...]:
        """No Constant node is left."""
        return tuple(str(node.name) for node in edit.nodes("Constant"))


def _constant_nodes(edit: GraphEdit) -> list[ir.Node]:
    known: set[ir.Value] = set()
    nodes: list[ir.Node] = []
    for node in edit.nodes():
        sizes = [
            elements(edit.facts.shape(value) or ()) for value in node.outputs if edit.facts.shape(value) is not None
        ]
        small = len(sizes) == len(node.outputs) and all(size is not None and size <= SMALL_ELEMENTS for size in sizes)
        computable = small and node.op_type not in {*_RANDOM, "Constant", "Identity"}
        if computable and all(v is None or v in known or small_constant(v) is not None for v in node.inputs):
            known.update(node.outputs)
            nodes.append(node)
    return nodes


def _part(graph: ir.Graph, nodes: list[ir.Node], outputs: list[ir.Value]) -> ir.Model:
    """The nodes as a model of their own, without inputs."""
    copies: dict[ir.Value, ir.Value] = {}
    constants: list[ir.Value] = []
    made = []
    for node in nodes:
        for value in node.inputs:
            array = None if value is None or value in copies else small_constant(value)
            if value is not None and array is not None:
                tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=str(value.name))
                copies[value] = ir.Value(name=value.name, type=value.type, shape=tensor.shape, const_value=tensor)
                constants.append(copies[value])
        inputs = [None if value is None else copies[value] for value in node.inputs]
        copy = ir.Node("", node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            copies[old], new.name, new.type = new, old.name, old.type
        made.append(copy)
    results = [copies[value] for value in outputs]
    part = ir.Graph(
        [], results, nodes=made, initializers=constants, opset_imports=graph.opset_imports, name="constants"
    )
    return _model(part)


def _model(graph: ir.Graph) -> ir.Model:
    return ir.Model(graph, ir_version=8)

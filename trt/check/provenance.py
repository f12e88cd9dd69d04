"""What the value of a tensor can depend on: a forward pass over the graph.

    constant   nothing that is given at run time
    shape      shapes of inputs
    length     the inputs that say how long rows are, and shapes: lengths, masks, positions
    data       anything else that is given

The largest of a node's inputs is what its outputs depend on; Shape and Size look at shapes only. A mask is a value of
kind ``length`` that meets one of kind ``data``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import onnx_ir as ir

_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})


class Source(IntEnum):
    """Ordered: each may depend on what comes before it as well."""

    CONSTANT = 0
    SHAPE = 1
    LENGTH = 2
    DATA = 3


def is_length(value: ir.Value) -> bool:
    """Whether a graph input holds lengths of rows: integers with ``len`` in their name."""
    return value.dtype in _INTEGERS and "len" in (value.name or "").lower()


def sources(graph: ir.Graph) -> Mapping[ir.Value, Source]:
    """The source of every value of the graph; nodes with graphs of their own make ``data``."""
    found: dict[ir.Value, Source] = dict.fromkeys(graph.initializers.values(), Source.CONSTANT)
    found |= {value: Source.LENGTH if is_length(value) else Source.DATA for value in graph.inputs}
    for node in graph:
        source = _source(node, found)
        found |= dict.fromkeys(node.outputs, source)
    return found


def _source(node: ir.Node, found: Mapping[ir.Value, Source]) -> Source:
    given = max((found.get(value, Source.DATA) for value in node.inputs if value is not None), default=Source.CONSTANT)
    if node.op_type in ("Shape", "Size"):
        return min(given, Source.SHAPE)
    is_opaque = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
    return Source.DATA if is_opaque or node.op_type in _RANDOM else given

"""The graph by block: nodes grouped by the scopes in their names.

layers.3.conv.MatMul_2 --> layers > 3 > conv
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from nemotrt.trt.tensor_graph import scope_of


@dataclass(frozen=True)
class Scope:
    """A block. ``nodes``, ``weight_bytes`` and ``ops`` count everything in it, the blocks in it too.

    A weight counts where it is read first.
    """

    name: str
    nodes: int
    weight_bytes: int
    ops: dict[str, int]
    inner: tuple[Scope, ...]


@dataclass
class _Growing:
    nodes: int = 0
    weight_bytes: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    inner: dict[str, _Growing] = field(default_factory=dict)

    def frozen(self, name: str) -> Scope:
        inner = tuple(scope.frozen(inside) for inside, scope in self.inner.items())
        return Scope(name, self.nodes, self.weight_bytes, dict(self.ops.most_common()), inner)


def scopes_of(nodes: Iterable[ir.Node]) -> Scope:
    """The whole graph as one scope without a name, blocks in the order of the graph."""
    root, weighed = _Growing(), set[ir.Value]()
    for node in nodes:
        weights = [v for v in node.inputs if v is not None and v.is_initializer() and v not in weighed]
        weighed.update(weights)
        size_bytes = sum(value.const_value.nbytes for value in weights if value.const_value is not None)
        scope = root
        for part in ("", *filter(None, scope_of(node).split("."))):
            scope = scope.inner.setdefault(part, _Growing()) if part else scope
            scope.nodes += 1
            scope.weight_bytes += size_bytes
            scope.ops[node.op_type] += 1
    return root.frozen("")

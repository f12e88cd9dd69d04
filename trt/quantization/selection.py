"""Which products of a graph are quantized: those of an activation with a large weight, but for what is to stay float.

    x @ W, W float32 [K,N] of 4096 numbers and more    quantized
    the subsampling                                    float: the first layers see the features' whole range
    scores and attention, q @ k, softmax @ v           float: products of two activations
    everything else                                    float: lengths, masks, norms, softmax, convolutions

A scope is a run of parts of a name: ``layers.0``, ``feed_forward1`` and ``layers.3.conv`` are scopes of
``layers.3.conv.MatMul`` or of others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from nemotrt.bundle import Bundle, ComponentName
from nemotrt.errors import UsageError
from nemotrt.trt.component_model import load_component

QUANTIZED: tuple[ComponentName, ...] = ("encoder", "ctc", "encoder_streaming", "joint")
"""Components with products that are worth it. The others are copied."""

LARGE_WEIGHT = 4096
"""Numbers in the smallest weight that is quantized: below it the casts cost more than the product."""

_ALWAYS_FLOAT = "pre_encode"


@dataclass(frozen=True)
class KeptScope:
    """What stays in float32: a whole component, a scope of one component, or a scope of all."""

    text: str
    component: str | None
    scope: str | None

    @classmethod
    def parsed(cls, text: str) -> KeptScope:
        """``COMPONENT``, ``SCOPE`` or ``COMPONENT:SCOPE``."""
        component, colon, scope = text.partition(":")
        if colon:
            return cls(text, component, scope)
        return cls(text, text, None) if text in QUANTIZED else cls(text, None, text)

    def holds(self, component: str, node: ir.Node) -> bool:
        """Whether ``node`` of ``component`` is kept."""
        if self.component not in (None, component):
            return False
        return self.scope is None or is_in_scope(node, self.scope)


def selected_products(graph: ir.Graph, component: str, keep: Sequence[KeptScope]) -> tuple[ir.Node, ...]:
    """The MatMuls to quantize, in the order of the graph."""
    return tuple(node for node in weight_products(graph) if not any(kept.holds(component, node) for kept in keep))


def weight_products(graph: ir.Graph) -> tuple[ir.Node, ...]:
    """The MatMuls that can be quantized."""
    return tuple(node for node in graph if _has_large_weight(node) and not is_in_scope(node, _ALWAYS_FLOAT))


def is_in_scope(node: ir.Node, scope: str) -> bool:
    """Whether the node's name, or its weight's, holds the parts of ``scope`` side by side."""
    weight = node.inputs[1]
    wanted = _parts(scope)
    names = (node.name or "", "" if weight is None else weight.name or "")
    return bool(wanted) and any(_holds_run(_parts(name), wanted) for name in names)


def select_from_bundle(bundle: Bundle, keep: Iterable[str]) -> Mapping[ComponentName, tuple[str, ...]]:
    """The names of the MatMuls to quantize, by component; components without any are left out.

    Raises:
        UsageError: a scope that no product lies in, or nothing is left.
        GraphError: a graph that cannot be read.
    """
    scopes = [KeptScope.parsed(text) for text in keep]
    graphs = {
        name: load_component(bundle.path / spec.graph).graph
        for name, spec in bundle.meta.components.items()
        if name in QUANTIZED
    }
    for kept in scopes:
        if not any(kept.holds(name, node) for name, graph in graphs.items() for node in weight_products(graph)):
            raise _unknown_scope(bundle, kept, graphs)
    selected = {name: tuple(str(n.name) for n in selected_products(g, name, scopes)) for name, g in graphs.items()}
    found = {name: nodes for name, nodes in selected.items() if nodes}
    if not found:
        raise UsageError(
            "nothing is left to quantize",
            where=bundle.path,
            found=f"components {', '.join(bundle.meta.components)}; kept in float32: {', '.join(keep) or 'none'}",
            fix=f"keep less, or give a bundle with one of {', '.join(QUANTIZED)}",
        )
    return found


def _has_large_weight(node: ir.Node) -> bool:
    if node.domain or node.op_type != "MatMul":
        return False
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.dtype != ir.DataType.FLOAT or weight.shape is None:
        return False
    sizes = weight.shape.numpy()
    return len(sizes) == 2 and prod(sizes) >= LARGE_WEIGHT


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[./:]+", name) if part]


def _holds_run(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    return any(parts[start : start + len(wanted)] == wanted for start in range(len(parts)))


def _unknown_scope(bundle: Bundle, kept: KeptScope, graphs: Mapping[ComponentName, ir.Graph]) -> UsageError:
    scopes = dict.fromkeys(
        f"{name}:{str(node.name).rpartition('.')[0] or node.name}"
        for name, g in graphs.items()
        for node in weight_products(g)
    )
    shown = list(scopes)[:8]
    return UsageError(
        "no product that would be quantized lies in this scope",
        where=bundle.path,
        found=kept.text,
        fix=f"a component ({', '.join(graphs) or 'none here'}), or a scope such as {', '.join(shown)}",
    )

"""One pass at work on one graph: new constants and nodes, values put in the place of others, refusals written down.

Values keep no shapes: those of a file are stale after the first change. What is known of them is in ``facts``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nemotrt.trt.surgery.facts import Facts, constant_of
from nemotrt.trt.surgery.learn_facts import learn_facts

SMALL_ELEMENTS = 4096
"""Constants up to here are read and computed with; larger ones are weights, and stay functions until they are saved."""

Array = NDArray[Any]
Attribute = int | float | str | Sequence[int] | Sequence[float] | ir.TensorProtocol


@dataclass
class GraphEdit:
    """What a pass does to ``graph``, and what it says of it."""

    graph: ir.Graph
    changes: int = 0
    refusals: list[str] = field(default_factory=list)
    facts_used: Facts | None = None
    _taken: set[str] = field(default_factory=set)
    _constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return self.graph.opset_imports.get("", 0)

    @property
    def facts(self) -> Facts:
        """Shapes and small integers of the values that were there when it was first asked for."""
        if self.facts_used is None:
            self.facts_used = learn_facts(self.graph)
        return self.facts_used

    def nodes(self, *op_types: str) -> list[ir.Node]:
        """The nodes of these standard operators as they are now, in order. Some may be gone when their turn comes."""
        return [node for node in self.graph if not node.domain and (not op_types or node.op_type in op_types)]

    def refuse(self, node: ir.Node, reason: str) -> None:
        """Leave ``node`` as it is, and say why."""
        self.refusals.append(f"{node.op_type} {node.name}: {reason}")

    def constant(self, values: Array | Sequence[int] | int) -> ir.Value:
        """A small constant, int64 unless it is an array of something else. Equal ones are one initializer."""
        array = values if isinstance(values, np.ndarray) else np.asarray(values, np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.Tensor(array.copy(order="C"))
            self._constants[key] = self.weight(tensor, name=f"constant_{len(self._constants)}")
        return self._constants[key]

    def weight(self, tensor: ir.TensorProtocol, *, name: str) -> ir.Value:
        """An initializer."""
        name = self._free_name(name)
        shape = ir.Shape(tuple(tensor.shape.numpy()))
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def computed_weight(
        self, sources: Sequence[ir.Value], compute: Callable[..., Array], *, shape: Sequence[int] | None = None
    ) -> ir.Value:
        """A weight computed from the arrays of others when the file is written, of the type of the first one."""
        tensors = [source.const_value for source in sources]
        known = [tensor for tensor in tensors if tensor is not None]
        dtype, name = known[0].dtype, f"{sources[0].name}.folded"

        def computed() -> ir.TensorProtocol:
            array = compute(*(np.asarray(tensor.numpy()) for tensor in known))
            for tensor in known:
                _release(tensor)
            return ir.Tensor(np.ascontiguousarray(array.astype(dtype.numpy(), copy=False)), dtype=dtype)

        sizes = tuple(known[0].shape.numpy()) if shape is None else tuple(shape)
        return self.weight(ir.LazyTensor(computed, dtype, ir.Shape(sizes), name=name), name=name)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        before: ir.Node,
        like: ir.Value | ir.DataType | None,
        outputs: int = 1,
        **attributes: Attribute,
    ) -> ir.Value:
        """A node in front of ``before``; returns its first output, of the type of ``like``."""
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=self._free_name(op_type))
        dtype = like.dtype if isinstance(like, ir.Value) else like
        for index, value in enumerate(node.outputs):
            value.name = self._free_name(f"{node.name}.{index}")
            value.type = None if dtype is None else ir.TensorType(dtype)
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Everybody who reads ``old`` reads ``new``. An output of the graph keeps its name."""
        self.changes += 1
        if old.is_graph_output():
            kept = self._as_output(old, new)
            for index, output in enumerate(self.graph.outputs):
                if output is old:
                    self.graph.outputs[index] = kept
            new = kept if kept.producer() is new.producer() else new
        ir.convenience.replace_all_uses_with(old, new)

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Connect one input of a node to another value."""
        self.changes += 1
        node.replace_input_with(index, value)

    def _as_output(self, old: ir.Value, new: ir.Value) -> ir.Value:
        name, old.name = old.name, self._free_name(f"{old.name}.replaced")
        if new.producer() is None or new.is_graph_output():
            identity = ir.node("Identity", [new], name=self._free_name("Identity"))
            self.graph.append(identity)
            new = identity.outputs[0]
        new.name, new.type, new.shape = name, old.type, old.shape
        return new

    def _free_name(self, wanted: str) -> str:
        if not self._taken:
            values = (*self.graph.inputs, *self.graph.initializers.values())
            made = [output for node in self.graph for output in node.outputs]
            self._taken.update(str(one.name) for one in (*values, *made, *self.graph))
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def small_constant(value: ir.Value | None) -> Array | None:
    """The array of a small constant; ``None`` for weights and everything that is computed."""
    return constant_of(value, at_most=SMALL_ELEMENTS)


def is_weight(value: ir.Value | None) -> bool:
    """Whether this is a constant, large or small."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, once; ``None`` if there are more, or the graph gives it out."""
    uses = list(value.uses())
    return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


def producer_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes ``value``, if it is a standard ``op_type``."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _release(tensor: ir.TensorProtocol) -> None:
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()

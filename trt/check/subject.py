"""One graph file, as the rules look at it. Everything is read once, when the first rule asks for it.

file --> proto (as written) --> weights (where they lie)
                            --> skeleton (small constants, no weights) --> graph (types, shapes and users of values)
                                                                       --> sources (what a value depends on)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import ModelProto, TensorProto

from nemotrt.bundle import BundleMeta, ComponentSpec
from nemotrt.graph_contract import read_without_weights
from nemotrt.trt.check.opinions import Opinions
from nemotrt.trt.check.provenance import Source, is_length, sources
from nemotrt.trt.check.weights import StoredWeight, stored_weights

SMALL_BYTES = 4096
"""Constants up to this size may be shapes, axes or bounds: the skeleton keeps them."""


@dataclass(frozen=True)
class Subject:
    """``component`` and ``meta`` are the contract, ``None`` for a graph without one."""

    path: Path
    component: ComponentSpec | None
    meta: BundleMeta | None
    opinions: Opinions = field(repr=False, compare=False)

    @cached_property
    def name(self) -> str:
        """The component's name, or the file's."""
        named = {} if self.meta is None else self.meta.components
        return next((name for name, spec in named.items() if spec == self.component), self.path.stem)

    @cached_property
    def proto(self) -> ModelProto:
        """The file as it is, weights of other files not read.

        Raises:
            GraphError: this is not an ONNX file.
        """
        return read_without_weights(self.path)

    @cached_property
    def weights(self) -> tuple[StoredWeight, ...]:
        """All weights, in the order of the file."""
        return tuple(stored_weights(self.proto.graph, self.path.parent))

    @property
    def is_sound(self) -> bool:
        """Whether every weight can be read: only then may anything that loads the graph be asked."""
        return not any(weight.fault for weight in self.weights)

    @cached_property
    def skeleton(self) -> ModelProto:
        """The graph with its weights left out, for shape inference."""
        proto, graph = self.proto, self.proto.graph
        skeleton = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
        skeleton.graph.name = graph.name or "graph"
        for part in ("node", "input", "output", "value_info", "sparse_initializer", "quantization_annotation"):
            getattr(skeleton.graph, part).extend(getattr(graph, part))
        folder = self.path.parent
        skeleton.graph.initializer.extend(_without_values(StoredWeight(t.name, folder, t)) for t in graph.initializer)
        return skeleton

    @cached_property
    def graph(self) -> ir.Graph:
        """The skeleton with the types and shapes that can be inferred."""
        return ir.from_proto(onnx.shape_inference.infer_shapes(self.skeleton, data_prop=True)).graph

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All nodes, those of nested graphs too."""
        return tuple(self.graph.all_nodes())

    @cached_property
    def sources(self) -> Mapping[ir.Value, Source]:
        """What each value depends on."""
        return sources(self.graph)

    @cached_property
    def has_lengths(self) -> bool:
        """Whether an input says how long each row is."""
        return any(is_length(value) for value in self.graph.inputs)


def _without_values(weight: StoredWeight) -> TensorProto:
    tensor = weight.tensor
    described = {"name": tensor.name, "data_type": tensor.data_type, "dims": tensor.dims}
    if weight.size_bytes <= SMALL_BYTES and weight.fault is None:
        return TensorProto(**described, raw_data=weight.read_bytes().tobytes()) if weight.is_external else tensor
    bare = TensorProto(**described)
    bare.data_location = TensorProto.EXTERNAL
    bare.external_data.add(key="location", value="left out")
    return bare

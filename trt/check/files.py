"""Whether the file is a graph at all. Where one of the first two finds something, nothing else is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]  # it ships no types
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, helper

from nemotrt.errors import GraphError
from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject

_PROTOBUF_LIMIT_BYTES = 2**31 - 1


class GraphTooLarge(Rule):
    """The file's size, before anything of it is read."""

    id = "graph-too-large"
    severity = "error"
    reason = "a protobuf message ends at 2 GiB: no reader takes a larger .onnx file"
    fix = "store the weights in one data file beside the graph"
    needs_valid_graph = False

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        size = subject.path.stat().st_size if subject.path.is_file() else 0
        if size > _PROTOBUF_LIMIT_BYTES:
            yield self.found(subject, f"the .onnx file has {size:,} bytes, weights included")


class GraphUnreadable(Rule):
    """Whether it parses, and names are text."""

    id = "graph-unreadable"
    severity = "error"
    reason = "what is not an ONNX model is an empty network to TensorRT"
    fix = "make the file again"
    needs_valid_graph = False

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        try:
            if not all(isinstance(text, str) for text in _texts(subject.proto)):
                yield self.found(subject, "a name in the graph is not UTF-8 text")
        except GraphError as exc:
            yield self.found(subject, f"{exc.what}: {exc.found}")


class GraphInvalid(Rule):
    """onnx's own checker and shape inference; weights are not looked at."""

    id = "graph-invalid"
    severity = "error"
    reason = "an operator that ONNX does not have, or types and shapes that contradict each other"
    fix = "export the graph again"
    needs_valid_graph = False

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding. Where there is one, rules that need a valid graph do not look at it."""
        try:
            onnx.checker.check_model(_with_weights_as_inputs(subject.skeleton))
            onnx.shape_inference.infer_shapes(subject.skeleton, strict_mode=True, data_prop=True)
            _ = subject.graph
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ir.serde.SerdeError) as exc:
            yield self.found(subject, " ".join(str(exc).split()))


def _texts(message: Message) -> Iterator[str | bytes]:
    """All strings of a message; those that are not UTF-8 are bytes."""
    for field, value in message.ListFields():
        if field.name == "initializer":  # their values are not copied for this
            for tensor in value:
                yield tensor.name
                for entry in tensor.external_data:
                    yield from (entry.key, entry.value)
            continue
        for one in value if field.is_repeated else [value]:
            if field.type == FieldDescriptor.TYPE_STRING:
                yield one
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                yield from _texts(one)


def _with_weights_as_inputs(skeleton: ModelProto) -> ModelProto:
    """What the checker takes for a whole model: weights that were left out come from outside."""
    model = ModelProto()
    model.CopyFrom(skeleton)
    graph = model.graph
    inputs = {value.name for value in graph.input}
    del graph.initializer[:]
    for tensor in skeleton.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


FIRST = (GraphTooLarge(), GraphUnreadable())
INVALID = GraphInvalid()
RULES = (*FIRST, INVALID)

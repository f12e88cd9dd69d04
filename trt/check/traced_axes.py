"""Axes that are dynamic by name only: the graph runs at the size it was traced with, and at no other.

Each free axis of the inputs is set to two sizes, alone and, where a contract says which axes are one, with all others;
and the shapes of everything are inferred. A sound graph takes every size. A traced constant shows as shapes that
contradict each other, or as a free axis of an output that does not move.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import ModelProto, ValueInfoProto

from nemotrt.bundle import ENCODER_FRAMES, FRAMES, BundleMeta
from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject

_SIZES = (160, 240)  # of time, a second or two; any other axis takes them as well
_NODE = re.compile(r"node name: ([^)]+)\)")

_Place = tuple[int, int]
"""A tensor of the inputs or outputs, and one of its axes."""

_Sizes = dict[_Place, int]


class AxisTraced(Rule):
    """Free axes, two sizes each."""

    id = "axis-traced"
    severity = "error"
    reason = "a Reshape, Slice or table of the traced length: the graph fails, or cuts, at any other"
    fix = "export again with sizes taken from tensors; a graph of one size should say so (nemotrt export --fixed)"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for the first axis that is not free, and one for outputs that do not move."""
        free = _with_open_outputs(subject.skeleton)
        if isinstance(_shapes(free), str):
            return  # shapes that contradict each other at any size are another finding
        stuck: dict[_Place, None] = {}
        for label, bindings in _bindings(subject):
            shapes = [_shapes(_bound(free, sizes)) for sizes in bindings]
            problem = next((one for one in shapes if isinstance(one, str)), None)
            if problem is not None:
                yield self.found(subject, f"{label} is not free: {problem}", places=_NODE.findall(problem))
                break
            small, large = (one for one in shapes if not isinstance(one, str))
            unmoved = (place for place in _open_outputs(subject) if small.get(place) == large.get(place))
            stuck |= dict.fromkeys(place for place in unmoved if large.get(place) is not None)
        if stuck:
            names = dict.fromkeys(free.graph.output[tensor].name for tensor, _ in stuck)
            yield self.found(subject, "an axis of an output stays as it was traced", places=names)


def _shapes(model: ModelProto) -> Mapping[_Place, int | None] | str:
    """The known sizes of the outputs' axes; or why shapes cannot be inferred."""
    try:
        outputs = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output
    except onnx.shape_inference.InferenceError as exc:
        return " ".join(str(exc).split())
    return {
        place: outputs[place[0]].type.tensor_type.shape.dim[place[1]].dim_value or None for place in _places(outputs)
    }


def _bindings(subject: Subject) -> Iterator[tuple[str, Sequence[_Sizes]]]:
    """Two sets of sizes for each free axis by name; then for all at once, each of another size."""
    axes = _free_axes(subject)
    for label, places in axes.items():
        yield f"axis {label}", [dict.fromkeys(places, size) for size in _sizes(label, subject.meta)]
    if subject.component is not None and len(axes) > 1:
        together: tuple[_Sizes, _Sizes] = {}, {}
        for index, (label, places) in enumerate(axes.items()):
            for sizes, size in zip(together, _sizes(label, subject.meta), strict=True):
                sizes.update(dict.fromkeys(places, size - index))
        yield f"one of the axes {', '.join(axes)}", together


def _free_axes(subject: Subject) -> Mapping[str, Sequence[_Place]]:
    """The inputs' axes without a size. Those of one name are one axis."""
    found: dict[str, list[_Place]] = defaultdict(list)
    inputs = subject.skeleton.graph.input
    for tensor, axis in _places(inputs):
        size = inputs[tensor].type.tensor_type.shape.dim[axis]
        if not size.HasField("dim_value"):
            found[size.dim_param or f"{axis} of {inputs[tensor].name}"].append((tensor, axis))
    return found


def _open_outputs(subject: Subject) -> Iterator[_Place]:
    """The outputs' axes that are declared without a size, where an input's time is free."""
    inputs, outputs = subject.skeleton.graph.input, subject.skeleton.graph.output
    shapes = [value.type.tensor_type.shape.dim for value in inputs]
    if subject.component is None and all(not shape or shape[-1].HasField("dim_value") for shape in shapes):
        return
    for tensor, axis in _places(outputs):
        if not outputs[tensor].type.tensor_type.shape.dim[axis].HasField("dim_value"):
            yield tensor, axis


def _places(values: Sequence[ValueInfoProto]) -> Iterator[_Place]:
    for tensor, value in enumerate(values):
        yield from ((tensor, axis) for axis in range(len(value.type.tensor_type.shape.dim)))


def _with_open_outputs(model: ModelProto) -> ModelProto:
    """The model without declared shapes of its outputs: what is declared would hide what is computed."""
    opened = ModelProto()
    opened.CopyFrom(model)
    for output in opened.graph.output:
        output.type.tensor_type.ClearField("shape")
    return opened


def _bound(model: ModelProto, sizes: _Sizes) -> ModelProto:
    bound = ModelProto()
    bound.CopyFrom(model)
    for (tensor, axis), size in sizes.items():
        bound.graph.input[tensor].type.tensor_type.shape.dim[axis].dim_value = size
    return bound


def _sizes(label: str, meta: BundleMeta | None) -> tuple[int, int]:
    """Two sizes of the axis that the model can take."""
    limits = {} if meta is None else {
        FRAMES: meta.encoder.max_feature_frames, ENCODER_FRAMES: meta.encoder.max_encoder_frames
    }  # fmt: skip
    small, large = _SIZES
    longest = min(large, limits.get(label, large))
    return min(small, longest * small // large), longest


RULES = (AxisTraced(),)

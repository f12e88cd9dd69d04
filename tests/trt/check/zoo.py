"""Broken graphs, each made from a good one by one change, with the rule that must find it.

@broken("rule-id", also=(rules that may find it too))
def what_is_wrong(at: Place) -> Animal
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import small_graphs
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from small_graphs import ENCODER, OPSET, Nodes, component, saved

from nemotrt.bundle import Bundle, BundleMeta, ComponentSpec, TensorSpec
from nemotrt.trt.check import Severity

ROWS = component(
    "rows",
    (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
    (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
)
MEBIBYTE = 1 << 20
F32_MIN = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Place:
    """Where a graph may be written, and whole bundles of the demo checkpoints to make it from."""

    folder: Path
    tdt: Bundle
    hybrid: Bundle


@dataclass(frozen=True)
class Animal:
    """A graph and its contract."""

    path: Path
    component: ComponentSpec | None = None
    meta: BundleMeta | None = None


@dataclass(frozen=True)
class Species:
    """How to make a broken graph, and what must be said of it."""

    rule: str
    severity: Severity | None  # None: the rule's own
    also: frozenset[str]
    make: Callable[[Place], Animal]


ZOO: dict[str, Species] = {}


def broken(rule: str, *, also: Iterable[str] = (), severity: Severity | None = None) -> Callable[[Any], Any]:
    def register(make: Callable[[Place], Animal]) -> Callable[[Place], Animal]:
        ZOO[make.__name__] = Species(rule, severity, frozenset(also), make)
        return make

    return register


# --- how to break a graph


def good(at: Place) -> Animal:
    return Animal(small_graphs.encoder(at.folder), ENCODER)


def altered(path: Path, change: Callable[[ModelProto], object]) -> Path:
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def altered_encoder(at: Place, change: Callable[[ModelProto], object]) -> Animal:
    return Animal(altered(good(at).path, change), ENCODER)


def stored(model: ModelProto, key: str, change: Callable[[str], str], *, index: int | None = None) -> None:
    """Change one entry of all external weights, or of one."""
    external = [one for one in model.graph.initializer if one.data_location == TensorProto.EXTERNAL]
    for tensor in external if index is None else [external[index]]:
        (entry,) = (entry for entry in tensor.external_data if entry.key == key)
        entry.value = change(entry.value)


def constant(model: ModelProto, name: str, value: Any) -> None:
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def maker(model: ModelProto, output: str) -> NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def of_type(model: ModelProto, op_type: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def replaced(model: ModelProto, output: str, nodes: Nodes, weights: dict[str, Any] | None = None) -> None:
    """Put ``nodes``, the last of which makes ``output``, where it was made before."""
    place = list(model.graph.node).index(maker(model, output))
    nodes = [*model.graph.node[:place], *nodes, *model.graph.node[place + 1 :]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    given = (weights or {}).items()
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in given)


def rows(at: Place, nodes: Nodes, weights: dict[str, Any] | None = None, *, opset: int = OPSET) -> Animal:
    return Animal(saved(at.folder, ROWS, list(nodes), weights or {}, opset=opset), ROWS)


def one_node(op_type: str, **attributes: Any) -> Nodes:
    nodes = Nodes()
    nodes.add(op_type, "x", out="y", **attributes)
    return nodes


def copied(at: Place, bundle: Bundle, name: str) -> Animal:
    spec = bundle.component(name)
    for file in spec.files:
        shutil.copyfile(bundle.path / file, at.folder / file)
    return Animal(at.folder / spec.graph, spec, bundle.meta)


# --- files


@broken("graph-too-large")
def three_gigabytes_in_the_graph(at: Place) -> Animal:
    path = at.folder / "large.onnx"
    with path.open("wb") as stream:
        stream.truncate(3 << 30)  # a hole: it takes no room
    return Animal(path)


@broken("graph-unreadable")
def text_instead_of_a_graph(at: Place) -> Animal:
    path = at.folder / "text.onnx"
    path.write_text("not a graph")
    return Animal(path)


@broken("graph-unreadable")
def no_file_at_all(at: Place) -> Animal:
    return Animal(at.folder / "nowhere.onnx")


@broken("graph-invalid")
def an_operator_that_does_not_exist(at: Place) -> Animal:
    return rows(at, one_node("Foo"))


@broken("graph-invalid")
def shapes_that_contradict_each_other(at: Place) -> Animal:
    nodes = Nodes()
    nodes.add("MatMul", "x", "w", out="y")
    return rows(at, nodes, {"w": np.ones((5, 4), np.float32)})


# --- external data


@broken("data-outside", also=("data-orphaned",))
def weights_above_the_folder(at: Place) -> Animal:
    return altered_encoder(at, lambda model: stored(model, "location", lambda name: f"../{name}"))


@broken("data-outside", also=("data-orphaned",))
def weights_at_an_absolute_path(at: Place) -> Animal:
    return altered_encoder(at, lambda model: stored(model, "location", lambda name: str(at.folder / name)))


@broken("data-outside")
def weights_behind_a_link(at: Place) -> Animal:
    animal = good(at)
    data = at.folder / "encoder.onnx.data"
    data.rename(at.folder / "real")
    data.symlink_to("real")
    return animal


@broken("data-missing")
def weights_left_behind(at: Place) -> Animal:
    animal = good(at)
    (at.folder / "encoder.onnx.data").unlink()
    return animal


@broken("data-truncated")
def weights_cut_short(at: Place) -> Animal:
    animal = good(at)
    with (at.folder / "encoder.onnx.data").open("r+b") as stream:
        stream.truncate(100)
    return animal


@broken("data-length")
def a_range_that_is_too_short(at: Place) -> Animal:
    return altered_encoder(at, lambda model: stored(model, "length", lambda length: str(int(length) - 4)))


@broken("data-length")
def a_range_that_is_too_long(at: Place) -> Animal:
    return altered_encoder(at, lambda model: stored(model, "length", lambda length: str(int(length) + 4)))


@broken("data-length")
def an_offset_that_is_no_number(at: Place) -> Animal:
    return altered_encoder(at, lambda model: stored(model, "offset", lambda _: "-1", index=1))


@broken("data-overlap")
def a_weight_over_another(at: Place) -> Animal:
    return altered_encoder(at, lambda model: stored(model, "offset", lambda offset: str(int(offset) - 4), index=1))


@broken("data-orphaned")
def a_file_of_an_earlier_export(at: Place) -> Animal:
    (at.folder / "onnx__MatMul_1702").write_bytes(b"old")
    return good(at)


@broken("data-orphaned")
def a_data_file_with_a_hole(at: Place) -> Animal:
    animal = good(at)
    with (at.folder / "encoder.onnx.data").open("ab") as stream:
        stream.write(bytes(MEBIBYTE))
    return animal


@broken("data-scattered")
def a_file_for_every_weight(at: Place) -> Animal:
    path = good(at).path
    model = onnx.load(path)
    (at.folder / "encoder.onnx.data").unlink()
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=256)
    return Animal(path, ENCODER)


@broken("data-duplicate")
def the_same_weight_twice(at: Place) -> Animal:
    weight = np.random.default_rng(0).standard_normal((4, 1000)).astype(np.float32)
    nodes = Nodes()
    wide = nodes.add("Add", nodes.add("MatMul", "x", "a"), nodes.add("MatMul", "x", "b"))
    nodes.add("MatMul", wide, "back", out="y")
    return rows(at, nodes, {"a": weight, "b": weight.copy(), "back": weight.T.copy()})


# --- contract


@broken("contract-interface")
def an_input_of_another_name(at: Place) -> Animal:
    inputs = (small_graphs.AUDIO.model_copy(update={"name": "features"}), small_graphs.LENGTH)
    return Animal(good(at).path, ENCODER.model_copy(update={"inputs": inputs}))


@broken("contract-interface")
def an_output_of_another_type(at: Place) -> Animal:
    outputs = (small_graphs.ENCODED, small_graphs.ENCODED_LENGTHS.model_copy(update={"dtype": "int32"}))
    return Animal(good(at).path, ENCODER.model_copy(update={"outputs": outputs}))


@broken("head-width")
def a_joint_without_durations_of_a_tdt_with_more(at: Place) -> Animal:
    animal = copied(at, at.tdt, "joint")
    transducer = at.tdt.meta.transducer.model_copy(update={"durations": (0, 1)})
    return Animal(animal.path, animal.component, at.tdt.meta.model_copy(update={"transducer": transducer}))


@broken("streaming-caches")
def a_streaming_encoder_that_is_an_offline_one(at: Place) -> Animal:
    return Animal(good(at).path.rename(at.folder / "encoder_streaming.onnx"))


@broken("streaming-caches", also=("contract-interface", "node-unused"))
def a_streaming_encoder_that_forgets_a_cache(at: Place) -> Animal:
    animal = copied(at, at.hybrid, "encoder_streaming")

    def forget(model: ModelProto) -> None:
        (cache,) = (one for one in model.graph.output if one.name == "cache_last_time_out")
        model.graph.output.remove(cache)

    altered(animal.path, forget)
    return animal


@broken("streaming-caches")
def caches_of_another_length_than_the_contract_says(at: Place) -> Animal:
    animal = copied(at, at.hybrid, "encoder_streaming")
    streaming = at.hybrid.meta.streaming.model_copy(update={"left_context_frames": 35})
    return Animal(animal.path, animal.component, at.hybrid.meta.model_copy(update={"streaming": streaming}))


def log_softmax(at: Place) -> Animal:
    animal = copied(at, at.tdt, "joint")

    def normalize(model: ModelProto) -> None:
        maker(model, "joint_output").output[0] = "logits"
        node = helper.make_node("LogSoftmax", ["logits"], ["joint_output"], name="normalize", axis=-1)
        model.graph.node.append(node)

    altered(animal.path, normalize)
    return animal


@broken("joint-log-softmax")
def a_log_softmax_over_tokens_and_durations(at: Place) -> Animal:
    return log_softmax(at)


@broken("joint-log-softmax", severity="warning")
def a_log_softmax_of_who_knows_what(at: Place) -> Animal:
    return Animal(log_softmax(at).path)


@broken("positions-limit", also=("node-unused",))
def a_position_table_shorter_than_promised(at: Place) -> Animal:
    animal = copied(at, at.tdt, "encoder")
    encoder = at.tdt.meta.encoder.model_copy(update={"max_encoder_frames": 9000})
    return Animal(animal.path, animal.component, at.tdt.meta.model_copy(update={"encoder": encoder}))


@broken("positions-limit", also=("node-unused",), severity="note")
def a_position_table_without_a_contract(at: Place) -> Animal:
    return Animal(copied(at, at.tdt, "encoder").path)


# --- traced constants


@broken("axis-traced")
def a_reshape_to_the_traced_frames(at: Place) -> Animal:
    return altered_encoder(at, lambda model: constant(model, "merged", [0, 30, 8]))


@broken("axis-traced")
def a_reshape_to_the_traced_rows(at: Place) -> Animal:
    return altered_encoder(at, lambda model: constant(model, "merged", [1, -1, 8]))


@broken("axis-traced")
def positions_of_the_traced_frames(at: Place) -> Animal:
    def add_positions(model: ModelProto) -> None:
        normed = of_type(model, "LayerNormalization")
        nodes = Nodes()
        nodes.add("Add", normed.input[0], "positions", out="placed")
        nodes.append(normed)
        normed.input[0] = "placed"
        replaced(model, normed.output[0], nodes, {"positions": np.zeros((1, 30, 8), np.float32)})

    return altered_encoder(at, add_positions)


@broken("axis-traced")
def an_output_cut_to_the_traced_frames(at: Place) -> Animal:
    def cut(model: ModelProto) -> None:
        maker(model, "encoder_output").output[0] = "whole"
        nodes = Nodes()
        nodes.add("Slice", "whole", "cut.start", "cut.end", "axis_2", out="encoder_output")
        model.graph.node.extend(nodes)
        ends = {"cut.start": np.array([0]), "cut.end": np.array([30]), "axis_2": np.array([2])}
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in ends.items())

    return altered_encoder(at, cut)


# --- edges


@broken("input-unused", also=("contract-interface",))
def an_input_that_nothing_reads(at: Place) -> Animal:
    speaker = helper.make_tensor_value_info("speaker", TensorProto.INT64, ["batch"])
    return altered_encoder(at, lambda model: model.graph.input.append(speaker))


@broken("output-constant", also=("input-unused", "convolution-unmasked", "attention-unmasked"))
def lengths_of_the_padded_batch(at: Place) -> Animal:
    def from_shape(model: ModelProto) -> None:
        of_type(model, "Add").input[0] = "padded"
        nodes = Nodes()
        rows_of = nodes.add("Shape", "audio_signal", out="rows_of", start=0, end=1)
        frames_of = nodes.add("Shape", "audio_signal", out="frames_of", start=2, end=3)
        nodes.add("Expand", frames_of, rows_of, out="padded")
        old = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*nodes, *old])

    return altered_encoder(at, from_shape)


@broken("node-unused")
def a_node_for_nothing(at: Place) -> Animal:
    node = helper.make_node("Relu", ["audio_signal"], ["nothing_needed"], name="idle")
    return altered_encoder(at, lambda model: model.graph.node.append(node))


# --- lengths and masks


def float_lengths(model: ModelProto, to: int) -> None:
    nodes = Nodes()
    exact = nodes.add("Cast", "length", out="float_length", to=to)
    one, two = (nodes.add("Cast", name, out=f"float_{name}", to=to) for name in ("one", "two"))
    halves = nodes.add("Floor", nodes.add("Div", nodes.add("Add", exact, one, out="fa"), two, out="fd"), out="ff")
    nodes.add("Cast", halves, out="encoded_lengths", to=TensorProto.INT64)
    idle = maker(model, maker(model, "encoded_lengths").input[0])
    replaced(model, "encoded_lengths", nodes)
    model.graph.node.remove(idle)


@broken("length-in-float")
def lengths_in_float32(at: Place) -> Animal:
    return altered_encoder(at, lambda model: float_lengths(model, TensorProto.FLOAT))


@broken("length-in-float", severity="error")
def lengths_in_float16(at: Place) -> Animal:
    return altered_encoder(at, lambda model: float_lengths(model, TensorProto.FLOAT16))


@broken("length-in-float")
def lengths_that_count_a_float_mask(at: Place) -> Animal:
    def count(model: ModelProto) -> None:
        nodes = Nodes()
        column = nodes.add("Unsqueeze", nodes.add("Cast", "length", out="fl", to=TensorProto.FLOAT), "axis_1", out="fc")
        halves = nodes.add("Mul", column, "scale", out="fm")
        nodes.add("Cast", nodes.add("Squeeze", halves, "axis_1", out="fs"), out="encoded_lengths", to=TensorProto.INT64)
        idle = maker(model, maker(model, "encoded_lengths").input[0])
        replaced(model, "encoded_lengths", nodes)
        model.graph.node.remove(idle)

    return altered_encoder(at, count)


def unmasked(model: ModelProto, node: NodeProto) -> None:
    """Take the value as it is, where a mask stood before ``node``."""
    where = maker(model, node.input[0])
    (data,) = (name for name in where.input[1:] if name not in ("nothing", "masked"))
    node.input[0] = data
    model.graph.node.remove(where)


@broken("convolution-unmasked")
def a_depthwise_convolution_without_a_mask(at: Place) -> Animal:
    def drop(model: ModelProto) -> None:
        unmasked(model, next(node for node in model.graph.node if "depthwise.weight" in node.input))

    return altered_encoder(at, drop)


@broken("attention-unmasked")
def attention_without_a_mask(at: Place) -> Animal:
    return altered_encoder(at, lambda model: unmasked(model, of_type(model, "Softmax")))


# --- operators


@broken("opset-old")
def an_opset_without_layer_norm(at: Place) -> Animal:
    return rows(at, one_node("Relu"), opset=13)


@broken("opset-new", also=("graph-invalid",))
def an_opset_from_the_future(at: Place) -> Animal:
    return rows(at, one_node("Relu"), opset=onnx.defs.onnx_opset_version() + 1)


@broken("control-flow")
def a_branch(at: Place) -> Animal:
    branches = {
        name: helper.make_graph(
            [helper.make_node(op_type, ["x"], [f"{name}_y"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
        )
        for name, op_type in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = Nodes()
    small = nodes.add("Less", nodes.add("ReduceMax", "x", keepdims=0), "one")
    nodes.add("If", small, out="y", **branches)
    return rows(at, nodes, {"one": np.float32(1)})


@broken("data-dependent-shape")
def only_the_values_that_are_not_zero(at: Place) -> Animal:
    nodes = Nodes()
    nodes.add("GatherND", "x", nodes.add("Transpose", nodes.add("NonZero", "x"), perm=[1, 0]), out="chosen")
    nodes.add("Mul", "x", nodes.add("ReduceSum", "chosen", keepdims=0), out="y")
    return rows(at, nodes)


@broken("scatter-in-shape")
def a_shape_that_is_scattered(at: Place) -> Animal:
    nodes = Nodes()
    shape = nodes.add("ScatterElements", nodes.add("Shape", "x"), "last", "four", axis=0)
    nodes.add("Reshape", "x", shape, out="y")
    return rows(at, nodes, {"last": np.array([1]), "four": np.array([4])})


@broken("shape-from-input", also=("axis-traced",))
def a_mask_as_long_as_the_longest_row(at: Place) -> Animal:
    def from_length(model: ModelProto) -> None:
        of_type(model, "Range").input[1] = "longest"
        nodes = Nodes()
        nodes.add("ReduceMax", "encoded_lengths", out="longest", keepdims=0)
        place = list(model.graph.node).index(of_type(model, "Range"))
        old = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*old[:place], *nodes, *old[place:]])
        for name in ("Gather", "Shape"):  # what gave the number of frames before
            model.graph.node.remove(of_type(model, name))

    return altered_encoder(at, from_length)


@broken("signal-operator")
def a_transform_as_an_operator(at: Place) -> Animal:
    nodes = Nodes()
    column = nodes.add("Unsqueeze", "x", "axes")
    nodes.add("ReduceSum", nodes.add("DFT", column, axis=1), "axes", out="y", keepdims=0)
    return rows(at, nodes, {"axes": np.array([2])})


@broken("operator-refused")
def a_determinant(at: Place) -> Animal:
    nodes = Nodes()
    outer = nodes.add("Mul", nodes.add("Unsqueeze", "x", "two"), nodes.add("Unsqueeze", "x", "one"))
    nodes.add("Mul", "x", nodes.add("Unsqueeze", nodes.add("Det", outer), "one"), out="y")
    return rows(at, nodes, {"one": np.array([1]), "two": np.array([2])})


def of_domain(at: Place, domain: str) -> Animal:
    def import_domain(model: ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid(domain, 1))

    animal = rows(at, one_node("Gelu", domain=domain))
    return Animal(altered(animal.path, import_domain), ROWS)


@broken("custom-operator")
def an_operator_of_somebody_else(at: Place) -> Animal:
    return of_domain(at, "somebody.else")


@broken("custom-operator", severity="warning")
def an_operator_of_onnx_runtime(at: Place) -> Animal:
    return of_domain(at, "com.microsoft")


# --- norms and numbers


@broken("layer-norm-decomposed")
def a_layer_norm_in_pieces(at: Place) -> Animal:
    nodes = Nodes()
    centred = nodes.add("Sub", "x", nodes.add("ReduceMean", "x", "last"))
    variance = nodes.add("ReduceMean", nodes.add("Pow", centred, "two"), "last")
    nodes.add("Div", centred, nodes.add("Sqrt", nodes.add("Add", variance, "epsilon")), out="y")
    return rows(at, nodes, {"last": np.array([-1]), "two": np.float32(2), "epsilon": np.float32(1e-5)})


@broken("softmax-decomposed")
def a_softmax_in_pieces(at: Place) -> Animal:
    nodes = Nodes()
    powers = nodes.add("Exp", "x")
    nodes.add("Div", powers, nodes.add("ReduceSum", powers, "last"), out="y")
    return rows(at, nodes, {"last": np.array([-1])})


@broken("mask-infinite")
def a_mask_of_minus_infinity(at: Place) -> Animal:
    return altered_encoder(at, lambda model: constant(model, "masked", np.float32(-np.inf)))


@broken("mask-beyond-half")
def a_mask_of_the_smallest_float(at: Place) -> Animal:
    return altered_encoder(at, lambda model: constant(model, "masked", np.float32(F32_MIN)))


def product_with(at: Place, weight: Any) -> Animal:
    nodes = Nodes()
    nodes.add("Mul", "x", "w", out="y")
    return rows(at, nodes, {"w": np.asarray(weight, np.float32)})


@broken("beyond-half")
def a_weight_of_a_million(at: Place) -> Animal:
    return product_with(at, [1, 2, 3, 1e6])


@broken("beyond-half")
def an_epsilon_that_becomes_zero(at: Place) -> Animal:
    return product_with(at, 1e-9)


@broken("weight-not-finite")
def a_weight_that_is_not_a_number(at: Place) -> Animal:
    return product_with(at, [1, 2, 3, np.nan])


@broken("weight-not-finite")
def a_weight_that_overflowed(at: Place) -> Animal:
    return product_with(at, [1, 2, 3, np.inf])

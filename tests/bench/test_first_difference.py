"""A planted fault is found by name, in a few runs; what is only rounded is not a fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from broken_bundles import node_of, with_graph, with_weight
from onnx import helper

from nemotrt.bench.first_difference import PROBES, Search, find_first_difference
from nemotrt.bench.tolerances import tensor_tolerance_for
from nemotrt.bundle import Bundle, load_bundle
from nemotrt.engines.audio import read_clips, read_waveform
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Array, Arrays, Runner
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import GraphError
from nemotrt.export import export_checkpoint
from nemotrt.trt.precision import cast_bundle

Feeds = dict[str, Array]
CHECKPOINTS = Path(__file__).parents[1] / "export" / "full_size_checkpoint.py"
FP32 = tensor_tolerance_for("fp32", "fp32")
FP16 = tensor_tolerance_for("fp32", "fp16")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random encoder of 17 layers."""
    pytest.importorskip("torch")
    checkpoint = tmp_path_factory.mktemp("deep") / "deep.nemo"
    subprocess.run([sys.executable, CHECKPOINTS, "deep", checkpoint], check=True, timeout=120)
    return export_checkpoint(checkpoint, checkpoint.parent / "bundle")


@pytest.fixture(scope="module")
def deep_half(deep: Bundle) -> Bundle:
    return cast_bundle(deep, deep.path.parent / "half")


@pytest.fixture(scope="module")
def feeds(deep: Bundle, demo_manifest: Path) -> Feeds:
    """The features of a clip."""
    waveform = read_waveform(read_clips(demo_manifest)[0].path, sample_rate=16000)
    with Transcriber(deep, threads=1) as transcriber:
        audio_signal, length = transcriber.features([waveform])
    return {"audio_signal": audio_signal, "length": length}


def search(left: Bundle, right: Bundle, feeds: Feeds, **options: object) -> Search:
    options = {"tolerance": FP32} | options
    return find_first_difference(left.graph_path("encoder"), right.graph_path("encoder"), feeds, **options)


def half_again(weight: np.ndarray) -> np.ndarray:
    weight.reshape(-1)[: weight.size // 2] *= 1.5
    return weight


PLANTED = ("layers.11.conv.depthwise_conv.weight", "layers.11.conv.Conv")


@pytest.fixture(scope="module")
def planted(deep: Bundle) -> Bundle:
    return with_weight(deep, deep.path.parent / "planted", "encoder", PLANTED[0], half_again)


def test_a_weight_planted_in_the_twelfth_of_seventeen_layers_is_found(
    deep: Bundle, planted: Bundle, feeds: Feeds, figure: Callable[[str], None]
) -> None:
    found = search(deep, planted, feeds)
    assert found.first is not None
    assert (found.first.node, found.first.op, found.first.scope) == (PLANTED[1], "Conv", "layers.11.conv")
    assert [source.difference.differs for source in found.first.inputs] == [False]
    assert [PLANTED[0] in cause for cause in found.first.causes] == [True]
    assert found.first.between == ()
    assert found.tensors > 900
    assert found.runs <= 4
    figure(f"first difference in a 17-layer encoder: {found.runs} runs of each graph for {found.tensors} tensors")


def test_graphs_that_agree_need_one_run_and_name_nobody(deep: Bundle, feeds: Feeds) -> None:
    found = search(deep, deep, feeds)
    assert (found.first, found.vanished, found.runs) == (None, False, 1)


@pytest.mark.parametrize(
    ("weight", "node"),
    [
        ("pre_encode.conv.0.weight", "pre_encode.Conv"),
        ("layers.0.feed_forward1.linear2.weight", "layers.0.feed_forward1.MatMul_2"),
        ("positions.table", "positions.Slice"),
        ("layers.16.norm_out.weight", "layers.16.norm_out.LayerNormalization"),
    ],
)
def test_a_weight_planted_anywhere_is_found(deep: Bundle, feeds: Feeds, tmp_path: Path, weight: str, node: str) -> None:
    found = search(deep, with_weight(deep, tmp_path / "bad", "encoder", weight, half_again), feeds)
    assert found.first is not None
    assert found.first.node == node
    assert weight in found.first.causes[0]


def test_an_operator_that_was_swapped_is_found_and_named(deep: Bundle, feeds: Feeds, tmp_path: Path) -> None:
    def swap(graph: onnx.GraphProto) -> None:
        node_of(graph, "layers.9.feed_forward2.Sigmoid").op_type = "Tanh"

    found = search(deep, with_graph(deep, tmp_path / "bad", "encoder", swap), feeds)
    assert found.first is not None
    assert found.first.node == "layers.9.feed_forward2.Sigmoid"
    assert found.first.causes == ("the operator is Tanh, Sigmoid in the reference",)


def test_an_attribute_that_was_changed_is_found_and_named(deep: Bundle, feeds: Feeds, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        node = node_of(graph, "layers.9.self_attn.Softmax")
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("axis", -2))

    found = search(deep, with_graph(deep, tmp_path / "bad", "encoder", change), feeds)
    assert found.first is not None
    assert found.first.node == "layers.9.self_attn.Softmax"
    assert found.first.causes == ("attribute axis is -2, -1 in the reference",)


def test_infinity_is_found_where_it_begins(deep: Bundle, feeds: Feeds, tmp_path: Path) -> None:
    def overflow(weight: np.ndarray) -> np.ndarray:
        weight[3] = np.inf
        return weight

    name = "layers.5.norm_conv.bias"
    found = search(deep, with_weight(deep, tmp_path / "bad", "encoder", name, overflow), feeds)
    assert found.first is not None
    assert found.first.node == "layers.5.norm_conv.LayerNormalization"
    assert found.first.difference.state == "not finite"
    assert found.first.difference.not_finite == found.first.difference.frame_count
    assert set(found.first.difference.heat) == {"!"}


def test_lengths_that_are_wrong_are_found_though_no_float_is(deep: Bundle, feeds: Feeds, tmp_path: Path) -> None:
    def one_more(graph: onnx.GraphProto) -> None:
        (node,) = (node for node in graph.node if "encoded_lengths" in node.output)
        node.output[0] = "counted"
        graph.initializer.append(helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1]))
        graph.node.append(helper.make_node("Add", ["counted", "one"], ["encoded_lengths"], name="one_more"))

    found = search(deep, with_graph(deep, tmp_path / "bad", "encoder", one_more), feeds)
    assert found.first is not None
    assert (found.first.node, found.first.op) == ("one_more", "Add")
    assert found.first.difference.limit == 0.0


def test_half_precision_agrees_within_its_limits_and_differs_by_those_of_full_precision(
    deep: Bundle, deep_half: Bundle, feeds: Feeds
) -> None:
    assert search(deep, deep_half, feeds, tolerance=FP16).first is None
    assert search(deep, deep_half, feeds, tolerance=FP32).first is not None


def test_a_weight_planted_in_the_half_precision_twin_is_found_among_the_casts(
    deep: Bundle, deep_half: Bundle, feeds: Feeds, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    bad = with_weight(deep_half, tmp_path / "bad", "encoder", f"{PLANTED[0]}.float16", half_again)
    found = search(deep, bad, feeds, tolerance=FP16)
    assert found.first is not None
    assert found.first.node == PLANTED[1]
    assert [PLANTED[0] in cause for cause in found.first.causes] == [True]
    figure(f"the same in its FP16 twin: {found.runs} runs, {found.unpaired} tensors without a counterpart")


def test_tensors_are_paired_by_structure_where_their_names_say_nothing(
    deep: Bundle, planted: Bundle, feeds: Feeds, tmp_path: Path
) -> None:
    def rename(graph: onnx.GraphProto) -> None:
        kept = {value.name for value in (*graph.input, *graph.output)} | {w.name for w in graph.initializer}
        # Names of the other graph, each for another tensor: worse than names that are new.
        made = [name for node in graph.node for name in node.output if name not in kept]
        names = dict(zip(made, made[5:] + made[:5], strict=True))
        for number, node in enumerate(graph.node):
            node.name = f"node_{number}"
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        del graph.value_info[:]

    renamed = with_graph(planted, tmp_path / "bad", "encoder", rename)
    found = search(deep, renamed, feeds)
    assert found.first is not None
    assert (found.first.op, found.first.reference_tensor) == ("Conv", PLANTED[1])
    assert found.first.tensor != found.first.reference_tensor
    assert found.unpaired <= 5  # casts, which have no place of their own


@pytest.mark.parametrize("probes", [4, 2000])
def test_fewer_probes_a_round_take_more_runs_to_the_same_node(
    deep: Bundle, planted: Bundle, feeds: Feeds, probes: int
) -> None:
    found, usual = search(deep, planted, feeds, probes=probes), search(deep, planted, feeds)
    assert found.first is not None
    assert found.first.node == usual.first.node == PLANTED[1]
    assert (found.runs > usual.runs) == (probes < PROBES)


def test_the_same_graph_computed_wrong_is_found_and_has_no_cause(deep: Bundle, planted: Bundle, feeds: Feeds) -> None:
    """What a wrong engine looks like: here the same nodes are run with other weights."""

    def open_wrong(marked: Path, _folder: Path) -> Runner:
        return OnnxRuntimeRunner(marked, threads=1, data_folder=planted.path)

    found = search(deep, deep, feeds, open_candidate=open_wrong)
    assert found.first is not None
    assert (found.first.node, found.first.causes) == (PLANTED[1], ())


class _WrongAlone(OnnxRuntimeRunner):
    """Right as soon as an inner tensor is an output."""

    def run(self, feeds: Arrays) -> dict[str, Array]:
        outputs = super().run(feeds)
        return {name: array + (len(outputs) <= 2) for name, array in outputs.items()}


def test_a_difference_that_vanishes_when_it_is_looked_for_is_called_that(deep: Bundle, feeds: Feeds) -> None:
    def open_wrong(marked: Path, folder: Path) -> Runner:
        return _WrongAlone(marked, threads=1, data_folder=folder)

    found = search(deep, deep, feeds, open_candidate=open_wrong)
    assert (found.first, found.vanished, found.runs) == (None, True, 2)


def test_graphs_without_a_common_output_are_refused(deep: Bundle, feeds: Feeds) -> None:
    with pytest.raises(GraphError, match="no output in common"):
        find_first_difference(deep.graph_path("encoder"), deep.graph_path("joint"), feeds, tolerance=FP32)
    with pytest.raises(GraphError, match="not an ONNX graph"):
        find_first_difference(deep.path / "tokens.txt", deep.graph_path("joint"), feeds, tolerance=FP32)


def test_a_search_leaves_nothing_in_the_bundles(deep: Bundle, planted: Bundle, feeds: Feeds) -> None:
    search(deep, planted, feeds)
    for bundle in (deep, planted):
        load_bundle(bundle.path)

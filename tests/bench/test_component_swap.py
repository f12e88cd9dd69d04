"""The component to blame is named, by its outputs and by what it does to the text; a pair that agrees is said to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from broken_bundles import with_graph, with_meta, with_weight
from onnx import helper
from tiny_ctc import AlteredRunner, write_tiny_bundle

from nemotrt.bench.component_swap import ComponentSwap, Side, swap_components
from nemotrt.bench.tolerances import tensor_tolerance_for
from nemotrt.bench.utterance import Utterance, read_utterances
from nemotrt.bundle import Bundle
from nemotrt.engines.audio import read_clips
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.errors import UsageError
from nemotrt.trt.precision import cast_bundle

FP32 = tensor_tolerance_for("fp32", "fp32")


@pytest.fixture(scope="module")
def spoken(demo_manifest: Path) -> tuple[Utterance, ...]:
    return read_utterances(read_clips(demo_manifest)[:2], sample_rate=16000)


def swap(left: Bundle, right: Bundle, spoken: tuple[Utterance, ...], **options: Any) -> ComponentSwap:
    options = {"tolerance": FP32, "threads": 1} | options
    return swap_components(Side(left), Side(right), spoken, **options)


def blamed(result: ComponentSwap) -> list[str]:
    return [one.component for one in result.to_blame]


def test_a_bundle_and_itself_agree_in_every_component(tdt_bundle: Bundle, spoken: tuple[Utterance, ...]) -> None:
    result = swap(tdt_bundle, tdt_bundle, spoken)
    assert result.agrees
    names = ["preprocessor", "encoder", "encoder_nomask", "predictor", "joint"]
    assert [one.component for one in result.components] == names


def test_half_precision_agrees_by_its_own_limits_and_not_by_those_of_full_precision(
    tdt_bundle: Bundle, spoken: tuple[Utterance, ...], tmp_path: Path
) -> None:
    half = cast_bundle(tdt_bundle, tmp_path / "half")
    assert swap(tdt_bundle, half, spoken, tolerance=tensor_tolerance_for("fp32", "fp16")).agrees
    assert blamed(swap(tdt_bundle, half, spoken)) == ["encoder", "predictor", "joint"]


@pytest.mark.parametrize(
    ("component", "alter", "output"),
    [
        ("preprocessor", np.flipud, "audio_signal"),
        ("predictor", np.negative, "g"),
        ("joint", np.negative, "joint_output"),
    ],
)
def test_the_component_with_another_weight_is_named_alone(
    tdt_bundle: Bundle, spoken: tuple[Utterance, ...], tmp_path: Path, component: str, alter: Any, output: str
) -> None:
    largest = _largest_weight(tdt_bundle, component)
    result = swap(tdt_bundle, with_weight(tdt_bundle, tmp_path / "bad", component, largest, alter), spoken)
    assert blamed(result) == [component]
    (one,) = result.to_blame
    assert one.output is not None
    assert one.output.tensor == output
    assert one.output.call.clip == spoken[0].clip.name
    assert one.tokens
    assert result.together == one.tokens


def test_an_encoder_is_named_with_the_variant_that_shares_its_weights(
    tdt_bundle: Bundle, spoken: tuple[Utterance, ...], tmp_path: Path
) -> None:
    bad = with_weight(tdt_bundle, tmp_path / "bad", "encoder", "layers.1.conv.depthwise_conv.weight", np.negative)
    result = swap(tdt_bundle, bad, spoken)
    assert blamed(result) == ["encoder", "encoder_nomask"]
    assert [one.output.difference.frames is not None for one in result.to_blame if one.output] == [True, True]


def test_only_the_variant_is_named_where_only_its_graph_is_wrong(
    tdt_bundle: Bundle, spoken: tuple[Utterance, ...], tmp_path: Path
) -> None:
    def swap_activation(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "Sigmoid")
        node.op_type = "Tanh"

    result = swap(tdt_bundle, with_graph(tdt_bundle, tmp_path / "bad", "encoder_nomask", swap_activation), spoken)
    assert blamed(result) == ["encoder_nomask"]


def test_wrong_lengths_are_told_from_wrong_frames(
    tdt_bundle: Bundle, spoken: tuple[Utterance, ...], tmp_path: Path
) -> None:
    def one_less(graph: onnx.GraphProto) -> None:
        (node,) = (node for node in graph.node if "encoded_lengths" in node.output)
        node.output[0] = "counted"
        graph.initializer.append(helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1]))
        graph.node.append(helper.make_node("Sub", ["counted", "one"], ["encoded_lengths"]))

    result = swap(tdt_bundle, with_graph(tdt_bundle, tmp_path / "bad", "encoder", one_less), spoken)
    (one,) = result.to_blame
    assert one.output is not None
    assert (one.component, one.output.tensor) == ("encoder", "encoded_lengths")
    assert one.lengths == tuple(utterance.clip.name for utterance in spoken)


def test_lengths_that_cannot_be_decoded_are_a_finding_and_no_crash(
    tdt_bundle: Bundle, spoken: tuple[Utterance, ...], tmp_path: Path
) -> None:
    def far_more(graph: onnx.GraphProto) -> None:
        (node,) = (node for node in graph.node if "encoded_lengths" in node.output)
        node.output[0] = "counted"
        graph.initializer.append(helper.make_tensor("many", onnx.TensorProto.INT64, [1], [1000]))
        graph.node.append(helper.make_node("Add", ["counted", "many"], ["encoded_lengths"]))

    result = swap(tdt_bundle, with_graph(tdt_bundle, tmp_path / "bad", "encoder", far_more), spoken)
    (one,) = result.to_blame
    assert one.failed is not None
    assert "encoded length" in one.failed


def test_what_only_the_metadata_changes_is_found_together(
    tdt_bundle: Bundle, spoken: tuple[Utterance, ...], tmp_path: Path
) -> None:
    def reverse(meta: dict[str, Any]) -> None:
        meta["transducer"]["durations"] = meta["transducer"]["durations"][::-1]

    result = swap(tdt_bundle, with_meta(tdt_bundle, tmp_path / "bad", reverse), spoken)
    assert blamed(result) == []
    assert result.together == tuple(utterance.clip.name for utterance in spoken)
    assert not result.agrees


def test_a_runner_that_computes_wrong_is_named_though_the_files_are_equal(
    tiny_bundle: Bundle, utterances: tuple[Utterance, ...]
) -> None:
    inner = OnnxRuntimeRunner(tiny_bundle.graph_path("ctc"), spec=tiny_bundle.component("ctc"), threads=1)
    wrong = AlteredRunner(inner, lambda outputs: outputs | {"logprobs": np.roll(outputs["logprobs"], 1, axis=1)})
    candidate = Side(tiny_bundle, {"ctc": wrong})
    result = swap_components(Side(tiny_bundle), candidate, utterances, tolerance=FP32, threads=1)
    assert blamed(result) == ["ctc"]
    assert swap(tiny_bundle, tiny_bundle, utterances).agrees


def test_one_component_can_be_tried_alone_and_one_that_does_not_run_is_refused(
    tdt_bundle: Bundle, spoken: tuple[Utterance, ...], tmp_path: Path
) -> None:
    largest = _largest_weight(tdt_bundle, "joint")
    bad = with_weight(tdt_bundle, tmp_path / "bad", "joint", largest, np.negative)
    assert blamed(swap(tdt_bundle, bad, spoken, only="joint")) == ["joint"]
    assert swap(tdt_bundle, bad, spoken, only="predictor").agrees
    with pytest.raises(UsageError, match="not a component"):
        swap(tdt_bundle, bad, spoken, only="ctc")


def test_without_a_clip_nothing_is_claimed(tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no clip"):
        swap(tiny_bundle, tiny_bundle, ())


def test_another_seed_differs_in_everything(
    tiny_bundle: Bundle, utterances: tuple[Utterance, ...], tmp_path: Path
) -> None:
    assert blamed(swap(tiny_bundle, write_tiny_bundle(tmp_path / "other", seed=4), utterances)) == [
        "preprocessor",
        "ctc",
    ]


def _largest_weight(bundle: Bundle, component: str) -> str:
    model = onnx.load(bundle.graph_path(component), load_external_data=False)
    return max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims)).name

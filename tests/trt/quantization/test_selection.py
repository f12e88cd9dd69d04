"""Which products of the demo models are quantized, and what a scope means."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest

from nemotrt.bundle import Bundle
from nemotrt.errors import UsageError
from nemotrt.trt.quantization.selection import select_from_bundle

LAYER = (
    "feed_forward1.MatMul",
    "feed_forward1.MatMul_2",
    "self_attn.MatMul",
    "self_attn.MatMul_5",
    "conv.MatMul",
    "conv.MatMul_2",
    "feed_forward2.MatMul",
    "feed_forward2.MatMul_2",
)


def test_the_weight_products_of_every_layer_are_chosen_and_the_score_products_are_not(tdt_bundle: Bundle) -> None:
    chosen = select_from_bundle(tdt_bundle, ())
    layers = [f"layers.{index}.{name}" for index in range(4) for name in LAYER]
    assert chosen["encoder"] == ("positions.MatMul", *layers)
    graph = ir.load(tdt_bundle.graph_path("encoder")).graph
    left = {str(node.name) for node in graph if node.op_type == "MatMul"} - set(chosen["encoder"])
    scores = {f"layers.{index}.self_attn.MatMul_{number}" for index in range(4) for number in (2, 3, 4)}
    assert left == scores | {"pre_encode.MatMul"}
    assert len(chosen["joint"]) == 3
    assert set(chosen) == {"encoder", "joint"}


def test_both_heads_and_the_streaming_encoder_of_a_hybrid_are_chosen(streaming_bundle: Bundle) -> None:
    chosen = select_from_bundle(streaming_bundle, ())
    assert set(chosen) == {"encoder", "ctc", "encoder_streaming", "joint"}
    assert "ctc.MatMul" in chosen["ctc"]


@pytest.mark.parametrize(
    ("scope", "kept"),
    [
        ("joint", {"joint": 3}),
        ("layers.0", {"encoder": 8}),
        ("encoder:layers.0", {"encoder": 8}),
        ("feed_forward1", {"encoder": 8}),
        ("layers.2.conv", {"encoder": 2}),
        ("linear_out", {"encoder": 4}),
        ("positions", {"encoder": 1}),
        ("joint:enc", {"joint": 1}),
    ],
)
def test_a_scope_keeps_what_lies_in_it_and_nothing_else(tdt_bundle: Bundle, scope: str, kept: dict[str, int]) -> None:
    everything, some = (select_from_bundle(tdt_bundle, keep) for keep in ((), (scope,)))
    lost = {name: len(nodes) - len(some.get(name, ())) for name, nodes in everything.items()}
    assert {name: count for name, count in lost.items() if count} == kept


@pytest.mark.parametrize("scope", ["layers.9", "layer", "0.layers", "joint:layers.0", "ctc", "decoder:joint", "", ":"])
def test_a_scope_without_products_is_refused_with_those_there_are(tdt_bundle: Bundle, scope: str) -> None:
    with pytest.raises(UsageError, match="lies in this scope") as caught:
        select_from_bundle(tdt_bundle, (scope,))
    assert "encoder:layers.0.feed_forward1" in str(caught.value.fix)


def test_keeping_everything_is_refused(tdt_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="nothing is left to quantize"):
        select_from_bundle(tdt_bundle, ("encoder", "joint"))


def test_a_bundle_without_such_components_is_refused(tdt_bundle: Bundle) -> None:
    meta = tdt_bundle.meta
    only = meta.model_copy(update={"components": {"predictor": meta.components["predictor"]}})
    with pytest.raises(UsageError, match="nothing is left to quantize"):
        select_from_bundle(replace(tdt_bundle, meta=only), ())

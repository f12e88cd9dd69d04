"""The search for what must stay float32. Oracle: a layer that was made to overflow on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import ceil, log2
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from nemotrt.bench.compare import compare
from nemotrt.bench.precision_search import CACHE_SUFFIX, SearchPlan, block_of, open_rounded, search_precision
from nemotrt.bench.system import System
from nemotrt.bench.tolerances import tolerance_for
from nemotrt.bench.utterance import Utterance, read_utterances
from nemotrt.bundle import Bundle, ComponentSpec
from nemotrt.bundle_writer import BundleWriter
from nemotrt.engines.audio import read_clips
from nemotrt.engines.runner import Runner
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import ComparisonFailed, UsageError
from nemotrt.trt.keep_list import read_keep_list
from nemotrt.trt.precision import CastPlan, cast_bundle, typed_component

SCALE = np.float32(3e5)
"""The values of an attention, times this, are beyond 65504; the weights that make them are not."""


def planted(source: Bundle, folder: Path, *layers: int) -> Bundle:
    """The same model, but for the values of the attention in ``layers``: scaled up, and down again behind it."""
    spec = source.component("encoder")
    with BundleWriter(folder) as writer:
        for file in source.meta.files:
            shutil.copyfile(source.path / file, writer.folder / file)
        model = ir.load(source.graph_path("encoder"))
        nodes = {node.name: node for node in model.graph}
        for layer in layers:
            attention = f"layers.{layer}.self_attn"
            _change(
                nodes[f"{attention}.MatMul"], lambda w: np.concatenate([w[:, : -len(w)], SCALE * w[:, -len(w) :]], 1)
            )
            _change(nodes[f"{attention}.MatMul_5"], lambda w: w / SCALE)
        for file in spec.files:
            (writer.folder / file).unlink()
        ir.save(model, writer.folder / spec.graph, external_data=spec.data)
        kept = {name: c for name, c in source.meta.components.items() if name != "encoder_nomask"}
        (writer.folder / source.component("encoder_nomask").graph).unlink()
        return writer.publish(lambda files: source.meta.model_copy(update={"files": files, "components": kept}))


def _change(node: ir.Node, change: Callable[[np.ndarray], np.ndarray]) -> None:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(np.ascontiguousarray(change(weight.const_value.numpy())), name=weight.name)


@pytest.fixture(scope="module")
def utterances(demo_manifest: Path) -> tuple[Utterance, ...]:
    return read_utterances(read_clips(demo_manifest), sample_rate=16000)[:2]


@pytest.fixture(scope="module")
def overflowing(tdt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return planted(tdt_bundle, tmp_path_factory.mktemp("planted") / "one", 2)


def verdict(bundle: Bundle, typed: Bundle | CastPlan, utterances: tuple[Utterance, ...], folder: Path) -> str:
    """Of the gate: on ONNX Runtime a typed bundle as it is, or the rounded twins of a plan's graphs."""
    runners: dict[str, Runner] = {}
    if isinstance(typed, CastPlan):
        folder.mkdir()
        for name in ("encoder", "predictor", "joint"):
            model, _ = typed_component(bundle, name, typed)
            runners[name] = open_rounded(model, bundle.component(name), folder)
    tolerance = tolerance_for(bundle.meta.family, "fp16", decoder="tdt")
    other = bundle if isinstance(typed, CastPlan) else typed
    with Transcriber(bundle, threads=1) as reference, Transcriber(other, runners=runners, threads=1) as candidate:
        return compare(System("a", reference), System("b", candidate), utterances, tolerance=tolerance).verdict


def most_comparisons(found_nodes: int, *, blocks: int, block: int, culprits: int = 1) -> int:
    """None kept, all kept; then a bisection for each block and for each node, and the check that it is the last."""
    of_blocks = culprits * (ceil(log2(blocks)) + 1)
    return 2 + of_blocks + found_nodes * (ceil(log2(block)) + 1)


def test_a_planted_overflow_is_found_kept_float32_and_passes(
    overflowing: Bundle, utterances: tuple[Utterance, ...], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    assert verdict(overflowing, CastPlan(), utterances, tmp_path / "without") == "fail"
    found = search_precision(overflowing, utterances, tmp_path / "keep.yaml")
    assert found.blocks == ("layers.2",)
    assert found.keep == read_keep_list(tmp_path / "keep.yaml")
    assert {f"layers.2.self_attn.{name}" for name in ("MatMul", "MatMul_4", "MatMul_5")} <= set(found.keep)
    assert all(name.startswith("layers.2.self_attn.") for name in found.keep)
    most = most_comparisons(len(found.keep), blocks=32, block=64)
    figure(
        f"precision search, one overflowing layer of 4: {len(found.keep)} of {found.half_nodes} half nodes kept after "
        f"{found.comparisons} comparisons (bound {most})"
    )
    assert found.comparisons <= most
    plan = CastPlan(keep=found.keep)
    assert verdict(overflowing, plan, utterances, tmp_path / "with") == "pass"
    typed = cast_bundle(overflowing, tmp_path / "typed", plan)
    assert verdict(overflowing, typed, utterances, tmp_path) == "pass"
    assert "layers.2.self_attn.MatMul_4" in typed.meta.tools["float32 nodes"]


def test_two_planted_overflows_are_both_found(
    tdt_bundle: Bundle, utterances: tuple[Utterance, ...], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    bundle = planted(tdt_bundle, tmp_path / "two", 0, 3)
    found = search_precision(bundle, utterances, tmp_path / "keep.yaml")
    assert found.blocks == ("layers.0", "layers.3")
    figure(f"precision search, two overflowing layers: {len(found.keep)} nodes, {found.comparisons} comparisons")
    assert found.comparisons <= most_comparisons(len(found.keep), blocks=32, block=128, culprits=2)
    assert verdict(bundle, CastPlan(keep=found.keep), utterances, tmp_path / "with") == "pass"


def test_bfloat16_needs_nothing_kept_where_float16_overflows(
    overflowing: Bundle, utterances: tuple[Utterance, ...], tmp_path: Path
) -> None:
    found = search_precision(overflowing, utterances, tmp_path / "keep.yaml", SearchPlan(to="bf16"))
    assert (found.keep, found.comparisons) == ((), 1)


def test_a_model_that_passes_as_it_is_costs_one_comparison(
    tdt_bundle: Bundle, utterances: tuple[Utterance, ...], tmp_path: Path
) -> None:
    found = search_precision(tdt_bundle, utterances, tmp_path / "keep.yaml")
    assert (found.keep, found.blocks, found.comparisons) == ((), (), 1)
    assert read_keep_list(tmp_path / "keep.yaml") == ()


class Interrupted(Exception):
    """Ends a search from inside of it."""


def test_an_interrupted_search_goes_on_where_it_was(
    overflowing: Bundle, utterances: tuple[Utterance, ...], tmp_path: Path
) -> None:
    opened = 0

    def dies_after_four_comparisons(model: ir.Model, component: ComponentSpec, folder: Path) -> Runner:
        nonlocal opened
        opened += 1
        if opened > 4 * 3:  # encoder, predictor, joint
            raise Interrupted
        return open_rounded(model, component, folder)

    output, plan = tmp_path / "keep.yaml", SearchPlan(open_typed=dies_after_four_comparisons)
    with pytest.raises(Interrupted):
        search_precision(overflowing, utterances[:1], output, plan)
    assert [path.name for path in tmp_path.iterdir()] == [f"keep.yaml{CACHE_SUFFIX}"]
    second = search_precision(overflowing, utterances[:1], output)
    third = search_precision(overflowing, utterances[:1], output)
    assert second.recalled == 4
    assert second.comparisons > 0
    assert (third.comparisons, third.recalled) == (0, second.comparisons + 4)
    assert third.keep == second.keep


@pytest.mark.parametrize("change", ["other clips", "another backend", "a damaged file"])
def test_verdicts_of_something_else_do_not_count(
    tdt_bundle: Bundle, utterances: tuple[Utterance, ...], tmp_path: Path, change: str
) -> None:
    output = tmp_path / "keep.yaml"
    search_precision(tdt_bundle, utterances, output)
    assert search_precision(tdt_bundle, utterances, output).comparisons == 0
    plan = SearchPlan(backend="another one") if change == "another backend" else SearchPlan()
    if change == "a damaged file":
        (tmp_path / f"keep.yaml{CACHE_SUFFIX}").write_text("{", encoding="utf-8")
    clips = utterances[:1] if change == "other clips" else utterances
    assert search_precision(tdt_bundle, clips, output, plan).comparisons == 1
    assert json.loads((tmp_path / f"keep.yaml{CACHE_SUFFIX}").read_text(encoding="utf-8"))["version"] == 1


def test_a_failure_that_is_not_of_precision_is_said_to_be_none(
    tdt_bundle: Bundle, utterances: tuple[Utterance, ...], tmp_path: Path
) -> None:
    def another_model(model: ir.Model, component: ComponentSpec, folder: Path) -> Runner:
        for node in model.graph:
            if node.name == "layers.0.feed_forward1.MatMul":
                _change(node, lambda weight: -weight)
        return open_rounded(model, component, folder)

    with pytest.raises(ComparisonFailed, match="every node in float32"):
        search_precision(tdt_bundle, utterances, tmp_path / "keep.yaml", SearchPlan(open_typed=another_model))
    assert not (tmp_path / "keep.yaml").exists()


def test_a_name_of_a_keep_list_that_no_graph_has_is_refused_before_anything_is_written(
    tdt_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"layers\.9(.|\n)*similar: layers\."):
        cast_bundle(tdt_bundle, tmp_path / "typed", CastPlan(keep=("layers.9",)))
    assert list(tmp_path.iterdir()) == []


def test_a_kept_scope_is_float32_in_the_graph(tdt_bundle: Bundle) -> None:
    plain, kept = (typed_component(tdt_bundle, "encoder", CastPlan(keep=k))[0] for k in ((), ("layers.1.conv",)))
    for model, wanted in ((plain, ir.DataType.FLOAT16), (kept, ir.DataType.FLOAT)):
        (product,) = (node for node in model.graph if node.name == "layers.1.conv.MatMul")
        assert product.outputs[0].dtype == wanted


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("layers.3.conv.MatMul", "layers.3"),
        ("encoder.layers.12.Add", "encoder.layers.12"),
        ("pre_encode.Conv_2", "pre_encode"),
        ("MatMul_2", "MatMul_2"),
    ],
)
def test_a_block_is_a_layer_or_an_outermost_scope(name: str, block: str) -> None:
    assert block_of(name) == block

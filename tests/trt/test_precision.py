"""Half precision bundles. Oracle: the float32 bundle in ONNX Runtime."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from small_graphs import component, saved

from nemotrt.bundle import Bundle, TensorSpec, load_bundle, verify_digests
from nemotrt.errors import GraphError, UsageError
from nemotrt.profiles import AxisRange
from nemotrt.trt.build import BuildRequest, build_engine
from nemotrt.trt.half_cast import CastReport
from nemotrt.trt.precision import CastPlan, HalfPrecision, cast_bundle

# 24 roundings of half precision stay below this; NUMBERS of the field reach 9e-4 on 17 layers.
RELATIVE_ERROR = 2e-3


@pytest.fixture(scope="module")
def tdt_fp16(tdt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return cast_bundle(tdt_bundle, tmp_path_factory.mktemp("fp16") / "tdt")


@pytest.fixture(scope="module")
def hybrid_fp16(hybrid_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return cast_bundle(hybrid_bundle, tmp_path_factory.mktemp("fp16") / "hybrid")


def session(bundle: Bundle, name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(bundle.graph_path(name)), options, providers=["CPUExecutionProvider"])


def worst_row(wanted: Bundle, found: Bundle, name: str) -> float:
    """Largest relative error of the valid frames of a ragged batch; lengths have to be equal."""
    features = wanted.meta.encoder.features
    lengths = np.array([301, 300, 77, 9])
    signal = np.random.default_rng(0).standard_normal((len(lengths), features, 301)).astype(np.float32)
    feeds = {"audio_signal": signal, "length": lengths}
    (a, a_lengths), (b, b_lengths) = (session(bundle, name).run(None, feeds) for bundle in (wanted, found))
    assert (a_lengths == b_lengths).all()
    if name == "encoder":
        a, b = a.transpose(0, 2, 1), b.transpose(0, 2, 1)
    rows = [(x[:n], y[:n]) for x, y, n in zip(a, b, a_lengths, strict=True)]
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(x)) for x, y in rows)


def test_the_tdt_encoder_agrees_with_float32(
    tdt_bundle: Bundle, tdt_fp16: Bundle, figure: Callable[[str], None]
) -> None:
    error = worst_row(tdt_bundle, tdt_fp16, "encoder")
    figure(f"FP16 graph of the demo TDT encoder, ONNX Runtime: relative L2 {error:.1e} (bound {RELATIVE_ERROR:.0e})")
    assert 0 < error < RELATIVE_ERROR


def test_the_tdt_encoder_agrees_when_every_operator_rounds_to_half(
    tdt_bundle: Bundle, tdt_fp16: Bundle, figure: Callable[[str], None]
) -> None:
    # ONNX Runtime computes most of float16 in float32 on a CPU; onnx's reference evaluator does not.
    signal = np.random.default_rng(0).standard_normal((2, tdt_bundle.meta.encoder.features, 161)).astype(np.float32)
    feeds = {"audio_signal": signal, "length": np.array([161, 90])}
    wanted, wanted_lengths = session(tdt_bundle, "encoder").run(None, feeds)
    with np.errstate(over="ignore"):
        found, lengths = ReferenceEvaluator(str(tdt_fp16.graph_path("encoder"))).run(None, feeds)
    assert lengths.tolist() == wanted_lengths.tolist()
    error = max(
        float(np.linalg.norm(a[:, :n] - b[:, :n]) / np.linalg.norm(a[:, :n]))
        for a, b, n in zip(wanted, found, lengths, strict=True)
    )
    figure(f"FP16 graph of the demo TDT encoder, rounding every operator: relative L2 {error:.1e}")
    assert 0 < error < RELATIVE_ERROR


@pytest.mark.parametrize("name", ["encoder", "ctc"])
def test_the_streaming_hybrid_agrees_with_float32(hybrid_bundle: Bundle, hybrid_fp16: Bundle, name: str) -> None:
    assert 0 < worst_row(hybrid_bundle, hybrid_fp16, name) < RELATIVE_ERROR


def test_predictor_and_joint_agree_with_float32(tdt_bundle: Bundle, tdt_fp16: Bundle) -> None:
    spec = tdt_bundle.meta.transducer
    assert spec is not None
    state = np.zeros((spec.predictor_layers, 2, spec.predictor_hidden), np.float32)
    feeds = {"y": np.array([[tdt_bundle.meta.blank_id], [5]]), "h": state, "c": state}
    wanted, found = (session(bundle, "predictor").run(None, feeds) for bundle in (tdt_bundle, tdt_fp16))
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, atol=5e-3)
    frames = np.random.default_rng(0).standard_normal((2, tdt_bundle.meta.encoder.d_model, 1)).astype(np.float32)
    feeds = {"encoder_output": frames, "predictor_output": wanted[0]}
    a, b = (session(bundle, "joint").run(None, feeds)[0] for bundle in (tdt_bundle, tdt_fp16))
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < RELATIVE_ERROR


def test_encoded_lengths_of_a_real_encoder_are_exact_for_every_length(tdt_bundle: Bundle, tdt_fp16: Bundle) -> None:
    spec = tdt_bundle.meta.encoder
    lengths = np.arange(1, 6001)
    encoder = session(tdt_fp16, "encoder")
    for block in np.split(lengths, range(4, 6000, 997)):
        some = block[-4:]
        signal = np.zeros((len(some), spec.features, int(some.max())), np.float32)
        found = encoder.run(["encoded_lengths"], {"audio_signal": signal, "length": some})[0]
        assert found.tolist() == [spec.encoder_frames_from_feature_frames(int(n)) for n in some]


def test_the_bundle_is_complete_half_the_size_and_loads_after_moving(tdt_bundle: Bundle, tmp_path: Path) -> None:
    reports: dict[str, CastReport] = {}
    made = cast_bundle(tdt_bundle, tmp_path / "first", on_component=reports.__setitem__)
    made.path.rename(tmp_path / "moved")
    bundle = load_bundle(tmp_path / "moved")
    verify_digests(bundle)
    assert bundle.meta.precision == "fp16"
    assert set(reports) == {"encoder", "predictor", "joint"}
    for component_name in reports:
        assert session(bundle, component_name)
        sizes = [
            sum(b.meta.files[f].size_bytes for f in b.component(component_name).files) for b in (tdt_bundle, bundle)
        ]
        assert sizes[1] < 0.62 * sizes[0]
    for name, record in tdt_bundle.meta.files.items():
        if name.startswith(("preprocessor", "vocab", "tokens", "tokenizer")):
            assert bundle.meta.files[name] == record
    verify_digests(tdt_bundle)


def test_inputs_and_outputs_are_those_of_the_float32_bundle(tdt_bundle: Bundle, tdt_fp16: Bundle) -> None:
    assert tdt_bundle.meta.components.keys() - tdt_fp16.meta.components.keys() == {"encoder_nomask"}
    for name in tdt_fp16.meta.components:
        a, b = (onnx.load(x.graph_path(name), load_external_data=False).graph for x in (tdt_bundle, tdt_fp16))
        assert [v.SerializeToString() for v in a.input] == [v.SerializeToString() for v in b.input]
        assert [v.SerializeToString() for v in a.output] == [v.SerializeToString() for v in b.output]


@pytest.mark.parametrize("name", ["encoder", "predictor", "joint"])
def test_every_typed_component_builds_in_tensorrt(tdt_fp16: Bundle, name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    frames = AxisRange(1, 100, 1000)
    axes = ("frames", "encoder_frames", "joint_frames", "tokens")
    ranges = {"batch": AxisRange(1, 1, 4), **dict.fromkeys(axes, frames)}
    request = BuildRequest(tdt_fp16.graph_path(name), tdt_fp16.component(name), (ranges,), "tensorrt-rtx")
    assert build_engine(request).size_bytes > 0


def test_a_half_precision_bundle_is_not_cast_again(tdt_fp16: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="precision fp16"):
        cast_bundle(tdt_fp16, tmp_path / "again")
    assert not list(tmp_path.iterdir())


def test_an_existing_destination_is_kept_unless_told_otherwise(
    tdt_bundle: Bundle, tdt_fp16: Bundle, tmp_path: Path
) -> None:
    destination = tmp_path / "out"
    first = cast_bundle(tdt_bundle, destination)
    with pytest.raises(UsageError, match="already there"):
        cast_bundle(tdt_bundle, destination)
    again = cast_bundle(tdt_bundle, destination, overwrite=True)
    assert again.meta.files == first.meta.files == tdt_fp16.meta.files  # the same bytes every time


def test_a_graph_that_cannot_be_read_leaves_nothing_behind(tdt_bundle: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in tdt_bundle.meta.files:
        (broken / name).write_bytes((tdt_bundle.path / name).read_bytes())
    (broken / "joint.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(GraphError, match=r"joint\.onnx"):
        cast_bundle(replace(tdt_bundle, path=broken), tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("to", get_args(HalfPrecision))
def test_weights_are_converted_one_at_a_time(tdt_bundle: Bundle, tmp_path: Path, to: HalfPrecision) -> None:
    count, side = 16, 512
    weight_bytes = 4 * side * side
    folder = tmp_path / "large"
    folder.mkdir()
    rows = TensorSpec(name="x", dtype="float32", shape=("batch", side))
    spec = component("joint", (rows,), (rows.model_copy(update={"name": f"v{count}"}),), data=True)
    names = ["x", *(f"v{index + 1}" for index in range(count))]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"product{i}") for i in range(count)]
    saved(folder, spec, nodes, {f"w{i}": np.full((side, side), i, np.float32) for i in range(count)})
    meta = tdt_bundle.meta.model_copy(update={"components": {"joint": spec}, "files": {}})
    tracemalloc.start()
    try:
        made = cast_bundle(Bundle(folder, meta), tmp_path / "out", CastPlan(to))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (made.path / "joint.onnx.data").stat().st_size == count * weight_bytes // 2
    assert peak_bytes < 4 * weight_bytes

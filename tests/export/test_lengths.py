"""Encoder lengths, exactly, for every number of frames. Oracle: NeMo's ``calc_length``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from nemo_oracle import require_nemo
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_sessions import Graph
from small_models import small_transducer

from nemotrt.bundle import Bundle
from nemotrt.export import export_checkpoint
from nemotrt.profiles import subsampled_frames

LONGEST = 6000  # beyond 2049, where half precision first goes wrong


def nemo_lengths(longest: int, *, factor: int, causal: bool) -> NDArray[np.int64]:
    """What NeMo's subsampling makes of 1, 2, ..., ``longest`` frames."""
    require_nemo()
    import torch
    from nemo.collections.asr.parts.submodules.subsampling import calc_length

    lengths = calc_length(
        torch.arange(1, longest + 1),
        all_paddings=3 if causal else 2,  # kernel 3: left 2 and right 1, or 1 on both sides
        kernel_size=3,
        stride=2,
        ceil_mode=False,
        repeat_num=factor.bit_length() - 1,
    )
    return lengths.numpy().astype(np.int64)


@pytest.mark.parametrize("causal", [False, True], ids=["regular", "causal"])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_contract_gives_nemos_length_for_every_input(factor: int, causal: bool) -> None:
    found = [subsampled_frames(frames, factor=factor, causal=causal) for frames in range(1, 40001)]
    assert found == nemo_lengths(40000, factor=factor, causal=causal).tolist()


def test_the_demo_contracts_give_nemos_length_for_every_input(tdt_bundle: Bundle, hybrid_bundle: Bundle) -> None:
    for bundle, causal in ((tdt_bundle, False), (hybrid_bundle, True)):
        spec = bundle.meta.encoder
        assert (spec.subsampling_factor, spec.causal_subsampling) == (8, causal)
        found = [spec.encoder_frames_from_feature_frames(frames) for frames in range(1, 40001)]
        assert found == nemo_lengths(40000, factor=8, causal=causal).tolist()


@pytest.mark.parametrize("causal", [False, True], ids=["regular", "causal"])
def test_the_longest_input_is_the_last_one_that_fits_the_position_table(
    tdt_bundle: Bundle, hybrid_bundle: Bundle, causal: bool
) -> None:
    spec = (hybrid_bundle if causal else tdt_bundle).meta.encoder
    lengths = nemo_lengths(spec.max_feature_frames + 1, factor=8, causal=causal)
    assert lengths[-2:].tolist() == [spec.max_encoder_frames, spec.max_encoder_frames + 1]


def length_graph(graph: Path, destination: Path) -> onnx.ModelProto:
    """The part of a graph that ``encoded_lengths`` depends on, as a model of its own."""
    model = onnx.load(str(graph), load_external_data=False)
    part = onnx.utils.Extractor(model).extract_model(["audio_signal", "length"], ["encoded_lengths"])
    onnx.save(part, str(destination))
    return part


@pytest.mark.parametrize("component", ["tdt encoder", "hybrid encoder", "hybrid ctc"])
def test_the_graph_gives_nemos_length_for_every_input(
    tdt_bundle: Bundle, hybrid_bundle: Bundle, component: str, tmp_path: Path
) -> None:
    model, name = component.split()
    bundle = hybrid_bundle if model == "hybrid" else tdt_bundle
    check_every_length(bundle, name, tmp_path, causal=model == "hybrid")


@pytest.mark.parametrize("causal", [False, True], ids=["regular", "causal"])
@pytest.mark.parametrize("subsampling", ["dw_striding", "striding"])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_graphs_of_every_subsampling_give_nemos_length_for_every_input(
    tmp_path: Path, subsampling: str, factor: int, causal: bool
) -> None:
    options = {"subsampling": subsampling, "subsampling_factor": factor, "causal_downsampling": causal}
    model = small_transducer(tmp_path / "m.nemo", encoder=options)
    bundle = export_checkpoint(model.checkpoint, tmp_path / "m")
    assert bundle.meta.encoder.subsampling_factor == factor
    check_every_length(bundle, "encoder", tmp_path, causal=causal)


def check_every_length(bundle: Bundle, component: str, folder: Path, *, causal: bool) -> None:
    """All lengths as the rows of one batch: of the signal, this part of the graph sees the shape only."""
    length_graph(bundle.graph_path(component), folder / "lengths.onnx")
    signal = np.zeros((1, bundle.meta.encoder.features, LONGEST), np.float32)
    graph, spec = Graph(folder / "lengths.onnx"), bundle.meta.encoder
    (found,) = graph(audio_signal=signal, length=np.arange(1, LONGEST + 1))
    wanted = nemo_lengths(LONGEST, factor=spec.subsampling_factor, causal=causal)
    assert found.tolist() == wanted.tolist()
    last = np.arange(max(1, spec.max_feature_frames - 63), spec.max_feature_frames + 1)
    (found,) = graph(audio_signal=np.zeros((1, spec.features, last[-1]), np.float32), length=last)
    wanted = nemo_lengths(last[-1], factor=spec.subsampling_factor, causal=causal)
    assert found.tolist() == wanted[last - 1].tolist()
    assert found[-1] == spec.max_encoder_frames


class TestNoLengthIsEverAFloat:
    @pytest.mark.parametrize("component", ["tdt encoder", "hybrid encoder", "hybrid ctc"])
    def test_in_the_exported_graphs(
        self, tdt_bundle: Bundle, hybrid_bundle: Bundle, component: str, tmp_path: Path
    ) -> None:
        model, name = component.split()
        bundle = hybrid_bundle if model == "hybrid" else tdt_bundle
        part = length_graph(bundle.graph_path(name), tmp_path / "lengths.onnx")
        assert floats_beside_the_signal(part) == []
        readers = {node.op_type for node in part.graph.node if "audio_signal" in node.input}
        assert readers == {"Shape"}

    def test_a_float_would_be_found(self) -> None:
        nodes = [
            helper.make_node("Cast", ["length"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Ceil", ["half"], ["rounded"]),
            helper.make_node("Cast", ["rounded"], ["encoded_lengths"], to=TensorProto.INT64),
        ]
        inputs, outputs = (
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"])]
            for name in ("length", "encoded_lengths")
        )
        model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs))
        assert floats_beside_the_signal(model) == ["half", "rounded"]


def floats_beside_the_signal(model: onnx.ModelProto) -> list[str]:
    """Names of the values, other than the signal, that are neither whole numbers nor truth values."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    assert {name for node in inferred.node for name in node.output} <= set(types), "a value has no known type"
    whole = (TensorProto.INT64, TensorProto.BOOL)
    return sorted(name for name, kind in types.items() if kind not in whole and name != "audio_signal")

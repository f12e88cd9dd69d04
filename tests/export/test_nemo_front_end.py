"""Bundles whose graphs NeMo makes: our contract, our numbers, and every way that it can go wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import archives
import numpy as np
import onnx
import pytest
from nemo_oracle import NemoModel, require_nemo
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from onnx_sessions import Graph, worst_of_rows

from nemotrt.bundle import Bundle, EncoderSpec, TensorSpec, load_bundle, verify_digests
from nemotrt.engines.audio import read_clips, read_waveform
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import CheckpointError, GraphError, MachineError, NemotrtError, UnsupportedModelError, UsageError
from nemotrt.export import ExportOptions, ModelChoices, NemoProcess, export_checkpoint
from nemotrt.export.nemo_config import described_config
from nemotrt.export.run_nemo_modules import COMPONENTS, patched
from nemotrt.export.traced_graph import TracedGraph
from nemotrt.graph_contract import check_graph

# Float32 through 4 layers, as against NeMo itself.
ENCODER_TOLERANCE = 1e-5
LOGITS_TOLERANCE = 1e-4
RAGGED = ((1,), (8, 7, 1), (97, 96, 95, 9), (640, 64), (1201, 803, 121))
LOOKAHEAD = 6

# As much of torch and NeMo as the program meets before it traces a component.
FAKES = {
    "torch.py": """
import contextlib
def zeros(*shape, device): pass
def device(name): return name
inference_mode = contextlib.nullcontext
class nn:
    Module = object
    class RNNBase: flatten_parameters = None
""",
    "nemo/core/classes/common.py": "typecheck = None\ndef is_typecheck_enabled(): return False\n",
    "nemo/collections/asr/models.py": """
class ASRModel:
    def restore_from(checkpoint, map_location):
        {restore}
""",
}


# --- the bundles, one export each


@pytest.fixture(scope="module")
def tdt_pair(tdt_checkpoint: Path, tdt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, ...]:
    """What our front end makes of the TDT, and what NeMo makes of it."""
    require_nemo()
    folder = tmp_path_factory.mktemp("tdt") / "nemo"
    return tdt_bundle, export_checkpoint(tdt_checkpoint, folder, options=ExportOptions(frontend="nemo"))


@pytest.fixture(scope="module")
def hybrid_pair(hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, ...]:
    """The same of the hybrid: all components, and a look-ahead that is not the first."""
    require_nemo()
    folder = tmp_path_factory.mktemp("hybrid")
    native = ExportOptions(components=("all",), choices=ModelChoices(lookahead=LOOKAHEAD))
    nemo = ExportOptions(components=("all",), choices=ModelChoices(lookahead=LOOKAHEAD), frontend="nemo")
    return (
        export_checkpoint(hybrid_checkpoint, folder / "native", options=native),
        export_checkpoint(hybrid_checkpoint, folder / "nemo", options=nemo),
    )


@pytest.fixture(params=["tdt", "hybrid"])
def pair(request: pytest.FixtureRequest) -> tuple[Bundle, Bundle]:
    found: tuple[Bundle, Bundle] = request.getfixturevalue(f"{request.param}_pair")
    return found


def test_a_bundle_from_nemo_follows_the_same_contract(pair: tuple[Bundle, Bundle]) -> None:
    native, traced = pair[0].meta, pair[1].meta
    verify_digests(load_bundle(pair[1].path))
    assert set(traced.components) == set(native.components) - {"encoder_streaming", "encoder_nomask", "ctc_nomask"}
    for name, spec in traced.components.items():
        assert (spec.inputs, spec.outputs) == (native.components[name].inputs, native.components[name].outputs), name
        check_graph(pair[1].graph_path(name), spec)
    differing = {"components", "exported", "tools", "files", "streaming"}
    assert traced.model_dump(exclude=differing) == native.model_dump(exclude=differing)
    for name in ("vocab.txt", "tokens.txt", "tokenizer.model"):
        assert traced.files[name] == native.files[name]


def test_a_component_from_nemo_is_one_graph_and_at_most_one_data_file(pair: tuple[Bundle, Bundle]) -> None:
    for name, spec in pair[1].meta.components.items():
        graph = onnx.load(str(pair[1].graph_path(name)), load_external_data=False)
        outside = [one for one in graph.graph.initializer if one.external_data]
        assert {ExternalDataInfo(one).location for one in outside} == ({spec.data} if spec.data else set())


def test_a_bundle_says_which_front_end_made_what(hybrid_pair: tuple[Bundle, Bundle]) -> None:
    native, traced = (bundle.meta for bundle in hybrid_pair)
    assert (native.exported.frontend, traced.exported.frontend) == ("native", "nemo")
    assert native.fingerprint() != traced.fingerprint()
    assert set(traced.tools["from NeMo"].split(", ")) == set(COMPONENTS)
    assert "RNNTJoint.log_softmax" in traced.tools["NeMo patches"]
    assert {"nemo_toolkit", "torch"} <= set(traced.tools)
    assert not {"from NeMo", "torch"} & set(native.tools)
    for name in ("preprocessor", "rnnt_step", "greedy_step"):
        for file in native.components[name].files:
            assert traced.files[file] == native.files[file], file


def test_encoder_and_ctc_of_both_front_ends_agree_on_ragged_batches(
    pair: tuple[Bundle, Bundle], figure: Callable[[str], None]
) -> None:
    for name, axis, tolerance in (("encoder", 2, ENCODER_TOLERANCE), ("ctc", 1, LOGITS_TOLERANCE)):
        if name in pair[1].meta.components:
            graphs, worst = [Graph.of(bundle, name) for bundle in pair], 0.0
            for lengths in RAGGED:
                feeds = {"audio_signal": noise(pair[0], lengths), "length": np.array(lengths)}
                (wanted, valid), (found, found_valid) = (graph(**feeds) for graph in graphs)
                assert found_valid.tolist() == valid.tolist()
                worst = np.maximum(worst, worst_of_rows(found, wanted, valid, axis=axis))
            figure(f"{name} of {pair[0].meta.name}, traced from NeMo against ours: worst difference {worst:.1e}")
            assert 0 < worst <= tolerance


def noise(bundle: Bundle, lengths: tuple[int, ...]) -> NDArray[np.float32]:
    """Features, and behind the end of each row what the contract allows there."""
    rng = np.random.default_rng(lengths)
    signal = rng.standard_normal((len(lengths), bundle.meta.encoder.features, max(lengths))).astype(np.float32)
    for row, length in zip(signal, lengths, strict=True):
        row[:, length:] = np.nan
    return signal


def test_predictor_and_joint_of_both_front_ends_agree(pair: tuple[Bundle, Bundle]) -> None:
    sizes = {"batch": 4, "joint_frames": 3, "tokens": 5}
    rng = np.random.default_rng(0)
    for name in {"predictor", "joint", "decoder_joint"} & set(pair[1].meta.components):
        feeds = {}
        for one in pair[0].component(name).inputs:
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in one.shape]
            is_id = one.dtype != "float32"
            values = rng.integers(0, pair[0].meta.blank_id + 1, shape) if is_id else rng.standard_normal(shape)
            feeds[one.name] = values.astype(one.dtype)
        for wanted, found in zip(*(Graph.of(bundle, name)(**feeds) for bundle in pair), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=LOGITS_TOLERANCE)


def test_both_front_ends_hear_the_same_words(pair: tuple[Bundle, Bundle], demo_manifest: Path) -> None:
    clips = read_clips(demo_manifest)
    waveforms = [read_waveform(clip.path, sample_rate=16000) for clip in clips]
    heard = []
    for bundle in pair:
        with Transcriber(bundle, threads=1) as transcriber:
            heard.append([one.hypothesis.token_ids for one in transcriber.transcribe(waveforms)])
    assert heard[0] == heard[1]
    assert any(heard[0])


# --- models that only NeMo builds


@pytest.fixture(scope="module")
def grouped(tdt_members: archives.Members, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TDT with group norms in its convolutions, in an encoder for adapters, which the native front end refuses."""
    require_nemo()
    config = archives.changed(archives.config_of(tdt_members), "encoder.conv_norm_type", "group_norm8")
    config = archives.changed(config, "encoder._target_", "nemo.collections.asr.modules.ConformerEncoderAdapter")
    config = archives.changed(config, "encoder.use_pytorch_sdpa", True)
    dropped = ("running_mean", "running_var", "num_batches_tracked")
    state = {name: tensor for name, tensor in archives.state_of(tdt_members).items() if not name.endswith(dropped)}
    members = archives.with_state(archives.with_config(tdt_members, config), state)
    return archives.write_archive(tmp_path_factory.mktemp("grouped") / "grouped.nemo", members)


def test_a_model_that_only_nemo_builds_is_what_nemo_says(grouped: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="ConformerEncoder"):
        export_checkpoint(grouped, tmp_path / "b")
    options = ExportOptions(components=("encoder",), frontend="nemo")
    bundle = export_checkpoint(grouped, tmp_path / "b", options=options)
    assert "RelPositionMultiHeadAttention.use_pytorch_sdpa" in bundle.meta.tools["NeMo patches"]
    lengths = np.array([305, 304, 31])
    signal = np.nan_to_num(noise(bundle, tuple(lengths)))
    wanted, valid = NemoModel.restored(grouped).encoder(signal, lengths)
    found, found_valid = Graph.of(bundle, "encoder")(audio_signal=signal, length=lengths)
    assert found_valid.tolist() == valid.tolist()
    assert 0 < worst_of_rows(found, wanted, valid, axis=2) <= ENCODER_TOLERANCE


def test_steps_of_a_model_that_only_nemo_builds_are_not_offered(grouped: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no component 'greedy_step'") as caught:
        export_checkpoint(grouped, tmp_path / "b", options=ExportOptions(components=("greedy_step",), frontend="nemo"))
    assert "preprocessor, encoder, predictor, joint" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("key", "value"), [("encoder.subsampling", "stacking"), ("encoder.reduction", "pooling"), ("encoder.feat_out", 64)]
)
def test_what_the_contract_cannot_describe_is_refused_by_its_key(
    tdt_members: archives.Members, tmp_path: Path, key: str, value: object
) -> None:
    config = archives.changed(archives.config_of(tdt_members), key, value)
    with pytest.raises(UnsupportedModelError, match=rf"contract cannot describe the model: {key}"):
        described_config(config, origin=tmp_path, choices=ModelChoices())


@pytest.mark.parametrize("options", [{"components": ("encoder_streaming",)}, {"components": ("all",), "cache": "kv"}])
def test_streaming_is_left_to_the_native_front_end(
    hybrid_checkpoint: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="does not write encoder_streaming") as caught:
        export_checkpoint(hybrid_checkpoint, tmp_path / "b", options=ExportOptions(frontend="nemo", **options))
    assert "native front end" in str(caught.value.fix)


# --- what is changed for the trace


def test_what_is_changed_for_the_trace_is_undone(tdt_checkpoint: Path) -> None:
    require_nemo()
    import torch
    from nemo.collections.asr.models import ASRModel
    from nemo.core.classes.common import is_typecheck_enabled

    model = ASRModel.restore_from(str(tdt_checkpoint), map_location="cpu").eval()
    attention = model.encoder.layers[0].self_attn
    attention.use_pytorch_sdpa = True

    def state() -> tuple[object, ...]:
        flatten = torch.nn.RNNBase.flatten_parameters
        return is_typecheck_enabled(), flatten, model.joint.log_softmax, attention.use_pytorch_sdpa

    before = state()
    with suppress(KeyError), patched(model) as names:
        inside = state()
        raise KeyError("whatever a trace may raise")
    assert all(one != other for one, other in zip(before, inside, strict=True))
    assert state() == before
    assert [name.partition(":")[0] for name in names] == [
        "typecheck", "RNNBase.flatten_parameters", "RNNTJoint.log_softmax",
        "RelPositionMultiHeadAttention.use_pytorch_sdpa",
    ]  # fmt: skip


# --- a graph that is not what it should be


def doubled(
    folder: Path, *, factor: float = 2.0, dtype: int = TensorProto.FLOAT, frames: object = "frames"
) -> TracedGraph:
    """A graph y = factor x, beside the sample of a module that doubles, as component ``double``."""
    value = [helper.make_tensor_value_info(name, dtype, ["batch", frames]) for name in "xy"]
    scale = numpy_helper.from_array(np.array(factor, helper.tensor_dtype_to_np_dtype(dtype)), "scale")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "scale"], ["y"])], "g", value[:1], value[1:], [scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "g.onnx")
    x = np.ones((2, 3), np.float32)
    np.savez(folder / "g.npz", x=x, y=2 * x, length=np.array([16, 9]), encoded_lengths=np.array([2, 2]))
    specs = [TensorSpec(name=name, dtype="float32", shape=("batch", "frames")) for name in "xy"]
    return TracedGraph("double", folder / "g.onnx", (specs[0],), (specs[1],))


def test_a_graph_that_says_what_the_module_says_is_taken(tmp_path: Path, tdt_bundle: Bundle) -> None:
    graph = doubled(tmp_path)
    graph.check(tdt_bundle.meta.encoder)
    assert [str(axis) for axis in graph.model().graph.inputs[0].shape] == ["batch", "frames"]


def test_a_graph_that_says_something_else_than_the_module_is_refused(tmp_path: Path, tdt_bundle: Bundle) -> None:
    with pytest.raises(GraphError, match=r"does not say what NeMo's module says(.|\n)*differ by 0.1"):
        doubled(tmp_path, factor=2.1).check(tdt_bundle.meta.encoder)


def test_lengths_that_the_contract_does_not_foresee_are_refused(tmp_path: Path, tdt_bundle: Bundle) -> None:
    other = EncoderSpec(**{**tdt_bundle.meta.encoder.model_dump(), "subsampling_factor": 4})
    with pytest.raises(GraphError, match=r"lengths of double(.|\n)*\[2, 2\], \[4, 3\] expected"):
        doubled(tmp_path).check(other)


@pytest.mark.parametrize("wrong", [{"dtype": TensorProto.DOUBLE}, {"frames": 3}])
def test_a_graph_with_other_tensors_than_the_contract_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    graph = doubled(tmp_path, **wrong)
    with pytest.raises(GraphError, match="does not have the contract's inputs and outputs"):
        graph.model()


# --- interpreters


def refused(checkpoint: Path, folder: Path, python: Path) -> NemotrtError:
    """What an export with ``python`` says, which has to leave nothing."""
    out = folder / "out"
    out.mkdir()
    with pytest.raises(NemotrtError) as caught:
        export_checkpoint(checkpoint, out / "b", options=ExportOptions(frontend="nemo"), nemo=NemoProcess(python))
    assert list(out.iterdir()) == []
    return caught.value


def interpreter_with(folder: Path, restore: str, *, imports: str = "") -> Path:
    """This Python with a NeMo whose import runs ``imports``, and whose ``restore_from`` runs ``restore``."""
    for name, text in {**FAKES, "nemo/__init__.py": imports}.items():
        path = folder / "fake" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{restore}", restore), encoding="utf-8")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder / "fake"}" exec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(
    ("name", "what"),
    [("/bin/true", "is not a Python"), ("/bin/sh", "is not a Python"), ("/no/such/python", "does not start"),
     ("/tmp", "does not start")],
)  # fmt: skip
def test_something_else_than_an_interpreter_is_refused(
    tdt_checkpoint: Path, tmp_path: Path, name: str, what: str
) -> None:
    error = refused(tdt_checkpoint, tmp_path, Path(name))
    assert isinstance(error, MachineError)
    assert what in error.what
    assert "--nemo-python" in str(error.fix)


def test_an_interpreter_without_nemo_is_told_what_to_install(tdt_checkpoint: Path, tmp_path: Path) -> None:
    """Nothing is installed there, nemotrt neither: the program needs none of it to say so."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    error = refused(tdt_checkpoint, tmp_path, bare)
    assert isinstance(error, MachineError)
    assert error.what == "NeMo is not installed"
    assert str(error.found).startswith("nemo_toolkit not installed, ")
    assert f"{bare} -m pip install 'nemo_toolkit[asr]'" in str(error.fix)


def test_a_conflict_is_explained_with_the_versions_that_are_installed(tdt_checkpoint: Path, tmp_path: Path) -> None:
    message = "huggingface-hub>=0.34.0,<1.0 is required for a normal functioning of this module, but found x==1.2.3."
    error = refused(
        tdt_checkpoint, tmp_path, interpreter_with(tmp_path, "pass", imports=f"raise ImportError('{message}')")
    )
    assert isinstance(error, MachineError)
    assert error.what == "transformers does not work with this huggingface-hub"
    for package in ("transformers", "huggingface-hub"):
        assert f"{package} " in str(error.found)
    assert "pip install 'huggingface-hub>=0.34.0,<1.0'" in str(error.fix)


def test_a_checkpoint_that_nemo_cannot_restore_is_refused_in_its_words(tdt_checkpoint: Path, tmp_path: Path) -> None:
    error = refused(tdt_checkpoint, tmp_path, interpreter_with(tmp_path, "raise KeyError('no such weight')"))
    assert isinstance(error, CheckpointError)
    assert error.what == "NeMo cannot restore the checkpoint"
    assert "no such weight" in str(error.found)


def test_a_process_that_is_killed_says_how_far_it_came(tdt_checkpoint: Path, tmp_path: Path) -> None:
    error = refused(tdt_checkpoint, tmp_path, interpreter_with(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert isinstance(error, MachineError)
    assert "killed" in error.what
    assert str(error.where).endswith("restore the checkpoint")
    assert "SIGKILL" in str(error.found)


def test_a_model_that_does_not_trace_is_refused_in_the_last_words_of_the_component(
    tdt_checkpoint: Path, tmp_path: Path
) -> None:
    model = "from types import SimpleNamespace as N; model = N(encoder=N(modules=list)); model.eval = lambda: model"
    error = refused(tdt_checkpoint, tmp_path, interpreter_with(tmp_path, f"{model}; return model"))
    assert isinstance(error, MachineError)
    assert error.what == "NeMo does not export encoder"
    assert "ModuleList" in str(error.found)
    assert "native front end" in str(error.fix)

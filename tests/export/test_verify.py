"""What was written is proven before it is published: each check on a sound bundle, and on one damaged for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from nemotrt.bundle import META_NAME, Bundle, ComponentSpec, TensorSpec
from nemotrt.errors import BundleError, GraphError, NemotrtError
from nemotrt.export import ExportOptions, export_checkpoint
from nemotrt.export.smoke_test import run_component
from nemotrt.export.verify import verify_caches, verify_files

TEXTS = ("vocab.txt", "tokens.txt", "tokenizer.model")
GRAPH, DATA = "encoder.onnx", "encoder.onnx.data"


@pytest.fixture
def folder(tdt_bundle: Bundle, tmp_path: Path) -> Path:
    """The files of a bundle as they are before publishing."""
    return Path(shutil.copytree(tdt_bundle.path, tmp_path / "b", ignore=shutil.ignore_patterns(META_NAME)))


@pytest.fixture(scope="module", params=["inputs", "kv"])
def streaming_bundle(
    request: pytest.FixtureRequest, hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    options = ExportOptions(components=("all",), cache=request.param)
    return export_checkpoint(hybrid_checkpoint, tmp_path_factory.mktemp("all") / "b", options=options, smoke_test=True)


def edited(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def weight(model: onnx.ModelProto, index: int = 3) -> TensorProto:
    return [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL][index]


def placed(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change an entry of where a weight is."""

    def edit(model: onnx.ModelProto) -> None:
        (entry,) = (entry for entry in weight(model).external_data if entry.key == name)
        entry.value = change(entry.value)

    return lambda folder: edited(folder / GRAPH, edit)


def resized(size: Callable[[int], int]) -> Callable[[Path], None]:
    def resize(folder: Path) -> None:
        with (folder / DATA).open("r+b") as stream:
            stream.truncate(size(stream.seek(0, 2)))

    return resize


def renamed_output(folder: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        output = model.graph.output[0].name
        model.graph.output[0].name = "other"
        for node in model.graph.node:
            node.output[:] = ["other" if name == output else name for name in node.output]

    edited(folder / GRAPH, rename)


def unknown_operator(folder: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Frobnicate"

    edited(folder / GRAPH, rename)


DAMAGE: dict[str, tuple[Callable[[Path], object], type[NemotrtError], str]] = {
    "not ONNX": (lambda folder: (folder / GRAPH).write_bytes(b"\xff" * 99), GraphError, "not an ONNX file"),
    "no graph": (lambda folder: (folder / GRAPH).unlink(), GraphError, "not an ONNX file"),
    "operator that does not exist": (unknown_operator, GraphError, "not valid"),
    "output of another name": (renamed_output, GraphError, "metadata says"),
    "no data": (lambda folder: (folder / DATA).unlink(), GraphError, "not valid"),
    "data of 38 KB": (resized(lambda _: 38_000), BundleError, "the file at 38000"),
    "data without its last byte": (resized(lambda size: size - 1), BundleError, "weights end at byte"),
    "data with a byte too many": (resized(lambda size: size + 1), BundleError, "weights end at byte"),
    "weight beyond the data": (placed("offset", lambda _: str(1 << 40)), BundleError, "starts at byte"),
    "weight on another": (placed("offset", lambda offset: str(int(offset) - 4)), BundleError, "starts at byte"),
    "weight of another length": (placed("length", lambda length: str(int(length) - 4)), BundleError, "bytes, not"),
    "weight in another file": (placed("location", lambda _: "joint.onnx.data"), BundleError, "is in joint"),
    "file of nobody": (lambda folder: (folder / "notes").touch(), BundleError, "notes of nobody"),
    "text that is missing": (lambda folder: (folder / "tokens.txt").unlink(), BundleError, "no tokens.txt"),
}


def test_a_sound_bundle_passes(folder: Path, tdt_bundle: Bundle) -> None:
    verify_files(folder, tdt_bundle.meta.components, texts=TEXTS)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_every_kind_is_found(folder: Path, tdt_bundle: Bundle, damage: str) -> None:
    inflict, error, words = DAMAGE[damage]
    inflict(folder)
    with pytest.raises(error, match=words):
        verify_files(folder, tdt_bundle.meta.components, texts=TEXTS)


def test_fewer_weights_than_parameters_are_found(folder: Path, tdt_bundle: Bundle) -> None:
    spec = tdt_bundle.component("encoder")
    more = spec.model_copy(update={"parameters": 2 * spec.parameters})
    with pytest.raises(BundleError, match="6,011,392 parameters"):
        verify_files(folder, {**tdt_bundle.meta.components, "encoder": more}, texts=TEXTS)


@pytest.mark.parametrize("damage", ["output of another name", "data of 38 KB", "file of nobody"])
def test_what_is_damaged_between_writing_and_verification_is_not_published(
    tdt_checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    inflict, error, words = DAMAGE[damage]

    def when_checked(stage: str) -> None:
        if stage == "checks":
            (partial,) = tmp_path.iterdir()
            inflict(partial)

    with pytest.raises(error, match=words):
        export_checkpoint(tdt_checkpoint, tmp_path / "b", on_progress=when_checked)
    assert list(tmp_path.iterdir()) == []


def test_a_streaming_encoder_has_the_caches_of_its_layout(streaming_bundle: Bundle) -> None:
    meta, spec = streaming_bundle.meta, streaming_bundle.component("encoder_streaming")
    assert meta.streaming is not None
    assert (len(spec.inputs), len(spec.outputs)) == {"inputs": (5, 5), "kv": (6, 6)}[meta.streaming.cache]
    verify_caches(spec, meta.encoder, meta.streaming)


def without_a_cache(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return (*tensors[:2], *tensors[3:])


def of_another_shape(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return (*tensors[:2], tensors[2].model_copy(update={"shape": (1, *tensors[2].shape[1:])}), *tensors[3:])


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("damage", [without_a_cache, of_another_shape])
def test_a_streaming_encoder_without_its_caches_is_found(
    streaming_bundle: Bundle,
    side: str,
    damage: Callable[[tuple[TensorSpec, ...]], tuple[TensorSpec, ...]],
) -> None:
    meta, spec = streaming_bundle.meta, streaming_bundle.component("encoder_streaming")
    assert meta.streaming is not None
    damaged = spec.model_copy(update={side: damage(getattr(spec, side))})
    with pytest.raises(BundleError, match=f"{side} are not its caches"):
        verify_caches(damaged, meta.encoder, meta.streaming)


class TestInOnnxRuntime:
    def test_every_component_runs(self, streaming_bundle: Bundle) -> None:
        for name, spec in streaming_bundle.meta.components.items():
            run_component(streaming_bundle.graph_path(name), spec, streaming_bundle.meta.encoder)

    def test_numbers_that_are_not_finite_are_found(self, folder: Path, tdt_bundle: Bundle) -> None:
        """Infinities in the weights: no other check reads them."""
        numbers = (folder / DATA).stat().st_size // 4
        (folder / DATA).write_bytes(b"\x00\x00\x80\x7f" * numbers)
        verify_files(folder, tdt_bundle.meta.components, texts=TEXTS)
        with pytest.raises(GraphError, match="not finite"):
            run_component(folder / GRAPH, tdt_bundle.component("encoder"), tdt_bundle.meta.encoder)

    def test_an_output_of_another_shape_is_found(self, folder: Path, tdt_bundle: Bundle) -> None:
        spec = tdt_bundle.component("encoder")
        (first, *others) = spec.outputs
        other: ComponentSpec = spec.model_copy(
            update={"outputs": (first.model_copy(update={"shape": ("batch", 64, "encoder_frames")}), *others)}
        )
        with pytest.raises(GraphError, match=r"encoder_output is float32\[2, 128, 8\], not float32\[2, 64, 8\]"):
            run_component(folder / GRAPH, other, tdt_bundle.meta.encoder)

    def test_a_graph_that_does_not_load_is_found(self, folder: Path, tdt_bundle: Bundle) -> None:
        unknown_operator(folder)
        with pytest.raises(GraphError, match="does not run a graph"):
            run_component(folder / GRAPH, tdt_bundle.component("encoder"), tdt_bundle.meta.encoder)

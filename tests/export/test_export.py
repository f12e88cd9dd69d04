"""What an exported bundle is as files, and what may stand where it goes."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo
from onnx_sessions import Graph
from small_disks import files_up_to, mounted

from nemotrt.bundle import META_NAME, Bundle, load_bundle, verify_digests
from nemotrt.errors import MachineError, UsageError
from nemotrt.export import export_checkpoint, export_isolated
from nemotrt.journal import JOURNAL_NAME

NODES_PER_LAYER, OTHER_NODES = 60, 80


@pytest.fixture(params=["tdt", "hybrid"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(f"{request.param}_bundle")
    return found


class TestFiles:
    def test_every_file_is_in_the_contract_and_as_recorded(self, bundle: Bundle) -> None:
        verify_digests(load_bundle(bundle.path))
        assert {path.name for path in bundle.path.iterdir()} == {META_NAME, *bundle.meta.files}

    def test_a_component_is_one_graph_and_at_most_one_data_file(self, bundle: Bundle) -> None:
        for name, spec in bundle.meta.components.items():
            graph = onnx.load(str(bundle.graph_path(name)), load_external_data=False)
            places = {info.location for info in external_data(graph)}
            assert places == ({spec.data} if spec.data else set())

    def test_no_byte_of_a_data_file_is_an_orphan(self, bundle: Bundle) -> None:
        """The tensors tile the file, but for the gaps that align them to pages."""
        for name, spec in bundle.meta.components.items():
            graph = onnx.load(str(bundle.graph_path(name)), load_external_data=False)
            extents = sorted((info.offset or 0, info.length or 0) for info in external_data(graph))
            ends = [0, *(offset + length for offset, length in extents)]
            gaps = [offset - end for (offset, _), end in zip(extents, ends, strict=False)]
            assert all(0 <= gap < 1 << 16 for gap in gaps), name
            if spec.data:
                assert (bundle.path / spec.data).stat().st_size == ends[-1]

    def test_the_contract_counts_the_parameters(self, bundle: Bundle) -> None:
        for name, spec in bundle.meta.components.items():
            graph = onnx.load(str(bundle.graph_path(name)), load_external_data=False).graph
            floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
            weights = sum(int(np.prod(t.dims)) for t in floats if not t.name.startswith("constant_"))
            assert weights == spec.parameters, name

    def test_every_graph_passes_the_full_check_of_onnx(self, bundle: Bundle) -> None:
        for name in bundle.meta.components:
            onnx.checker.check_model(str(bundle.graph_path(name)), full_check=True)

    def test_a_moved_bundle_runs(self, bundle: Bundle, tmp_path: Path) -> None:
        moved = load_bundle(Path(shutil.copytree(bundle.path, tmp_path / "elsewhere" / "b")))
        signal = np.zeros((1, moved.meta.encoder.features, 32), np.float32)
        assert Graph.of(moved, "encoder")(audio_signal=signal, length=np.array([32]))[0].shape[0] == 1

    def test_a_graph_without_its_data_does_not_run(self, bundle: Bundle, tmp_path: Path) -> None:
        shutil.copy(bundle.graph_path("encoder"), tmp_path)
        with pytest.raises(Exception, match=r"encoder\.onnx\.data"):
            Graph(tmp_path / "encoder.onnx")

    def test_nothing_tells_where_or_by_whom_it_was_made(self, bundle: Bundle, tdt_checkpoint: Path) -> None:
        marks = {str(bundle.path.parent), str(tdt_checkpoint.parent), str(Path.cwd()), str(Path.home()), "/tmp"}
        marks |= {mark for mark in (platform.node(), getpass.getuser()) if len(mark) > 4}
        for path in bundle.path.iterdir():
            if path.suffix in (".onnx", ".json", ".txt"):
                content = path.read_bytes()
                assert [mark for mark in marks if mark.encode() in content and mark != "/"] == [], path.name

    def test_two_exports_are_identical_to_the_byte(
        self, tdt_checkpoint: Path, tdt_bundle: Bundle, tmp_path: Path
    ) -> None:
        again = export_checkpoint(tdt_checkpoint, tmp_path / "again")
        assert again.meta == tdt_bundle.meta
        assert (again.path / META_NAME).read_bytes() == (tdt_bundle.path / META_NAME).read_bytes()
        verify_digests(Bundle(again.path, tdt_bundle.meta))

    def test_graphs_say_what_sherpa_onnx_asks_them(self, hybrid_bundle: Bundle) -> None:
        graph = onnx.load(str(hybrid_bundle.graph_path("ctc")), load_external_data=False)
        found = {entry.key: entry.value for entry in graph.metadata_props}
        assert found["vocab_size"] == str(hybrid_bundle.meta.vocabulary_size)
        assert found["subsampling_factor"] == "8"
        assert found["normalize_type"] == ""  # the hybrid's features are not normalized
        assert found["feat_dim"] == "80"

    def test_vocabulary_files_agree(self, bundle: Bundle) -> None:
        lines = (bundle.path / "tokens.txt").read_text(encoding="utf-8").splitlines()
        pieces = [line.rsplit(" ", 1) for line in lines]
        assert [piece for piece, _ in pieces] == [*bundle.vocabulary(), "<blk>"]
        assert [int(index) for _, index in pieces] == list(range(bundle.meta.blank_id + 1))


def external_data(model: onnx.ModelProto) -> list[ExternalDataInfo]:
    return [ExternalDataInfo(t) for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]


def test_the_encoder_has_few_nodes(bundle: Bundle, figure: Callable[[str], None]) -> None:
    layers = bundle.meta.encoder.layers
    limit = NODES_PER_LAYER * layers + OTHER_NODES
    nodes = len(onnx.load(str(bundle.graph_path("encoder")), load_external_data=False).graph.node)
    figure(f"nodes of the {bundle.meta.name} encoder, {layers} layers: {nodes} (bound {limit})")
    assert nodes <= limit


def test_progress_names_each_component_in_order(hybrid_checkpoint: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    export_checkpoint(hybrid_checkpoint, tmp_path / "b", on_progress=heard.append)
    assert heard == [
        "preprocessor", "encoder", "encoder_nomask", "predictor", "joint", "ctc", "ctc_nomask", "digests", "checks",
    ]  # fmt: skip


class TestWhatStandsInTheWay:
    def test_a_bundle_stays_as_it_is(self, tdt_checkpoint: Path, hybrid_checkpoint: Path, tmp_path: Path) -> None:
        first = export_checkpoint(tdt_checkpoint, tmp_path / "b")
        with pytest.raises(UsageError, match="--overwrite"):
            export_checkpoint(hybrid_checkpoint, tmp_path / "b")
        verify_digests(load_bundle(tmp_path / "b"))
        assert load_bundle(tmp_path / "b").meta == first.meta

    def test_a_bundle_is_replaced_on_request(
        self, tdt_checkpoint: Path, hybrid_checkpoint: Path, hybrid_bundle: Bundle, tmp_path: Path
    ) -> None:
        export_checkpoint(tdt_checkpoint, tmp_path / "b")
        export_checkpoint(hybrid_checkpoint, tmp_path / "b", overwrite=True)
        verify_digests(load_bundle(tmp_path / "b"))
        assert load_bundle(tmp_path / "b").meta == hybrid_bundle.meta
        assert [path.name for path in tmp_path.iterdir()] == ["b"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_of_something_else_is_never_replaced(
        self, tdt_checkpoint: Path, tmp_path: Path, overwrite: bool
    ) -> None:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "thesis.tex").write_text("all of it")
        with pytest.raises(UsageError, match="something else"):
            export_checkpoint(tdt_checkpoint, tmp_path / "b", overwrite=overwrite)
        assert (tmp_path / "b" / "thesis.tex").read_text() == "all of it"

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("kind", ["file", "dangling link"])
    def test_a_file_or_link_is_never_replaced(
        self, tdt_checkpoint: Path, tmp_path: Path, overwrite: bool, kind: str
    ) -> None:
        path = tmp_path / "b"
        path.symlink_to("nowhere") if kind == "dangling link" else path.write_text("mine")
        with pytest.raises(UsageError, match="something else"):
            export_checkpoint(tdt_checkpoint, path, overwrite=overwrite)
        assert path.is_symlink() or path.read_text() == "mine"

    def test_an_empty_folder_is_filled(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        verify_digests(export_checkpoint(tdt_checkpoint, tmp_path / "b"))

    def test_missing_parents_are_made(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        verify_digests(export_checkpoint(tdt_checkpoint, tmp_path / "x" / "y" / "b"))

    def test_a_parent_that_is_a_file_is_refused(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="a file where a folder should be"):
            export_checkpoint(tdt_checkpoint, tmp_path / "file" / "b")


class TestWhenThereIsNoRoom:
    @pytest.mark.parametrize("limit_bytes", [1, 100_000, 1_000_000])
    def test_a_write_that_fails_leaves_nothing(self, tdt_checkpoint: Path, tmp_path: Path, limit_bytes: int) -> None:
        """The kernel refuses to let a file grow, as it does on a full disk; no mount and no root needed."""
        with files_up_to(limit_bytes), pytest.raises(MachineError, match="cannot be written"):
            export_checkpoint(tdt_checkpoint, tmp_path / "b")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("export", [export_checkpoint, export_isolated])
    def test_a_write_that_fails_later_leaves_what_was_finished_and_nothing_half(
        self, tdt_checkpoint: Path, tdt_bundle: Bundle, tmp_path: Path, export: Callable[..., Bundle]
    ) -> None:
        with files_up_to(5_000_000), pytest.raises(MachineError, match="cannot be written"):
            export(tdt_checkpoint, tmp_path / "b")
        (folder,) = tmp_path.iterdir()
        assert {path.name for path in folder.iterdir()} == {
            JOURNAL_NAME,
            *tdt_bundle.component("preprocessor").files,
        }
        assert export(tdt_checkpoint, tmp_path / "b").meta == tdt_bundle.meta
        assert [path.name for path in tmp_path.iterdir()] == ["b"]

    def test_a_failed_replacement_leaves_the_old_bundle(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        export_checkpoint(tdt_checkpoint, tmp_path / "b")
        with files_up_to(1_000_000), pytest.raises(MachineError):
            export_checkpoint(tdt_checkpoint, tmp_path / "b", overwrite=True)
        verify_digests(load_bundle(tmp_path / "b"))
        assert [path.name for path in tmp_path.iterdir()] == ["b"]

    @pytest.mark.parametrize("export", [export_checkpoint, export_isolated])
    def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
        self, tdt_checkpoint: Path, tmp_path: Path, export: Callable[..., Bundle]
    ) -> None:
        heard: list[str] = []
        with mounted(tmp_path / "disk", "size=4m") as disk:
            with pytest.raises(MachineError, match=r"18 MiB needed, 4\.0 MiB free"):
                export(tdt_checkpoint, disk / "b", on_progress=heard.append)
            assert list(disk.iterdir()) == []
        assert heard == []

    def test_a_disk_that_fills_up_meanwhile_leaves_what_was_finished(
        self, tdt_checkpoint: Path, tdt_bundle: Bundle, tmp_path: Path
    ) -> None:
        with mounted(tmp_path / "disk", "size=24m") as disk:

            def fill(stage: str) -> None:
                if stage == "encoder":
                    (disk / "other").write_bytes(bytes(14 << 20))

            with pytest.raises(MachineError, match="cannot be written"):
                export_checkpoint(tdt_checkpoint, disk / "b", on_progress=fill)
            (folder,) = disk.glob(".*")
            assert {path.name for path in folder.iterdir()} == {
                JOURNAL_NAME,
                *tdt_bundle.component("preprocessor").files,
            }
            (disk / "other").unlink()
            assert export_checkpoint(tdt_checkpoint, disk / "b").meta == tdt_bundle.meta
            assert [path.name for path in disk.iterdir()] == ["b"]

    def test_a_disk_that_may_not_be_written(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        with mounted(tmp_path / "disk", "ro") as disk, pytest.raises(MachineError, match="Read-only"):
            export_checkpoint(tdt_checkpoint, disk / "b")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_may_not_be_written(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
        with pytest.raises(MachineError, match="Permission denied"):
            export_checkpoint(tdt_checkpoint, folder / "b")
        assert list(folder.iterdir()) == []

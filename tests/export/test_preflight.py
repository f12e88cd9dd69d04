"""What an export needs is known before it begins, and is what it takes."""

from __future__ import annotations

import gzip
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import archives
import pytest
from small_disks import mounted

from nemotrt.child_process import run_measured
from nemotrt.errors import MachineError
from nemotrt.export import ExportOptions, export_checkpoint
from nemotrt.export.disk_room import inflated_bytes, refuse_full_disk
from nemotrt.export.options import Needs, Notice
from nemotrt.export.preflight import refuse_without_room

GIB = 1 << 30
EVERYTHING = ExportOptions(components=("all",))


def needs_of_export(checkpoint: Path, destination: Path, *, smoke_test: bool = False) -> Needs:
    heard: list[Notice] = []
    export_checkpoint(checkpoint, destination, options=EVERYTHING, smoke_test=smoke_test, on_notice=heard.append)
    (needs,) = (notice for notice in heard if isinstance(notice, Needs))
    return needs


@pytest.mark.parametrize("smoke_test", [False, True])
@pytest.mark.parametrize("checkpoint", ["tdt_checkpoint", "hybrid_checkpoint"])
def test_an_export_takes_no_more_than_was_expected(
    request: pytest.FixtureRequest, checkpoint: str, smoke_test: bool, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    path: Path = request.getfixturevalue(checkpoint)
    needs = needs_of_export(path, tmp_path / "here", smoke_test=smoke_test)
    code = (
        "import sys; from pathlib import Path; from nemotrt.export import *; export_checkpoint(Path(sys.argv[1]), "
        f"Path(sys.argv[2]), options=ExportOptions(components=('all',)), smoke_test={smoke_test})"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "b")]
    finished = run_measured(command, folder=tmp_path, timeout_seconds=100)
    assert finished.failure is None
    assert finished.peak_rss_bytes is not None
    written = sum(file.stat().st_size for file in (tmp_path / "b").iterdir())
    how = ", run in ONNX Runtime" if smoke_test else ""
    figure(
        f"export of all of {path.name}{how}: {finished.seconds:.2f} s; memory "
        f"{finished.peak_rss_bytes / 1e6:.0f} MB of {needs.memory_bytes / 1e6:.0f} expected, "
        f"disk {written / 1e6:.0f} MB of {needs.disk_bytes / 1e6:.0f}"
    )
    assert finished.peak_rss_bytes <= needs.memory_bytes
    assert written <= needs.disk_bytes


def test_more_memory_than_there_is_is_refused_with_the_figures(tmp_path: Path) -> None:
    refuse_without_room(Needs(memory_bytes=0, disk_bytes=0), tmp_path)
    with pytest.raises(MachineError, match=r"about 1,048,576 MiB needed, [\d,]+ MiB held and [\d,]+ MiB free"):
        refuse_without_room(Needs(memory_bytes=1 << 40, disk_bytes=0), tmp_path)


def test_more_disk_than_there_is_is_refused_with_the_figures(tmp_path: Path) -> None:
    refuse_full_disk(0, tmp_path, what="it", fix="")
    with pytest.raises(MachineError, match=r"about 1,073,741,824 MiB needed, [\d,]+ MiB free"):
        refuse_without_room(Needs(memory_bytes=0, disk_bytes=1 << 50), tmp_path)


def test_a_gzipped_checkpoint_that_cannot_be_inflated_is_refused_before_it_is(
    tdt_members: archives.Members, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = archives.write_archive(tmp_path / "m.gz", tdt_members)
    with mounted(tmp_path / "disk", "size=4m") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with pytest.raises(MachineError, match="not enough disk space for a gzipped checkpoint") as caught:
            export_checkpoint(checkpoint, tmp_path / "b")
        assert caught.value.where == str(disk)
        assert "TMPDIR" in str(caught.value.fix)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_the_size_inside_of_a_gzip_file_is_read_from_its_end(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(gzip.compress(bytes(range(256)) * (size // 256) + bytes(size % 256)))
    with (tmp_path / "f").open("rb") as stream:
        assert inflated_bytes(stream) == size
        assert stream.tell() == 0


@pytest.mark.parametrize(
    ("file_gib", "inside_gib"), [(3.9, 3.901), (3.6, 3.99), (3.8, 4.1), (4.5, 4.9), (4.001, 4.0), (7.9, 8.1)]
)
def test_a_gzip_file_counts_only_up_to_4_gib_and_its_own_size_tells_the_rest(
    tmp_path: Path, file_gib: float, inside_gib: float
) -> None:
    inside = int(inside_gib * GIB)
    with (tmp_path / "sparse").open("wb+") as stream:
        stream.seek(int(file_gib * GIB) - 4)
        stream.write(struct.pack("<I", inside % (4 * GIB)))
        stream.seek(0)
        assert inflated_bytes(stream) == inside

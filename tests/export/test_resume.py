"""An export that died goes on where it was, if it is the same work; otherwise it begins again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotrt.bundle import META_NAME, Bundle, load_bundle, verify_digests
from nemotrt.export import ExportOptions, export_checkpoint, export_isolated
from nemotrt.export.options import DEFAULTS, Needs, Notice, TakenOver
from nemotrt.journal import JOURNAL_NAME

NO_PROCESS = 2**22 + 1  # beyond the largest id of a process on Linux

KILLED_BEFORE_THE_JOINT = """
import os, signal, sys, time
from pathlib import Path
from nemotrt.export import export_checkpoint
from nemotrt.journal import read_journal

checkpoint, destination = map(Path, sys.argv[1:])
folder = destination.with_name(f".{destination.name}.{os.getpid()}.partial")

def kill(stage):
    if stage == "joint":
        while read_journal(folder).work is None:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

export_checkpoint(checkpoint, destination, on_progress=kill)
"""


@pytest.fixture
def partial(tdt_checkpoint: Path, tmp_path: Path) -> Path:
    """What an export of the TDT demo leaves that is killed before its last component."""
    command = [sys.executable, "-c", KILLED_BEFORE_THE_JOINT, str(tdt_checkpoint), str(tmp_path / "b")]
    subprocess.run(command, check=False, timeout=60)
    (folder,) = tmp_path.iterdir()
    return folder


class Heard:
    """What an export tells."""

    def __init__(self) -> None:
        self.taken_over: tuple[str, ...] = ()
        self.stages: list[str] = []
        self.memory_bytes = self.disk_bytes = 0

    def notice(self, notice: Notice) -> None:
        if isinstance(notice, TakenOver):
            self.taken_over = notice.components
        elif isinstance(notice, Needs):
            self.memory_bytes, self.disk_bytes = notice.memory_bytes, notice.disk_bytes


def export_again(checkpoint: Path, destination: Path, *, options: ExportOptions = DEFAULTS) -> Heard:
    heard = Heard()
    bundle = export_checkpoint(
        checkpoint, destination, options=options, on_progress=heard.stages.append, on_notice=heard.notice
    )
    verify_digests(bundle)
    assert [path.name for path in destination.parent.iterdir()] == [destination.name]
    return heard


def test_finished_components_are_not_written_again(
    tdt_checkpoint: Path, tdt_bundle: Bundle, partial: Path, tmp_path: Path
) -> None:
    parts = ("preprocessor", "encoder", "encoder_nomask", "predictor")
    finished = [name for part in parts for name in tdt_bundle.component(part).files]
    before = {name: (partial / name).stat() for name in finished}
    heard = export_again(tdt_checkpoint, tmp_path / "b")
    assert heard.taken_over == ("preprocessor", "encoder", "encoder_nomask", "predictor")
    assert heard.stages == ["joint", "digests", "checks"]
    after = {name: (tmp_path / "b" / name).stat() for name in finished}
    assert [(s.st_ino, s.st_mtime_ns) for s in after.values()] == [(s.st_ino, s.st_mtime_ns) for s in before.values()]


@pytest.mark.parametrize("export", [export_checkpoint, export_isolated])
def test_the_bundle_is_to_the_byte_what_it_is_in_one_go(
    tdt_checkpoint: Path, tdt_bundle: Bundle, partial: Path, tmp_path: Path, export: Callable[..., Bundle]
) -> None:
    export(tdt_checkpoint, tmp_path / "b")
    for path in tdt_bundle.path.iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    assert load_bundle(tmp_path / "b").meta == tdt_bundle.meta


def test_less_disk_is_needed_but_what_is_taken_over_is_run_too(
    tdt_checkpoint: Path, partial: Path, tmp_path: Path
) -> None:
    needs = []
    for name in ("b", "c"):  # the first one goes on from the partial export
        heard = Heard()
        export_checkpoint(tdt_checkpoint, tmp_path / name, smoke_test=True, on_notice=heard.notice)
        needs.append(heard)
    assert needs[0].memory_bytes == needs[1].memory_bytes
    assert needs[0].disk_bytes < needs[1].disk_bytes / 4


def other_version(partial: Path) -> None:
    journal = (partial / JOURNAL_NAME).read_text()
    assert '"onnx-ir":"' in journal
    (partial / JOURNAL_NAME).write_text(journal.replace('"onnx-ir":"', '"onnx-ir":"0.'))


def without_work(partial: Path) -> None:
    lines = (partial / JOURNAL_NAME).read_text().splitlines(keepends=True)
    (partial / JOURNAL_NAME).write_text("".join(line for line in lines if '"work"' not in line))


@pytest.mark.parametrize(
    "change",
    [
        other_version,
        without_work,
        lambda partial: (partial / JOURNAL_NAME).unlink(),
        lambda partial: (partial / JOURNAL_NAME).write_bytes(b"\xff\x00"),
    ],
    ids=["another version", "no digest of the checkpoint", "no journal", "no text"],
)
def test_what_may_be_other_work_is_removed(
    tdt_checkpoint: Path, partial: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    change(partial)
    assert export_again(tdt_checkpoint, tmp_path / "b").taken_over == ()


def test_the_work_of_other_options_is_removed(tdt_checkpoint: Path, partial: Path, tmp_path: Path) -> None:
    options = ExportOptions(components=("preprocessor", "encoder"))
    assert export_again(tdt_checkpoint, tmp_path / "b", options=options).taken_over == ()


def test_the_work_of_another_checkpoint_is_removed(hybrid_checkpoint: Path, partial: Path, tmp_path: Path) -> None:
    assert export_again(hybrid_checkpoint, tmp_path / "b").taken_over == ()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.rename(path.parent / "elsewhere") and path.symlink_to("elsewhere"),
    ],
    ids=["byte", "missing", "short", "link"],
)
def test_a_component_that_is_not_as_recorded_is_written_again(
    tdt_checkpoint: Path, tdt_bundle: Bundle, partial: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    damage(partial / "encoder.onnx.data")
    assert export_again(tdt_checkpoint, tmp_path / "b").taken_over == ("preprocessor", "predictor")
    assert load_bundle(tmp_path / "b").meta == tdt_bundle.meta


def test_a_line_that_was_cut_short_ends_the_journal(tdt_checkpoint: Path, partial: Path, tmp_path: Path) -> None:
    journal = (partial / JOURNAL_NAME).read_bytes()
    (partial / JOURNAL_NAME).write_bytes(journal[:-20])
    assert export_again(tdt_checkpoint, tmp_path / "b").taken_over == ("preprocessor", "encoder", "encoder_nomask")


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_what_somebody_else_left_is_not_taken_over(tdt_checkpoint: Path, partial: Path, tmp_path: Path) -> None:
    os.chown(partial, 12345, -1)
    assert export_again(tdt_checkpoint, tmp_path / "b").taken_over == ()


def test_of_several_only_one_is_taken_over(tdt_checkpoint: Path, partial: Path, tmp_path: Path) -> None:
    for name in (f".b.{NO_PROCESS}.partial", f".b.{NO_PROCESS}.partial.claimed0.partial"):
        shutil.copytree(partial, tmp_path / name)
    assert export_again(tdt_checkpoint, tmp_path / "b").taken_over == (
        "preprocessor",
        "encoder",
        "encoder_nomask",
        "predictor",
    )


def test_what_a_living_export_has_finished_stays_its_own(tdt_checkpoint: Path, partial: Path, tmp_path: Path) -> None:
    living = partial.rename(tmp_path / f".b.{os.getppid()}.partial")
    bundle = export_checkpoint(tdt_checkpoint, tmp_path / "b")
    verify_digests(bundle)
    assert (living / "encoder.onnx.data").exists()
    assert (living / JOURNAL_NAME).exists()


def test_two_exports_at_a_time_that_find_the_same_leave_one_whole_bundle(
    tdt_checkpoint: Path, tdt_bundle: Bundle, partial: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from nemotrt.export import export_checkpoint; "
        "export_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), overwrite=True)"
    )
    command = [sys.executable, "-c", code, str(tdt_checkpoint), str(tmp_path / "b")]
    exports = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert 0 in [export.wait(60) for export in exports]
    bundle = load_bundle(tmp_path / "b")
    verify_digests(bundle)
    assert bundle.meta == tdt_bundle.meta
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_nothing_of_the_journal_is_published(tdt_checkpoint: Path, partial: Path, tmp_path: Path) -> None:
    bundle = export_checkpoint(tdt_checkpoint, tmp_path / "b")
    assert {path.name for path in bundle.path.iterdir()} == {META_NAME, *bundle.meta.files}
    assert JOURNAL_NAME not in bundle.meta.files

"""An export in a child process: the same bundle and errors, and a child that dies or hangs is one error."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import archives
import psutil
import pytest

from nemotrt.bundle import Bundle, load_bundle, verify_digests
from nemotrt.errors import ArchiveError, BundleError, MachineError, NemotrtError, UsageError
from nemotrt.export import ExportOptions, ModelChoices, export_checkpoint, export_isolated
from nemotrt.export.options import Notice, TakenOver
from nemotrt.journal import JOURNAL_NAME, read_journal

MIB = 1 << 20
KILLS, NOTICES = 8, 60  # a whole export has some hundred notices


def the_child() -> psutil.Process:
    (child,) = (p for p in psutil.Process().children() if "nemotrt.export.child" in p.cmdline())
    return child


def at(stage: str, act: Callable[[psutil.Process], None]) -> Callable[[str], None]:
    """Do something to the child when it comes to a stage."""
    return lambda heard: act(the_child()) if heard == stage else None


def resumable(folder: Path, destination: Path) -> set[str]:
    """Components that wait to be taken over. Nothing else may lie beside ``destination``."""
    finished: set[str] = set()
    for entry in folder.iterdir():
        if entry != destination:
            journal = read_journal(entry)
            assert journal.work is not None
            names = {name for files in journal.finished.values() for name in files}
            assert {path.name for path in entry.iterdir()} == {JOURNAL_NAME, *names}
            finished |= set(journal.finished)
    return finished


class Killer:
    """Kills the child after so many notices."""

    def __init__(self, after: int) -> None:
        self._left = after
        self._child: psutil.Process | None = None

    def __call__(self, _: Notice) -> None:
        self._child = self._child or the_child()
        self._left -= 1
        if self._left < 0:
            self._child.kill()


def hear_taken_over(into: list[str]) -> Callable[[Notice], None]:
    return lambda notice: into.extend(notice.components) if isinstance(notice, TakenOver) else None


class TestTheSame:
    def test_bundle(self, hybrid_checkpoint: Path, tmp_path: Path) -> None:
        options = ExportOptions(components=("all",), choices=ModelChoices(lookahead=0, max_seconds=60.0), cache="kv")
        stages: dict[str, list[str]] = {"here": [], "child": []}
        here = export_checkpoint(
            hybrid_checkpoint, tmp_path / "here", options=options, on_progress=stages["here"].append
        )
        child = export_isolated(
            hybrid_checkpoint, tmp_path / "child", options=options, on_progress=stages["child"].append
        )
        verify_digests(child)
        assert (child.path, child.meta) == (tmp_path / "child", here.meta)
        assert stages["child"] == stages["here"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["child", "here"]

    def test_relative_paths(self, tdt_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert export_isolated(tdt_checkpoint, Path("b")).path == tmp_path / "b"

    def test_modules_of_the_user_s_folder_are_not_imported(
        self, tdt_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "json.py").write_text("raise RuntimeError('a file of the user')")
        monkeypatch.chdir(tmp_path)
        export_isolated(tdt_checkpoint, tmp_path / "b")

    def test_errors(self, tdt_checkpoint: Path, tdt_members: archives.Members, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").touch()
        refused: dict[tuple[Path, Path, tuple[str, ...]], type[NemotrtError]] = {
            (tmp_path / "none.nemo", tmp_path / "b", ()): ArchiveError,
            (archives.write_archive(tmp_path / "m.nemo", {}), tmp_path / "b", ()): ArchiveError,
            (tdt_checkpoint, tmp_path / "other", ()): UsageError,
            (tdt_checkpoint, tmp_path / "b", ("flux",)): UsageError,
        }
        for (checkpoint, destination, components), kind in refused.items():
            errors = []
            for export in (export_checkpoint, export_isolated):
                with pytest.raises(NemotrtError) as caught:
                    export(checkpoint, destination, options=ExportOptions(components=components))
                errors.append(caught.value.as_dict())
                assert type(caught.value) is kind
            assert errors[0] == errors[1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.nemo", "other"]

    def test_error_in_the_middle(self, tdt_members: archives.Members, tmp_path: Path) -> None:
        """A byte of the weights that are read last is another one: found when half of the bundle is written."""
        members = dict(tdt_members)
        weights = bytearray(members["model_weights.ckpt"])
        weights[len(weights) * 3 // 4] ^= 0xFF
        checkpoint = archives.write_archive(tmp_path / "m.nemo", members | {"model_weights.ckpt": bytes(weights)})
        with pytest.raises(ArchiveError, match="bytes of a weight are damaged"):
            export_isolated(checkpoint, tmp_path / "b")
        assert [path.name for path in tmp_path.iterdir()] == ["m.nemo"]


class TestAChildThat:
    def test_takes_too_much_memory_is_ended(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(MachineError) as caught:
            export_isolated(tdt_checkpoint, tmp_path / "b", max_memory_bytes=60 * MIB)
        error = caught.value
        assert error.what == "the export took too much memory, and was ended"
        assert error.where == f"{tdt_checkpoint}: reading"
        assert error.found is not None
        assert error.found.startswith("60 MiB allowed; it held ")
        assert "--max-memory" in str(error.fix)
        assert list(tmp_path.iterdir()) == []

    def test_takes_no_more_than_it_may_is_left_alone(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        verify_digests(export_isolated(tdt_checkpoint, tmp_path / "b", max_memory_bytes=300 * MIB))

    def test_hangs_is_ended(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        stop = at("encoder", lambda child: child.suspend())
        with pytest.raises(MachineError) as caught:
            export_isolated(tdt_checkpoint, tmp_path / "b", on_progress=stop, silence_seconds=2.0)
        assert caught.value.what == "the export did not go on, and was ended"
        assert caught.value.where == f"{tdt_checkpoint}: encoder"
        assert str(caught.value.found).startswith("silent for 2 s; it held ")
        assert resumable(tmp_path, tmp_path / "b") <= {"preprocessor", "encoder"}

    @pytest.mark.parametrize(("number", "words"), [(signal.SIGKILL, "memory runs out"), (signal.SIGSEGV, "SIGSEGV")])
    def test_dies_is_one_error(self, tdt_checkpoint: Path, tmp_path: Path, number: signal.Signals, words: str) -> None:
        with pytest.raises(MachineError, match="ended in the middle") as caught:
            export_isolated(
                tdt_checkpoint, tmp_path / "b", on_progress=at("encoder", lambda child: child.send_signal(number))
            )
        assert caught.value.where == f"{tdt_checkpoint}: encoder"
        assert words in str(caught.value.found)
        assert "it held" in str(caught.value.found)
        resumable(tmp_path, tmp_path / "b")

    def test_cannot_start_says_its_last_words(
        self, tdt_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = tmp_path / "path" / "yaml.py"
        broken.parent.mkdir()
        broken.write_text("raise RuntimeError('this installation is broken')")
        monkeypatch.setenv("PYTHONPATH", f"{broken.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with pytest.raises(MachineError, match="this installation is broken"):
            export_isolated(tdt_checkpoint, tmp_path / "b")

    def test_is_killed_at_any_moment_leaves_what_the_next_one_uses(
        self, tdt_checkpoint: Path, tdt_bundle: Bundle, tmp_path: Path, figure: Callable[[str], None]
    ) -> None:
        moments, taken_over, killed = random.Random(0), list[str](), 0
        for _ in range(KILLS):
            killer = Killer(after=moments.randrange(NOTICES))

            def hear(notice: Notice, killer: Killer = killer) -> None:
                hear_taken_over(taken_over)(notice)
                killer(notice)

            with suppress(MachineError):  # or it was done before
                export_isolated(tdt_checkpoint, tmp_path / "b", overwrite=True, on_notice=hear)
                continue
            killed += 1
            resumable(tmp_path, tmp_path / "b")
        assert killed > KILLS // 2
        assert export_isolated(tdt_checkpoint, tmp_path / "b", overwrite=True).meta == tdt_bundle.meta
        assert [path.name for path in tmp_path.iterdir()] == ["b"]
        figure(f"{killed} children killed at random messages: {len(taken_over)} components taken over by the next ones")


class TestAParentThat:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    def test_is_interrupted_ends_the_child_and_leaves_nothing(
        self, tdt_checkpoint: Path, tmp_path: Path, error: type[BaseException]
    ) -> None:
        children: list[psutil.Process] = []

        def interrupt(child: psutil.Process) -> None:
            children.append(child)
            raise error

        with pytest.raises(error):
            export_isolated(tdt_checkpoint, tmp_path / "b", on_progress=at("encoder", interrupt))
        assert not children[0].is_running()
        assert list(tmp_path.iterdir()) == []

    def test_gets_ctrl_c_ends_the_child_and_leaves_nothing(self, tdt_checkpoint: Path, tmp_path: Path) -> None:
        parent = started(tdt_checkpoint, tmp_path / "b")
        (child,) = wait_for_children(parent)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to all of the group
        assert parent.wait(30) != 0
        assert not child.is_running()
        assert list(tmp_path.iterdir()) == []

    def test_is_killed_at_any_moment_takes_the_child_with_it(
        self, tdt_checkpoint: Path, tdt_bundle: Bundle, tmp_path: Path
    ) -> None:
        moments = random.Random(1)
        for _ in range(4):
            parent = started(tdt_checkpoint, tmp_path / "b")
            (child,) = wait_for_children(parent)
            time.sleep(moments.uniform(0, 1.0))
            parent.kill()
            parent.wait()
            child.wait(5)
            try:
                verify_digests(load_bundle(tmp_path / "b"))
            except BundleError:
                assert not (tmp_path / "b").exists()
        assert export_isolated(tdt_checkpoint, tmp_path / "b", overwrite=True).meta == tdt_bundle.meta
        assert [path.name for path in tmp_path.iterdir()] == ["b"]


def started(checkpoint: Path, destination: Path) -> subprocess.Popen[bytes]:
    """An export by a parent of its own, in a process group of its own."""
    code = (
        # what a shell starts in the background ignores Ctrl-C
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from nemotrt.export import export_isolated; "
        "export_isolated(Path(sys.argv[1]), Path(sys.argv[2]), overwrite=True)"
    )
    command = [sys.executable, "-c", code, str(checkpoint), str(destination)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, process_group=0)


def wait_for_children(parent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if children := psutil.Process(parent.pid).children():
            return children
        time.sleep(0.01)
    raise TimeoutError("no child was started")


def test_a_child_adds_little_to_an_export(tdt_checkpoint: Path, tmp_path: Path, figure: Callable[[str], None]) -> None:
    """A process each: with the child, the parent does not load what writes graphs."""
    seconds = {}
    for name in ("export_checkpoint", "export_isolated"):
        code = f"from pathlib import Path; from nemotrt.export import {name}; "
        code += f"{name}(Path({str(tdt_checkpoint)!r}), Path({str(tmp_path / 'b')!r}), overwrite=True)"
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - start)
        seconds[name] = min(times)
    figure(
        f"export of the tdt demo in a process: {seconds['export_checkpoint']:.2f} s, "
        f"with a child of its own: {seconds['export_isolated']:.2f} s (at most 0.5 s more)"
    )
    assert seconds["export_isolated"] < seconds["export_checkpoint"] + 0.5

"""What TensorRT's parser and Polygraphy's lint say of graphs, asked in a process of its own.

    graphs --> child --> one line of JSON a graph --> Opinion
                 `-- dies at a graph --> that graph's Opinion says how; the next child goes on behind it

Both run native code on files that may be broken: what kills the child is a finding, and not our end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from nemotrt.processes import how_it_failed
from nemotrt.tensorrt_api import best_runtime
from nemotrt.trt.check.finding import Severity

TENSORRT_PARSER = "nemotrt.trt.check.run_tensorrt_parser"
POLYGRAPHY_LINT = "nemotrt.trt.check.run_polygraphy_lint"
SECONDS_PER_GRAPH = 300.0


@dataclass(frozen=True)
class Remark:
    """One thing that was said; ``nodes`` by name."""

    level: Severity
    what: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Opinion:
    """Of one graph. ``crash`` is how the process ended that had to look at it, ``None`` if it could."""

    remarks: tuple[Remark, ...] = ()
    crash: str | None = None


class Opinions:
    """Of several graphs, formed all at once when the first is wanted. ``graphs`` names those that may be loaded."""

    def __init__(self, graphs: Callable[[], Sequence[Path]]) -> None:
        self._graphs = graphs

    @cached_property
    def tensorrt(self) -> Mapping[Path, Opinion]:
        """Of the parser of the library that would build here; empty where there is none."""
        runtime = best_runtime()
        return {} if runtime is None else ask(TENSORRT_PARSER, self._graphs(), arguments=(runtime,))

    @cached_property
    def polygraphy(self) -> Mapping[Path, Opinion]:
        """Of ``polygraphy check lint``; empty where it is not installed."""
        return ask(POLYGRAPHY_LINT, self._graphs()) if is_polygraphy_installed() else {}


def is_polygraphy_installed() -> bool:
    """Whether its lint can run: it needs GraphSurgeon as well."""
    return all(find_spec(name) is not None for name in ("polygraphy", "onnx_graphsurgeon"))


def ask(
    program: str,
    graphs: Sequence[Path],
    *,
    arguments: Sequence[str] = (),
    seconds_per_graph: float = SECONDS_PER_GRAPH,
) -> Mapping[Path, Opinion]:
    """Run the module ``program`` on ``graphs``: it appends one line for each to the file that it is given first."""
    opinions: dict[Path, Opinion] = {}
    waiting = list(graphs)
    with TemporaryDirectory(prefix="nemotrt-") as folder:
        while waiting:
            answers = Path(folder) / f"{len(waiting)}.jsonl"
            answers.touch()
            command = [sys.executable, "-P", "-m", program, str(answers), *arguments, *map(str, waiting)]
            ended = _ended(command, seconds=seconds_per_graph * len(waiting))
            said = [_opinion(line) for line in answers.read_text(encoding="utf-8").splitlines()]
            opinions |= zip(waiting, said, strict=False)
            del waiting[: len(said)]
            if waiting:
                opinions[waiting.pop(0)] = Opinion(crash=ended)
    return opinions


def _ended(command: Sequence[str], *, seconds: float) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:.0f} s"
    return how_it_failed(done.returncode, done.stderr.decode(errors="replace"))


def _opinion(line: str) -> Opinion:
    return Opinion(tuple(Remark(one["level"], one["what"], tuple(one["nodes"])) for one in json.loads(line)))

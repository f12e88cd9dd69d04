"""What a failed build was about. TensorRT says it in its log only, and sometimes says another thing.

"Could not find any implementation for node" is, more often than not, too little memory for any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemotrt.errors import GraphError, MachineError, NemotrtError, ProfileError
from nemotrt.tensorrt_api import Log


@dataclass(frozen=True)
class _Cause:
    phrases: tuple[str, ...]
    error: Callable[..., NemotrtError]
    what: str
    fix: str


_CAUSES = (
    _Cause(
        ("outofmemory", "out of memory", "bad_alloc", "could not find any implementation"),
        MachineError,
        "the build ran out of memory",
        "free memory, or use a profile with a smaller largest batch or shorter clips",
    ),
    _Cause(
        ("cudaerror 35", "cudaerror 100", "no cuda-capable device", "cuda initialization failure"),
        MachineError,
        "the build needs a GPU and there is none that works",
        "build on the GPU host, or name compute capabilities instead of the present GPU",
    ),
    _Cause(
        ("optimization profile", "dimension mismatch for tensor"),
        ProfileError,
        "the optimization profile does not fit the graph",
        "compare the shapes of the component with the ranges of the profile",
    ),
)


def error_from_log(log: Log, *, graph: Path, library: str) -> NemotrtError:
    """The error to raise when ``library`` returned no plan, with its own words as evidence."""
    found = "; ".join(log.errors) or f"{library} gave no reason"
    for cause in _CAUSES:
        if any(phrase in found.lower() for phrase in cause.phrases):
            return cause.error(cause.what, where=graph, found=found, fix=cause.fix)
    return GraphError(
        f"{library} cannot build this graph",
        where=graph,
        found=found,
        fix="leave out the compute capability or the operator that the message names",
    )

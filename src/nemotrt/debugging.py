"""What stands behind ``nemotrt debug``: two bundles and clips in, the component and the node to blame out.

A, B, clips --> component swap --> a search within each component that differs --> report, inputs beside it
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from nemotrt.bench.component_swap import OutputDifference, Side, swap_components
from nemotrt.bench.debug_report import ComponentSearch, DebugReport
from nemotrt.bench.first_difference import find_first_difference, open_in_onnxruntime
from nemotrt.bench.polygraphy_lines import polygraphy_lines, save_inputs
from nemotrt.bench.system import Progress, silent
from nemotrt.bench.tolerances import TensorTolerance, tensor_tolerance_for
from nemotrt.bench.utterance import read_utterances
from nemotrt.bundle import Bundle, Decoder
from nemotrt.engines.audio import read_clips
from nemotrt.errors import MachineError, UsageError
from nemotrt.stages import proven_bundle


def debug_bundles(
    reference: Path,
    candidate: Path,
    audio: Path,
    *,
    output: Path,
    component: str | None = None,
    decoder: Decoder | None = None,
    threads: int | None = None,
    on_progress: Progress = silent,
) -> DebugReport:
    """Find what makes ``candidate`` differ from ``reference`` on the clips of ``audio``.

    ``output`` gets the report, and the inputs of every component that differs.

    Raises:
        UsageError: bundles of two checkpoints, a decoder or component that is not there.
        BundleError, AudioError, GraphError: something cannot be read or run.
        MachineError: ``output`` cannot be written.
    """
    left, right = proven_bundle(reference), proven_bundle(candidate)
    _refuse_two_checkpoints(left, right)
    tolerance = tensor_tolerance_for(left.meta.precision, right.meta.precision)
    utterances = read_utterances(read_clips(audio), sample_rate=left.meta.audio_front_end().sample_rate)
    swap = swap_components(
        Side(left),
        Side(right),
        utterances,
        tolerance=tolerance,
        decoder=decoder,
        only=component,
        threads=threads,
        on_progress=on_progress,
    )
    _make_folder(output)
    searcher = _Searcher(left, right, tolerance, output, threads=threads, on_progress=on_progress)
    searches = tuple(searcher.search(one.component, one.output) for one in swap.to_blame if one.output is not None)
    report = DebugReport(str(reference), str(candidate), swap, searches)
    report.write(output)
    return report


class _Searcher:
    """Searches within components, and leaves their inputs in ``folder``."""

    def __init__(
        self,
        left: Bundle,
        right: Bundle,
        tolerance: TensorTolerance,
        folder: Path,
        *,
        threads: int | None,
        on_progress: Progress,
    ) -> None:
        self._left, self._right, self._tolerance, self._folder = left, right, tolerance, folder
        self._threads, self._progress = threads, on_progress

    def search(self, component: str, output: OutputDifference) -> ComponentSearch:
        started = time.perf_counter()
        taken = [spec.name for spec in self._right.component(component).inputs]
        feeds = {name: output.call.feeds[name] for name in taken}
        graphs = self._left.graph_path(component), self._right.graph_path(component)
        opener = partial(open_in_onnxruntime, threads=self._threads)
        found = find_first_difference(
            *graphs,
            feeds,
            tolerance=self._tolerance,
            open_reference=opener,
            open_candidate=opener,
            on_progress=lambda what, fraction: self._progress(f"{component}: {what}", fraction),
        )
        seconds = time.perf_counter() - started
        saved = save_inputs(feeds, self._folder, component)
        first = found.first
        tensors = (output.tensor,) * 2 if first is None else (first.reference_tensor, first.tensor)
        difference = output.difference if first is None else first.difference
        lines = polygraphy_lines(*graphs, saved, feeds, tensors=tensors, max_abs=difference.allowed)
        return ComponentSearch(component, output.call.clip, output.call.number, found, seconds, saved, lines)


def _refuse_two_checkpoints(left: Bundle, right: Bundle) -> None:
    if left.meta.checkpoint_sha256 != right.meta.checkpoint_sha256:
        raise UsageError(
            "the two bundles were not made from the same checkpoint: everything differs",
            where=right.path,
            found=f"{right.meta.name}, and {left.meta.name}",
            fix="debug bundles of one checkpoint",
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as exc:
        raise UsageError(
            "the output cannot be a folder there", where=folder, found="a file", fix="give another"
        ) from exc
    except OSError as exc:
        raise MachineError(
            "the folder cannot be made", where=folder, found=exc.strerror, fix="give an output that is writable"
        ) from exc

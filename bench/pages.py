"""The page of a results file, whichever kind of document it holds."""

from __future__ import annotations

from pathlib import Path

from nemotrt.bench.nemo_export_page import write_nemo_export_page
from nemotrt.bench.nemo_export_results import DOCUMENT, read_nemo_export_results
from nemotrt.bench.record import read_json_object
from nemotrt.bench.report import write_report
from nemotrt.bench.results import read_results


def write_page(results: Path, page: Path) -> Path:
    """Write the page of ``results``, made by ``nemotrt run`` or ``nemotrt bench-export``, and return ``page``.

    Raises:
        InputError: the results cannot be read.
        UsageError, MachineError: the page cannot be written.
    """
    document = read_json_object(results, again="make them with: nemotrt run, or nemotrt bench-export")
    if document.get("document") == DOCUMENT:
        return write_nemo_export_page(read_nemo_export_results(results), page)
    return write_report(read_results(results), page)

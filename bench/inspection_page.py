"""An inspection as one page that needs nothing else: every graph by block, weights by type, limits.

Inspection --> templates/inspection.html.j2 + report.css --> page.html
"""

from __future__ import annotations

from pathlib import Path

from nemotrt.bench import quantities
from nemotrt.bench.inspection import Inspection
from nemotrt.bench.inspection_text import inspection_lines, tensor_text
from nemotrt.bench.page_template import render_page
from nemotrt.bench.text_file import write_whole
from nemotrt.trt.inspection.graph_facts import GraphFacts

_TEMPLATE = "inspection.html.j2"


def write_inspection_page(inspection: Inspection, path: Path) -> Path:
    """Write the page whole or not at all, and return ``path``. Raises as ``write_whole``."""
    return write_whole(render_inspection_page(inspection), path)


def render_inspection_page(inspection: Inspection) -> str:
    """The page as a string."""
    return render_page(
        _TEMPLATE,
        filters={"size": quantities.size, "number": quantities.whole, "tensor": tensor_text, "tiles": _tiles},
        inspection=inspection,
        engine_lines=tuple(inspection_lines(inspection)) if inspection.engine is not None else (),
    )


def _tiles(facts: GraphFacts) -> tuple[tuple[str, str], ...]:
    """The figures at the top of a graph."""
    return (
        (f"{facts.nodes:,}", f"nodes, {len(facts.ops)} kinds of operator"),
        (f"{facts.parameters:,}", "parameters"),
        (quantities.size(facts.weight_bytes), "weights"),
        (quantities.size(facts.file_bytes), "graph file"),
    )

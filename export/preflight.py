"""Is there memory and disk for an export? Asked before it begins.

    graphs, archive -> Needs -> refused with the figures, or not

Peaks measured: 117 MiB where the largest weight has 5 MiB, 175 where 20, 308 where 96 (a checkpoint of 2.4 GB). So
at most about 100 MiB and four times the largest weight: one is held at a time, as stored, as float32, in its new order.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import psutil

from nemotrt.bundle import ComponentName
from nemotrt.errors import MachineError
from nemotrt.export.components import VARIANT_OF
from nemotrt.export.disk_room import refuse_full_disk, size_text
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.options import Needs
from nemotrt.export.weights import Weights
from nemotrt.processes import available_memory_bytes

_MEBIBYTE = 1 << 20
_BASE_BYTES = 128 * _MEBIBYTE
_COPIES_OF_A_WEIGHT = 5
_RUNTIME_BYTES = 64 * _MEBIBYTE  # ONNX Runtime itself
_RUNTIME_COPIES = 1.5  # it holds the weights, and lays some out anew: 1.05 of 2.4 GB measured
_GRAPH_BYTES = _MEBIBYTE  # nodes, small constants, text files


def needs_of(graphs: Mapping[ComponentName, GraphBuilder], weights: Weights, *, run: Collection[GraphBuilder]) -> Needs:
    """What it takes to write ``graphs``, and to run those of ``run`` in ONNX Runtime, one after the other."""
    largest = max([weights.largest_storage_bytes, *(graph.largest_weight_bytes for graph in graphs.values())])
    running = max((_RUNTIME_BYTES + int(_RUNTIME_COPIES * 4 * graph.parameters) for graph in run), default=0)
    return Needs(
        memory_bytes=_BASE_BYTES + max(_COPIES_OF_A_WEIGHT * largest, running),
        disk_bytes=sum(
            _GRAPH_BYTES + (0 if name in VARIANT_OF else 4 * graph.parameters) for name, graph in graphs.items()
        ),
    )


def refuse_without_room(needs: Needs, folder: Path) -> None:
    """Return if this process can take that much, and the file system of ``folder`` too.

    Raises:
        MachineError: with what is needed and what there is.
    """
    held = psutil.Process(os.getpid()).memory_info().rss
    left = available_memory_bytes()
    if needs.memory_bytes > held + left:
        raise MachineError(
            "not enough memory to export the checkpoint",
            found=f"about {size_text(needs.memory_bytes)} needed, {size_text(held)} held and {size_text(left)} free",
            fix="end other programs, raise the memory limit of the container, or use a machine with more",
        )
    refuse_full_disk(needs.disk_bytes, folder, what="the bundle", fix="free disk space, or give another output folder")

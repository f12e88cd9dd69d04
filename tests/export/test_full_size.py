"""A checkpoint of 0.6 billion random parameters through export, ONNX Runtime and TensorRT. Run with: make full-size

Every step that holds weights runs in a process of its own, and every file is removed once it has been measured:
5 GB of disk and 12 GB of memory are enough.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import full_size_programs
import psutil
import pytest
from full_size_checkpoint import SIZES

from nemotrt.bench.exporters import export_with_nemo, export_with_nemotrt
from nemotrt.bench.onnx_files import count_nodes
from nemotrt.bundle import Bundle, load_bundle
from nemotrt.child_process import Finished, run_measured
from nemotrt.nemo_interpreter import find_nemo

pytestmark = [pytest.mark.full_size, pytest.mark.timeout(3600)]

SIZE = "parakeet-tdt-0.6b"
GIGABYTE = 1e9
# The order of FP32 sums through 24 layers, on frames that a norm has brought to the order of 1.
ENCODER_TOLERANCE = 1e-5
FREE_BYTES = {"disk": 12e9, "NeMo's export": 8e9, "TensorRT": 12e9}

Figure = Callable[[str], None]


@dataclass(frozen=True)
class Export:
    """The checkpoint, what exporting it cost, and the bundle."""

    checkpoint: Path
    finished: Finished
    bundle: Bundle


def program(name: str, *arguments: object, folder: Path) -> Finished:
    """Run one of ``full_size_programs`` in a process of its own."""
    command = [sys.executable, full_size_programs.__file__, name, *map(str, arguments)]
    finished = run_measured(command, folder=folder, timeout_seconds=1800)
    assert finished.failure is None, finished.failure
    return finished


def answer(finished: Finished) -> dict[str, float]:
    """The JSON object that the program printed last."""
    return json.loads(finished.stdout.splitlines()[-1])


def require_memory(what: str) -> None:
    wanted, available = FREE_BYTES[what] / GIGABYTE, psutil.virtual_memory().available / GIGABYTE
    if available < wanted:
        pytest.skip(f"{what} needs {wanted:.0f} GB of memory, {available:.0f} GB are free")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    folder = tmp_path_factory.mktemp("full-size")
    if shutil.disk_usage(folder).free < FREE_BYTES["disk"]:
        pytest.skip(f"a checkpoint and its exports need {FREE_BYTES['disk'] / GIGABYTE:.0f} GB of disk")
    checkpoint = folder / "random.nemo"
    program("checkpoint", SIZE, checkpoint, folder=folder)
    yield Export(checkpoint, *export_with_nemotrt(checkpoint, folder, components=("all",)))
    shutil.rmtree(folder)


def test_the_export_takes_seconds_and_less_than_a_gigabyte(export: Export, figure: Figure) -> None:
    finished, bundle = export.finished, export.bundle
    written = {component.data: component.parameters for component in bundle.meta.components.values()}
    parameters = sum(written.values())  # a variant shares the data file of its component
    figure(
        f"export of {parameters / 1e6:.0f} M parameters: {finished.seconds:.1f} s (goal 15 s), "
        f"peak {finished.peak_rss_bytes / GIGABYTE:.2f} GB (limit 1 GB)"
    )
    assert finished.peak_rss_bytes <= GIGABYTE


def test_each_component_is_one_graph_and_at_most_one_data_file(export: Export) -> None:
    meta = export.bundle.meta
    assert {"encoder", "encoder_nomask", "decoder_joint", "rnnt_step", "greedy_step"} < meta.components.keys()
    names = {name for component in meta.components.values() for name in component.files}
    assert all(len(component.files) <= 2 for component in meta.components.values())
    onnx_files = {path.name for path in export.bundle.path.iterdir() if ".onnx" in path.name}
    assert sorted(names) == sorted(onnx_files)
    assert meta.components["encoder"].files == ("encoder.onnx", "encoder.onnx.data")
    assert meta.files["encoder.onnx"].size_bytes < 1e6


def test_the_encoder_is_as_small_a_graph_as_its_layers_allow(export: Export, figure: Figure) -> None:
    layers = SIZES[SIZE].layers
    nodes = count_nodes(export.bundle.graph_path("encoder"))
    figure(f"encoder of {layers} layers: {nodes} nodes (limit {60 * layers + 80})")
    assert nodes <= 60 * layers + 80


def test_onnx_runtime_agrees_with_nemo(export: Export, tmp_path: Path, figure: Figure) -> None:
    pytest.importorskip("nemo")
    require_memory("NeMo's export")
    wanted = tmp_path / "wanted.npz"
    program("nemo-encoder", SIZE, export.checkpoint, wanted, folder=tmp_path)
    found = answer(program("compare", export.bundle.graph_path("encoder"), wanted, folder=tmp_path))
    figure(
        f"encoder of 0.6 billion parameters against NeMo: worst difference {found['max_abs']:.1e} "
        f"(bound {ENCODER_TOLERANCE:g}), magnitude {found['magnitude']:.1f}, lengths equal"
    )
    assert found["lengths_equal"]
    assert found["max_abs"] <= ENCODER_TOLERANCE


def test_nemos_own_export_takes_three_times_as_long(export: Export, tmp_path: Path, figure: Figure) -> None:
    pytest.importorskip("nemo")
    require_memory("NeMo's export")
    nemo = find_nemo(Path(sys.executable), folder=tmp_path)
    finished, files = export_with_nemo(nemo, export.checkpoint, tmp_path)
    count, nodes = sum(1 for _ in files.folder.iterdir()), count_nodes(files.graph)
    shutil.rmtree(files.folder)
    figure(
        f"NeMo's own export: {finished.seconds:.1f} s, {nemo.startup_seconds:.1f} s of it imports, "
        f"peak {finished.peak_rss_bytes / GIGABYTE:.2f} GB, {count} files, encoder of {nodes} nodes; "
        f"ours takes {export.finished.seconds / finished.seconds:.2f} of the seconds (limit 0.33)"
    )
    assert export.finished.seconds <= finished.seconds / 3
    assert export.finished.peak_rss_bytes <= finished.peak_rss_bytes / 3


def test_tensorrt_builds_the_encoder_in_float16(export: Export, tmp_path: Path, figure: Figure) -> None:
    pytest.importorskip("tensorrt_rtx")
    require_memory("TensorRT")
    half = tmp_path / "fp16"
    cast = program("cast", export.bundle.path, half, folder=tmp_path)
    built = program("build", half, folder=tmp_path)
    size_bytes = load_bundle(half).meta.files["encoder.onnx.data"].size_bytes
    shutil.rmtree(half)
    plan = answer(built)
    figure(
        f"FP16 cast of the bundle: {cast.seconds:.1f} s, peak {cast.peak_rss_bytes / GIGABYTE:.2f} GB, "
        f"encoder {size_bytes / GIGABYTE:.2f} GB"
    )
    figure(
        f"TensorRT-RTX, FP16 encoder of 0.6 billion parameters: {plan['layers']} layers, {plan['seconds']:.1f} s, "
        f"peak {built.peak_rss_bytes / GIGABYTE:.1f} GB, plan {plan['bytes'] / GIGABYTE:.2f} GB"
    )
    assert size_bytes < 0.52 * export.bundle.meta.files["encoder.onnx.data"].size_bytes
    assert plan["bytes"] >= 0.9 * size_bytes

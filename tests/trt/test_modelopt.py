"""NVIDIA Model Optimizer as the engine. It is not installed where the tests run: a stand-in takes the same options
(https://nvidia.github.io/Model-Optimizer/guides/8_autocast.html) and types by our own rules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nemotrt.bundle import Bundle
from nemotrt.errors import GraphError, MachineError
from nemotrt.trt.precision import CastPlan, cast_bundle

STAND_IN = """
import argparse, re
import onnx_ir as ir
from nemotrt.trt.half_cast import cast_to_half
from nemotrt.trt.half_types import BFLOAT16, FLOAT16

parser = argparse.ArgumentParser()
parser.add_argument("--onnx_path", required=True)
parser.add_argument("--output_path", required=True)
parser.add_argument("--low_precision_type", choices=["fp16", "bf16"], default="fp16")
parser.add_argument("--nodes_to_exclude", nargs="*", default=[])
parser.add_argument("--keep_io_types", action="store_true")
options = parser.parse_args()
if not options.keep_io_types:
    parser.error("this test is about bundles, whose inputs and outputs stay")
model = ir.load(options.onnx_path)
keep = [n.name for n in model.graph if any(re.match(p, n.name) for p in options.nodes_to_exclude)]
cast_to_half(model, FLOAT16 if options.low_precision_type == "fp16" else BFLOAT16, keep=keep)
ir.save(model, options.output_path, external_data="typed.onnx.data")
"""


def interpreter_with(folder: Path, program: str) -> Path:
    """A Python whose ``modelopt.onnx.autocast`` is ``program``."""
    module = folder / "packages" / "modelopt" / "onnx" / "autocast"
    module.mkdir(parents=True)
    for package in (module, module.parent, module.parents[1]):
        (package / "__init__.py").touch()
    (module / "__main__.py").write_text(program, encoding="utf-8")
    python = folder / "python"
    paths = ":".join([str(folder / "packages"), *filter(None, sys.path)])
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{paths}" exec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return python


def test_what_model_optimizer_wrote_becomes_a_bundle(tdt_bundle: Bundle, tmp_path: Path) -> None:
    python = interpreter_with(tmp_path, STAND_IN)
    keep = ("layers.1.conv", "lstm.0")
    typed = cast_bundle(tdt_bundle, tmp_path / "typed", CastPlan(keep=keep, modelopt_python=python))
    ours = cast_bundle(tdt_bundle, tmp_path / "ours", CastPlan(keep=keep))
    assert typed.meta.tools["typed by"] == f"NVIDIA Model Optimizer of {python}"
    assert typed.meta.tools["float32 nodes"] == ours.meta.tools["float32 nodes"]
    assert typed.meta.components == ours.meta.components
    sizes = [bundle.meta.files["encoder.onnx.data"].size_bytes for bundle in (typed, ours)]
    assert sizes[0] == sizes[1] < 0.6 * tdt_bundle.meta.files["encoder.onnx.data"].size_bytes


def test_an_interpreter_without_it_is_answered_with_what_to_install(tdt_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"no NVIDIA Model Optimizer(.|\n)*modelopt(.|\n)*pip install") as refusal:
        cast_bundle(tdt_bundle, tmp_path / "typed", CastPlan(modelopt_python=Path(sys.executable)))
    assert "--modelopt-python" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_an_interpreter_that_is_not_there_is_answered_alike(tdt_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"no NVIDIA Model Optimizer(.|\n)*gone"):
        cast_bundle(tdt_bundle, tmp_path / "typed", CastPlan(modelopt_python=tmp_path / "gone"))


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("import sys\nif '--help' not in sys.argv: raise ValueError('no such operator')", "no such operator"),
        ("", "wrote nothing"),
    ],
)
def test_a_graph_that_it_does_not_take_is_named_and_nothing_is_left(
    tdt_bundle: Bundle, tmp_path: Path, program: str, found: str
) -> None:
    python = interpreter_with(tmp_path / "environment", program)
    with pytest.raises(GraphError, match=rf"encoder\.onnx(.|\n)*{found}"):
        cast_bundle(tdt_bundle, tmp_path / "typed", CastPlan(modelopt_python=python))
    assert [entry.name for entry in tmp_path.iterdir()] == ["environment"]


def test_a_graph_of_other_inputs_is_refused(tdt_bundle: Bundle, tmp_path: Path) -> None:
    python = interpreter_with(
        tmp_path / "environment",
        STAND_IN.replace("cast_to_half(", "model.graph.inputs[0].name = 'signal'\ncast_to_half("),
    )
    with pytest.raises(GraphError, match="signal is not in the contract"):
        cast_bundle(tdt_bundle, tmp_path / "typed", CastPlan(modelopt_python=python))

"""A float32 bundle to a half precision bundle: precision is written into the graphs, where every runtime obeys it.

Only the arithmetic changes: inputs and outputs stay float32 and int64, so both run through the same code.
The mel front end is copied: it runs in float32 everywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Literal

import onnx_ir as ir

from nemotrt.bundle import Bundle, BundleMeta, ComponentName, ComponentSpec, FileRecord
from nemotrt.bundle_writer import BundleWriter
from nemotrt.errors import GraphError, UsageError
from nemotrt.graph_contract import check_graph
from nemotrt.trt.component_model import load_component, unreadable
from nemotrt.trt.half_cast import CastReport, cast_to_half
from nemotrt.trt.half_types import BFLOAT16, FLOAT16
from nemotrt.trt.keep_list import read_keep_list, refuse_unknown_names
from nemotrt.trt.modelopt import cast_with_modelopt, refuse_missing_modelopt

HalfPrecision = Literal["fp16", "bf16"]
HALF_TYPES: Mapping[HalfPrecision, ir.DataType] = MappingProxyType({"fp16": FLOAT16, "bf16": BFLOAT16})

KEPT_IN_FLOAT32: frozenset[ComponentName] = frozenset({"preprocessor"})
LEFT_OUT: frozenset[ComponentName] = frozenset({"encoder_nomask", "ctc_nomask"})
"""Variants that share a float32 data file. They make ONNX Runtime faster on a CPU, where half precision does not."""

INLINE_BYTES = 4096
"""Weights up to this size stay inside the graph file: shape inference has to read them."""

_BF16_NOTE = "bfloat16 needs a GPU: ONNX Runtime has next to no bfloat16 operators on a CPU"

OnComponent = Callable[[str, CastReport], None]


@dataclass(frozen=True)
class CastPlan:
    """What to write. ``keep`` are names of nodes and scopes that stay in float32.

    ``modelopt_python``, if given, is the interpreter whose NVIDIA Model Optimizer types the graphs instead.
    """

    to: HalfPrecision = "fp16"
    keep: tuple[str, ...] = ()
    modelopt_python: Path | None = None


def cast_plan(to: Literal["fp16", "bf16", "mixed"], *, keep: Path | None, modelopt_python: Path | None) -> CastPlan:
    """The plan with the keep list of a file. ``mixed`` is float16 that must have one.

    Raises:
        UsageError: ``mixed`` without a keep list, or a file that is none.
    """
    if to == "mixed" and keep is None:
        raise UsageError(
            "mixed precision is float16 with a list of what stays float32",
            found="--to mixed without --keep",
            fix="make the list: nemotrt precision-search BUNDLE --audio CLIPS -o keep.yaml",
        )
    names = () if keep is None else read_keep_list(keep)
    return CastPlan("fp16" if to == "mixed" else to, names, modelopt_python)


def cast_bundle(
    source: Bundle,
    destination: Path,
    plan: CastPlan = CastPlan(),
    *,
    overwrite: bool = False,
    on_component: OnComponent | None = None,
) -> Bundle:
    """Write the half precision twin of ``source`` to ``destination``, all of it or nothing.

    ``on_component`` receives the name and report of each component once it is written; weights that had to
    stay in float32 are in the report and in the metadata (``tools``).

    Raises:
        UsageError: the source is in half precision already, the destination is there, or nothing has a name to keep.
        GraphError: a graph that cannot be typed.
        MachineError: the destination cannot be written, or Model Optimizer is not where it was said to be.
    """
    refuse_half_precision(source)
    components = {name: spec for name, spec in source.meta.components.items() if name not in LEFT_OUT}
    typed = sorted(components.keys() - KEPT_IN_FLOAT32)
    if plan.keep:
        refuse_unknown_names(plan.keep, (load_component(source.graph_path(name)).graph for name in typed))
    if plan.modelopt_python is not None:
        refuse_missing_modelopt(plan.modelopt_python)
    with BundleWriter(destination, overwrite=overwrite) as writer:
        dropped = LEFT_OUT & source.meta.components.keys()
        replaced = {file for name in (*typed, *dropped) for file in source.component(name).files}
        for file in source.meta.files:
            if file not in replaced:
                shutil.copyfile(source.path / file, writer.folder / file)
        kept: list[str] = []
        for name in typed:
            components[name], report = _cast_component(source, name, plan, writer.folder)
            kept.extend(report.kept_float32)
            if on_component is not None:
                on_component(name, report)
        return writer.publish(lambda files: _meta(source.meta, plan, components, kept, files))


def refuse_half_precision(source: Bundle) -> None:
    """Only float32 can be cast.

    Raises:
        UsageError: the bundle was cast already.
    """
    if source.meta.precision != "fp32":
        raise UsageError(
            "only a float32 bundle can be cast to half precision",
            where=source.path,
            found=f"precision {source.meta.precision}",
            fix="give the bundle that was exported from the checkpoint",
        )


def typed_component(source: Bundle, name: str, plan: CastPlan) -> tuple[ir.Model, CastReport]:
    """The graph of a component in the types of ``plan``, in memory; its weights are read when it is saved.

    Raises:
        GraphError: the graph cannot be read, or not be typed.
    """
    path = source.graph_path(name)
    try:
        model = load_component(path)
        return model, cast_to_half(model, HALF_TYPES[plan.to], keep=frozenset(plan.keep))
    except GraphError as exc:
        raise GraphError(exc.what, where=path, found=exc.found, fix=exc.fix) from exc
    except (OSError, ValueError) as exc:
        raise unreadable(path, exc) from exc


def save_component(model: ir.Model, component: ComponentSpec, folder: Path) -> ComponentSpec:
    """Write a graph and its weights, one at a time. The component as it is now: small weights need no file."""
    ir.save(model, folder / component.graph, external_data=component.data, size_threshold_bytes=INLINE_BYTES)
    data = component.data if component.data and (folder / component.data).exists() else None
    return component.model_copy(update={"data": data})


def _cast_component(source: Bundle, name: str, plan: CastPlan, folder: Path) -> tuple[ComponentSpec, CastReport]:
    spec = source.component(name)
    if plan.modelopt_python is None:
        model, report = typed_component(source, name, plan)
        return save_component(model, spec, folder), report
    with TemporaryDirectory(dir=folder) as work:
        model, report = cast_with_modelopt(
            source.graph_path(name), plan.modelopt_python, to=plan.to, keep=plan.keep, work=Path(work)
        )
        spec = save_component(model, spec, folder)
    check_graph(folder / spec.graph, spec)
    return spec, report


def _tools(plan: CastPlan, kept_weights: list[str]) -> dict[str, str]:
    """What typed the graphs, and what it left in float32."""
    tools = {"onnx-ir": ir.__version__}
    if plan.modelopt_python is not None:
        tools["typed by"] = f"NVIDIA Model Optimizer of {plan.modelopt_python}"
    for key, names in (("float32 weights", kept_weights), ("float32 nodes", plan.keep)):
        if names:
            tools[key] = ", ".join(names)
    return tools


def _meta(
    meta: BundleMeta,
    plan: CastPlan,
    components: dict[ComponentName, ComponentSpec],
    kept_weights: list[str],
    files: dict[str, FileRecord],
) -> BundleMeta:
    return meta.model_copy(
        update={
            "precision": plan.to,
            "components": components,
            "notes": (*meta.notes, _BF16_NOTE) if plan.to == "bf16" else meta.notes,
            "files": files,
            "cast_from": meta.fingerprint(),
            "tools": {**meta.tools, **_tools(plan, kept_weights)},
        }
    )

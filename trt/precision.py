"""A float32 bundle to a float16 bundle: precision is written into the graphs, where every runtime obeys it.

Only the arithmetic changes: inputs and outputs stay float32 and int64, so both run through the same code.
The mel front end is copied: it runs in float32 everywhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

from nemotrt.bundle import Bundle, BundleMeta, ComponentName, ComponentSpec, FileRecord
from nemotrt.bundle_writer import BundleWriter
from nemotrt.errors import GraphError, UsageError
from nemotrt.trt.float16_cast import Float16Report, cast_to_float16

KEPT_IN_FLOAT32: frozenset[ComponentName] = frozenset({"preprocessor"})
LEFT_OUT: frozenset[ComponentName] = frozenset({"encoder_nomask", "ctc_nomask"})
"""Variants that share a float32 data file. They make ONNX Runtime faster on a CPU, where half precision does not."""

INLINE_BYTES = 4096
"""Weights up to this size stay inside the graph file: shape inference has to read them."""

OnComponent = Callable[[str, Float16Report], None]


def cast_bundle_to_fp16(
    source: Bundle, destination: Path, *, overwrite: bool = False, on_component: OnComponent | None = None
) -> Bundle:
    """Write the float16 twin of ``source`` to ``destination``, all of it or nothing.

    ``on_component`` receives the name and report of each component once it is written; weights that had to
    stay in float32 are in the report and in the metadata (``tools``).

    Raises:
        UsageError: the source is in float16 already, or the destination is there.
        GraphError: a graph that cannot be typed.
        MachineError: the destination cannot be written.
    """
    if source.meta.precision != "fp32":
        raise UsageError(
            "only a float32 bundle can be cast to float16",
            where=source.path,
            found=f"precision {source.meta.precision}",
            fix="give the bundle that was exported from the checkpoint",
        )
    with BundleWriter(destination, overwrite=overwrite) as writer:
        components = {name: spec for name, spec in source.meta.components.items() if name not in LEFT_OUT}
        typed = components.keys() - KEPT_IN_FLOAT32
        dropped = LEFT_OUT & source.meta.components.keys()
        replaced = {file for name in typed | dropped for file in source.component(name).files}
        for file in source.meta.files:
            if file not in replaced:
                shutil.copyfile(source.path / file, writer.folder / file)
        kept: list[str] = []
        for name in sorted(typed):
            components[name], report = _cast_component(source, components[name], writer.folder)
            kept.extend(report.kept_float32)
            if on_component is not None:
                on_component(name, report)
        return writer.publish(lambda files: _meta(source.meta, components, kept, files))


def _cast_component(source: Bundle, component: ComponentSpec, folder: Path) -> tuple[ComponentSpec, Float16Report]:
    path = source.path / component.graph
    try:
        model = ir.load(path)
        report = cast_to_float16(model)
    except GraphError as exc:
        raise GraphError(exc.what, where=path, found=exc.found, fix=exc.fix) from exc
    except (OSError, ValueError, DecodeError) as exc:
        raise GraphError(
            "the graph or its weights cannot be read",
            where=path,
            found=str(exc),
            fix="export the checkpoint again",
        ) from exc
    ir.save(model, folder / component.graph, external_data=component.data, size_threshold_bytes=INLINE_BYTES)
    data = component.data if component.data and (folder / component.data).exists() else None
    return component.model_copy(update={"data": data}), report


def _meta(
    meta: BundleMeta,
    components: dict[ComponentName, ComponentSpec],
    kept: list[str],
    files: dict[str, FileRecord],
) -> BundleMeta:
    tools = {"onnx-ir": ir.__version__, **({"float32 weights": ", ".join(kept)} if kept else {})}
    return meta.model_copy(
        update={
            "precision": "fp16",
            "components": components,
            "files": files,
            "cast_from": meta.fingerprint(),
            "tools": {**meta.tools, **tools},
        }
    )

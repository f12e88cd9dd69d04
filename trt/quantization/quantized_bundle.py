"""A float32 bundle to a quantized one, published whole or not at all.

    bundle --selection--> MatMuls by component --calibrate--> amplitudes --quantize_products--> quantized bundle

Inputs, outputs and all that is not a chosen product stay as they are, so both bundles run through the same code.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from nemotrt.bundle import Bundle, BundleMeta, ComponentName, ComponentSpec, FileRecord, QuantizationRecord, Sha256
from nemotrt.bundle_writer import BundleWriter
from nemotrt.errors import GraphError, UsageError
from nemotrt.trt.component_model import load_component
from nemotrt.trt.precision import INLINE_BYTES, LEFT_OUT
from nemotrt.trt.quantization.amplitudes import Amplitude, Calibration, bounds_of
from nemotrt.trt.quantization.audit import check_quantized
from nemotrt.trt.quantization.number_formats import FORMATS, FormatName
from nemotrt.trt.quantization.quantize_linear import quantize_products
from nemotrt.trt.quantization.selection import select_from_bundle

Products = Mapping[ComponentName, tuple[str, ...]]
"""The names of the MatMuls to quantize, by component."""

_FP8_NOTE = (
    "float8 outside of nemotrt: switch off ONNX Runtime's graph optimizations (ORT_DISABLE_ALL), which take it for "
    "integers; TensorRT needs a GPU of compute capability 8.9 or later"
)


@dataclass(frozen=True)
class QuantizationOrder:
    """What to quantize and how. ``keep`` are the scopes that stay in float32 (see ``selection``).

    ``weight_only`` leaves the activations in float32 and needs no calibration.
    """

    to: FormatName = "int8"
    calibration: Calibration = "percentile"
    weight_only: bool = False
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Calibrated:
    """What audio showed: amplitudes by component and activation, and which audio it was."""

    amplitudes: Mapping[str, Mapping[str, Amplitude]]
    clips: int
    audio_sha256: Sha256


def quantize_bundle(
    source: Bundle,
    destination: Path,
    order: QuantizationOrder,
    *,
    calibrate: Callable[[Products], Calibrated] | None = None,
    overwrite: bool = False,
    on_component: Callable[[str], None] | None = None,
) -> Bundle:
    """Write the quantized twin of ``source`` to ``destination``, all of it or nothing.

    ``calibrate`` is called once all that can be refused before was: it observes the activations.

    Raises:
        UsageError: the source is not in float32, a scope that does not exist, nothing is left to quantize, activations
            without a calibration, or the destination is there.
        GraphError: a graph or weight that cannot be quantized, an activation that was not calibrated.
        MachineError: the destination cannot be written.
    """
    _check_order(source, order, is_calibrated=calibrate is not None)
    products = select_from_bundle(source, order.keep)
    with BundleWriter(destination, overwrite=overwrite) as writer:
        calibrated = None if calibrate is None else calibrate(products)
        components = {name: spec for name, spec in source.meta.components.items() if name not in LEFT_OUT}
        rewritten = (products.keys() | LEFT_OUT) & source.meta.components.keys()
        replaced = {file for name in rewritten for file in source.component(name).files}
        for file in source.meta.files.keys() - replaced:
            shutil.copyfile(source.path / file, writer.folder / file)
        for name, nodes in products.items():
            amplitudes = None if calibrated is None else calibrated.amplitudes.get(name, {})
            components[name] = _quantize_component(
                source, components[name], frozenset(nodes), order, amplitudes, writer.folder
            )
            if on_component is not None:
                on_component(name)

        def sealed(files: dict[str, FileRecord]) -> BundleMeta:
            meta = _meta(source.meta, components, order, calibrated, files)
            check_quantized(Bundle(writer.folder, meta))
            return meta

        return writer.publish(sealed)


def _check_order(source: Bundle, order: QuantizationOrder, *, is_calibrated: bool) -> None:
    if source.meta.precision != "fp32":
        raise UsageError(
            "only a float32 bundle can be quantized",
            where=source.path,
            found=f"precision {source.meta.precision}",
            fix="give the bundle that was exported from the checkpoint",
        )
    if is_calibrated == order.weight_only:
        raise UsageError(
            "activations are calibrated on real audio, and weights alone need none",
            where=source.path,
            found="audio, and weights only" if is_calibrated else "no audio",
            fix="give clips of the kind the model will hear (--audio), or quantize weights only (--weight-only)",
        )


def _quantize_component(
    source: Bundle,
    component: ComponentSpec,
    products: frozenset[str],
    order: QuantizationOrder,
    amplitudes: Mapping[str, Amplitude] | None,
    folder: Path,
) -> ComponentSpec:
    path = source.path / component.graph
    model = load_component(path)
    try:
        quantize_products(
            model,
            [node for node in model.graph if node.name in products],
            number_format=FORMATS[order.to],
            bounds=None if amplitudes is None else bounds_of(amplitudes, order.calibration),
        )
    except GraphError as exc:
        raise GraphError(exc.what, where=path, found=exc.found, fix=exc.fix) from exc
    ir.save(model, folder / component.graph, external_data=component.data, size_threshold_bytes=INLINE_BYTES)
    data = component.data if component.data and (folder / component.data).exists() else None
    return component.model_copy(update={"data": data})


def _meta(
    meta: BundleMeta,
    components: dict[ComponentName, ComponentSpec],
    order: QuantizationOrder,
    calibrated: Calibrated | None,
    files: dict[str, FileRecord],
) -> BundleMeta:
    record = QuantizationRecord(
        weight_only=calibrated is None,
        calibration=None if calibrated is None else order.calibration,
        clips=0 if calibrated is None else calibrated.clips,
        audio_sha256=None if calibrated is None else calibrated.audio_sha256,
        kept_float=order.keep,
    )
    return meta.model_copy(
        update={
            "precision": order.to,
            "components": components,
            "files": files,
            "cast_from": meta.fingerprint(),
            "quantized": record,
            "notes": (*meta.notes, _FP8_NOTE) if order.to == "fp8" else meta.notes,
            "tools": {**meta.tools, "onnx-ir": ir.__version__},
        }
    )

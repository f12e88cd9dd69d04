"""A component of a bundle on ONNX Runtime."""

from __future__ import annotations

from nemotrt.bundle import Bundle
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.padding_aware_runner import VARIANT_SUFFIX, PaddingAwareRunner
from nemotrt.engines.runner import Runner


def open_component(bundle: Bundle, name: str, *, threads: int | None) -> Runner:
    """A runner of component ``name``; with its variant without masks behind it, if the bundle has one.

    Raises:
        BundleError, GraphError: as ``OnnxRuntimeRunner``.
    """
    spec, variant = bundle.component(name), f"{name}{VARIANT_SUFFIX}"
    if variant not in bundle.meta.components:
        return OnnxRuntimeRunner(bundle.graph_path(name), spec=spec, threads=threads)
    return PaddingAwareRunner(
        OnnxRuntimeRunner(bundle.graph_path(variant), spec=bundle.component(variant), threads=threads),
        lambda: OnnxRuntimeRunner(bundle.graph_path(name), spec=spec, threads=threads),
        inputs=spec.inputs,
        outputs=spec.outputs,
        spec=bundle.meta.encoder,
    )

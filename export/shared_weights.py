"""Two graphs over one data file: a variant of a component takes its weights from where they are written already."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir


def share_weights(model: ir.Model, written: Path) -> None:
    """Point the weights of ``model`` to the data file of the graph ``written``, by name; small ones stay in the graph.

    Raises:
        ValueError: a weight of that name has another type or shape there.
    """
    initializers = ir.load(written).graph.initializers
    external = {name: value.const_value for name, value in initializers.items()}
    for name, value in model.graph.initializers.items():
        found, own = external.get(name), value.const_value
        if isinstance(found, ir.ExternalTensor) and isinstance(own, ir.LazyTensor):
            if (found.dtype, found.shape) != (own.dtype, own.shape):
                raise ValueError(f"{name}: {own.dtype}{own.shape}, in {written.name} {found.dtype}{found.shape}")
            value.const_value = found

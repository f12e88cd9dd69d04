"""A component that was traced from NeMo's modules: read from its file, proved, and then saved like an emitted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from nemotrt.bundle import EncoderSpec, TensorSpec
from nemotrt.errors import GraphError

USE_NATIVE = "use the native front end (leave --frontend out), or another version of NeMo and torch (--nemo-python)"

# Between NeMo's modules and the graph of them, relative to the largest value. Rounding stays a hundred times below it;
# a size that the trace took for a constant does not.
_SAMPLE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class TracedGraph:
    """The graph at ``path``, to be saved as component ``name``. Beside it stands a sample of what the module says."""

    name: str
    path: Path
    input_specs: tuple[TensorSpec, ...]
    output_specs: tuple[TensorSpec, ...]

    @cached_property
    def parameters(self) -> int:
        """Numbers in the graph: the exporter folds some of the module's into others."""
        initializers = ir.load(self.path).graph.initializers.values()
        return sum(prod(one.shape.numpy()) for one in initializers if one.shape and one.dtype == ir.DataType.FLOAT)

    def model(self) -> ir.Model:
        """The graph, with the contract's axis names; weights are read when it is saved.

        Raises:
            GraphError: its inputs or outputs are not those of the contract.
        """
        model = ir.load(self.path)
        model.graph.name = self.name
        sides = ((self.input_specs, model.graph.inputs), (self.output_specs, model.graph.outputs))
        for specs, values in sides:
            if [value.name for value in values] != [spec.name for spec in specs]:
                raise self._wrong(", ".join(str(value.name) for value in values))
            for spec, value in zip(specs, values, strict=True):
                if not _fits(spec, value):
                    raise self._wrong(f"{value.name} {value.type} {value.shape}, not {spec.dtype}{list(spec.shape)}")
                value.shape = ir.Shape(spec.shape)
        return model

    def check(self, spec: EncoderSpec) -> None:
        """Run the graph in ONNX Runtime on the sample, whose sizes are not those of the trace.

        Raises:
            GraphError: other numbers than the module's, or lengths that the contract does not foresee.
        """
        import onnxruntime

        with np.load(self.path.with_suffix(".npz")) as arrays:
            sample = dict(arrays)
        session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        feeds = {name: sample[name] for name in (tensor.name for tensor in session.get_inputs())}
        names = [one.name for one in self.output_specs]
        _compare(self.name, names, session.run(names, feeds), sample)
        if "encoded_lengths" in sample:
            _check_lengths(self.name, spec, sample)

    def _wrong(self, found: str) -> GraphError:
        what = f"NeMo's graph of {self.name} does not have the contract's inputs and outputs"
        return GraphError(what, found=found, fix=USE_NATIVE)


def _fits(spec: TensorSpec, value: ir.Value) -> bool:
    """Where the graph has a number, so has the contract; an axis that the trace left open fits any."""
    if value.dtype is None or value.shape is None or value.dtype.numpy() != np.dtype(spec.dtype):
        return False
    axes = tuple(value.shape)
    return len(axes) == len(spec.shape) and all(
        not isinstance(axis, int) or axis == wanted for axis, wanted in zip(axes, spec.shape, strict=True)
    )


def _compare(name: str, outputs: Sequence[str], found: Sequence[Any], sample: Mapping[str, Any]) -> None:
    for output, array in zip(outputs, found, strict=True):
        wanted = sample[output]
        scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
        same_shape = array.shape == wanted.shape
        if not same_shape or not np.allclose(array, wanted, rtol=0, atol=_SAMPLE_TOLERANCE * scale):
            difference = f"values up to {scale:.2g} differ by {np.abs(array - wanted).max():.2g}" if same_shape else ""
            raise GraphError(
                f"NeMo's graph of {name} does not say what NeMo's module says",
                where=output,
                found=difference or f"shape {array.shape}, {wanted.shape} expected",
                fix=USE_NATIVE,
            )


def _check_lengths(name: str, spec: EncoderSpec, sample: Mapping[str, Any]) -> None:
    frames, found = sample["length"].tolist(), sample["encoded_lengths"].tolist()
    wanted = [spec.encoder_frames_from_feature_frames(n) for n in frames]
    if found != wanted:
        raise GraphError(
            f"NeMo's lengths of {name} are not those of the contract",
            where=f"encoded_lengths of {frames} feature frames",
            found=f"{found}, {wanted} expected",
            fix=USE_NATIVE,
        )

"""A component in float32 on ONNX Runtime that also shows what goes into the products to be quantized.

    feeds --> graph with the products' inputs as further outputs --> its own outputs
                                                                 --> amplitudes

It runs in the place of the component, in whatever decodes audio: what it sees is what the component will see. It
holds the activations of one run at a time, so memory grows with the longest clip and not with the number of clips.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from nemotrt.bundle import ComponentSpec, TensorSpec
from nemotrt.errors import GraphError
from nemotrt.trt.quantization.amplitudes import Amplitude

_QUIET = 3  # ONNX Runtime severity: errors only; what matters is raised
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class CalibratingRunner:
    """Runs ``component`` of the file ``graph``, and observes the inputs of its MatMuls called ``products``.

    It is a runner as the engines have them: ``run`` takes the component's inputs and returns its outputs.

    Raises:
        GraphError: ONNX Runtime does not load the graph.
    """

    label = "calibration, onnxruntime CPU"

    def __init__(
        self, graph: Path, component: ComponentSpec, *, products: Collection[str], threads: int | None = None
    ) -> None:
        self._graph, self._component = graph, component
        model = onnx.load(str(graph), load_external_data=False)
        observed = dict.fromkeys(node.input[0] for node in model.graph.node if node.name in products)
        own = {value.name for value in (*model.graph.input, *model.graph.output)}
        shown = [onnx.helper.make_empty_tensor_value_info(name) for name in observed if name not in own]
        model.graph.output.extend(shown)
        self.amplitudes = {name: Amplitude() for name in observed}
        self._session: Any = _session(model, graph, threads=threads)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Those of the component."""
        return self._component.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Those of the component."""
        return self._component.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One inference, observed.

        Raises:
            GraphError: ONNX Runtime fails, or an activation is not finite.
        """
        own = [spec.name for spec in self._component.outputs]
        observed = [name for name in self.amplitudes if name not in feeds and name not in own]
        names = [*own, *observed]
        try:
            values = dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as exc:  # the classes of ONNX Runtime's failures share no other base
            raise GraphError("ONNX Runtime failed in calibration", where=self._graph, found=exc) from exc
        for name, amplitude in self.amplitudes.items():
            activation = feeds[name] if name in feeds else values[name]
            if not np.isfinite(activation).all():
                raise GraphError(
                    "an activation is not finite in float32, so no scale fits it",
                    where=self._graph,
                    found=name,
                    fix="keep this product in float32, or leave the clip out",
                )
            amplitude.add(activation)
        return {name: values[name] for name in own}

    def close(self) -> None:
        """Release the session. Safe to call twice."""
        self._session = None


def _session(model: onnx.ModelProto, graph: Path, *, threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.add_session_config_entry(_DATA_FOLDER, str(graph.parent))
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # the classes of ONNX Runtime's failures share no other base
        raise GraphError(
            "ONNX Runtime cannot load the graph", where=graph, found=exc, fix="export the checkpoint again"
        ) from exc

"""A component's graph to its files: one graph, and one data file that its weights stream into, one at a time.

A variant of another component has no data file of its own: its weights are in that component's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from nemotrt.bundle import ComponentName, ComponentSpec
from nemotrt.export.components import VARIANT_OF
from nemotrt.export.config import ModelConfig
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.shared_weights import share_weights
from nemotrt.export.traced_graph import TracedGraph

_INLINE_BYTES = 1024

Graph = GraphBuilder | TracedGraph


def save_component(
    name: ComponentName, graph: Graph, folder: Path, config: ModelConfig, *, on_weight: Callable[[], None]
) -> None:
    """Write ``graph`` into ``folder``; ``on_weight`` is called for each of its weights."""
    model = graph.model()
    model.metadata_props.update(_client_metadata(config))
    base = VARIANT_OF.get(name)
    if base is not None:
        share_weights(model, folder / _graph_name(base))
        ir.save(model, folder / _graph_name(name))
        return
    try:
        ir.save(
            model,
            folder / _graph_name(name),
            external_data=_data_name(name),
            size_threshold_bytes=_INLINE_BYTES,
            max_workers=1,
            callback=lambda *_: on_weight(),
        )
    except ir.serde.SerdeError as exc:
        cause = _unwrapped(exc)
        raise cause from cause.__cause__


def component_spec(name: ComponentName, graph: Graph, folder: Path) -> ComponentSpec:
    """The contract of a component whose files are in ``folder``."""
    data = _data_name(VARIANT_OF.get(name, name))
    return ComponentSpec(
        graph=_graph_name(name),
        data=data if (folder / data).exists() else None,
        inputs=graph.input_specs,
        outputs=graph.output_specs,
        parameters=graph.parameters,
    )


def _graph_name(name: ComponentName) -> str:
    return f"{name}.onnx"


def _data_name(name: ComponentName) -> str:
    return f"{name}.onnx.data"


def _unwrapped(exc: BaseException) -> BaseException:
    """What reading a weight raised; onnx-ir wraps it once per level of the model."""
    while isinstance(exc, ir.serde.SerdeError) and exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def _client_metadata(config: ModelConfig) -> dict[str, str]:
    """What sherpa-onnx looks for in the metadata of NeMo graphs."""
    per_feature = config.mel is not None and config.mel.normalize == "per_feature"
    metadata = {
        "vocab_size": str(config.blank_id),
        "subsampling_factor": str(config.encoder.spec.subsampling_factor),
        "normalize_type": "per_feature" if per_feature else "",
        "model_type": config.family,
        "version": "1",
        "feat_dim": str(config.encoder.spec.features),
    }
    if config.transducer is not None:
        metadata["pred_rnn_layers"] = str(config.transducer.spec.predictor_layers)
        metadata["pred_hidden"] = str(config.transducer.spec.predictor_hidden)
    return metadata

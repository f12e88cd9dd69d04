"""The model as the contract has it, and a graph for each of its components, by front end.

native   the config has to be one that is built, and every weight is accounted for
nemo     the config has to be one that the contract can describe; NeMo's own graphs take the place of some later
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nemotrt.bundle import ComponentName, StreamingSpec, sha256_of_file
from nemotrt.errors import UnsupportedModelError, UsageError
from nemotrt.export.archive import NemoArchive
from nemotrt.export.components import component_writers, fixed_axes
from nemotrt.export.config import ModelConfig, model_config
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.nemo_config import described_graphs
from nemotrt.export.options import OPSETS, ExportOptions
from nemotrt.export.streaming import streaming_spec
from nemotrt.export.weights import Weights
from nemotrt.journal import Work

_MODEL_PREFIXES = ("encoder.", "decoder.", "joint.", "ctc_decoder.")
_FRONT_END_PREFIX = "preprocessor."

Graphs = Mapping[ComponentName, GraphBuilder]


@dataclass(frozen=True)
class Source:
    """What a bundle is made from."""

    checkpoint: Path
    config: ModelConfig
    streaming: StreamingSpec | None
    options: ExportOptions

    def work(self) -> Work:
        """What decides the bundle's bytes. Reads the whole checkpoint."""
        return Work(
            checkpoint_sha256=sha256_of_file(self.checkpoint),
            exported=self.options.record(),
            tools={package: version(package) for package in ("nemotrt", "onnx-ir", "numpy")},
        )


def model_graphs(archive: NemoArchive, options: ExportOptions) -> tuple[Source, Graphs]:
    """The model, and every component that the front end of ``options`` can write.

    Raises:
        CheckpointError: the config or the weights are wrong, or of a kind that the front end does not write.
        UsageError: the model does not have what the options ask for, or the front end does not.
    """
    if options.frontend == "nemo":
        _refuse_native_options(options, archive.path)
        config, described = described_graphs(archive, choices=options.model_choices())
        return Source(archive.path, config, None, options), described
    config = model_config(archive.config, origin=archive.path, choices=options.model_choices())
    source = Source(archive.path, config, _streaming(config, options), options)
    return source, _emitted_graphs(archive.weights, source)


def _refuse_native_options(options: ExportOptions, checkpoint: Path) -> None:
    if "encoder_streaming" in options.components or options.cache != "inputs" or options.cache_drop:
        raise UsageError(
            "the front end nemo does not write encoder_streaming",
            where=checkpoint,
            found="NeMo's streaming encoder takes the zeros before a stream's first chunk for audio",
            fix="use the native front end (leave --frontend out)",
        )
    native = {
        "--fixed": options.fixed_seconds is not None,
        "--max-seconds": options.choices.max_seconds is not None,
        "--opset": options.opset != OPSETS[0],
    }
    given = [name for name, is_given in native.items() if is_given]
    if given:
        raise UsageError(
            f"the front end nemo does not know {', '.join(given)}",
            where=checkpoint,
            fix="leave it out, or use the native front end (leave --frontend out)",
        )


def _streaming(config: ModelConfig, options: ExportOptions) -> StreamingSpec | None:
    try:
        return streaming_spec(config.encoder, options.cache, drop=options.cache_drop)
    except UnsupportedModelError:
        if "encoder_streaming" in options.components:
            raise
        return None


def _emitted_graphs(weights: Weights, source: Source) -> Graphs:
    """All components of the model: also those not asked for, so that every weight is accounted for."""
    config, options = source.config, source.options
    axes = {} if options.fixed_seconds is None else fixed_axes(config, options.fixed_seconds)
    graphs = {}
    for name, write in component_writers(config, source.streaming).items():
        graphs[name] = GraphBuilder(name, opset=options.opset, axes=axes)
        write(graphs[name], weights)
    own_features = config.front_end is None  # what makes them is not ours to account for
    weights.refuse_unexpected(_MODEL_PREFIXES if own_features else (*_MODEL_PREFIXES, _FRONT_END_PREFIX))
    return graphs

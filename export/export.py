"""``.nemo`` -> bundle.

open_nemo -> model_config -> component_graphs -> save each (weights stream through) -> publish
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from nemotrt.bundle import (
    TOKENIZER_NAME,
    TOKENS_NAME,
    VOCAB_NAME,
    Bundle,
    BundleMeta,
    CacheLayout,
    ComponentName,
    ComponentSpec,
    Decoder,
    ExportRecord,
    FileRecord,
    StreamingSpec,
    sha256_of_file,
)
from nemotrt.bundle_writer import BundleWriter
from nemotrt.errors import UnsupportedModelError, UsageError
from nemotrt.export.archive import NemoArchive, open_nemo
from nemotrt.export.components import DEFAULT, OF_DECODER, VARIANT_OF, component_writers, decoders_of, fixed_axes
from nemotrt.export.config import ModelConfig, model_config
from nemotrt.export.encoder_config import AS_TRAINED, ModelChoices
from nemotrt.export.graph import IR_VERSIONS, OPSET, GraphBuilder
from nemotrt.export.shared_weights import share_weights
from nemotrt.export.streaming import streaming_spec
from nemotrt.export.vocabulary import check_tokenizers, tokens_text, vocabulary_text
from nemotrt.export.weights import Weights

Progress = Callable[[str], None]

_MODEL_PREFIXES = ("encoder.", "decoder.", "joint.", "ctc_decoder.")
_FRONT_END_PREFIX = "preprocessor."
_INLINE_BYTES = 1024

ALL = "all"
"""In place of component names: every one that the model has."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        components: by name; none: those that nemotrt decodes with.
        decoder: in place of ``components``: those of this decoder only.
        choices: where the checkpoint leaves a choice.
        cache: what the streaming encoder keeps of the frames before a chunk.
        cache_drop: encoder frames at the end of a chunk that it does not keep: the next chunk brings them again.
        fixed_seconds: every axis of fixed size: one clip, of this length; ``None``: any sizes.
        opset: ONNX opset version of the graphs.

    Raises:
        UsageError: an opset that is not written, or two options that contradict each other.
    """

    components: tuple[str, ...] = ()
    decoder: Decoder | None = None
    choices: ModelChoices = AS_TRAINED
    cache: CacheLayout = "inputs"
    cache_drop: int = 0
    fixed_seconds: float | None = None
    opset: int = OPSET

    def __post_init__(self) -> None:
        if self.opset not in IR_VERSIONS:
            raise UsageError("this opset is not written", found=self.opset, fix=f"choose {_range_text(IR_VERSIONS)}")
        if self.components and self.decoder is not None:
            raise UsageError(
                "components and a decoder were both named",
                found=f"{', '.join(self.components)}; {self.decoder}",
                fix="name one or the other: a decoder stands for the components that it needs",
            )

    def model_choices(self) -> ModelChoices:
        """``choices``, with no more positions than a clip of fixed length has."""
        if self.fixed_seconds is None or self.choices.max_seconds is not None:
            return self.choices
        return replace(self.choices, max_seconds=self.fixed_seconds)

    def record(self) -> ExportRecord:
        """The same, as the bundle keeps it."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "choices"}
        return ExportRecord(**own, **asdict(self.choices))


def export_checkpoint(
    checkpoint: Path,
    destination: Path,
    *,
    options: ExportOptions = ExportOptions(),
    overwrite: bool = False,
    on_progress: Progress = lambda _: None,
) -> Bundle:
    """Write the bundle of ``checkpoint`` to the folder ``destination``: all of it, or nothing.

    ``on_progress`` hears the name of each component before it is written.

    Raises:
        CheckpointError: the checkpoint cannot be read, is hostile, or of a kind that is not built.
        UsageError: ``destination`` exists, or the model has no such component or look-ahead.
        MachineError: ``destination`` cannot be written.
    """
    with open_nemo(checkpoint) as archive, ThreadPoolExecutor(max_workers=1) as beside:
        config = model_config(archive.config, origin=checkpoint, choices=options.model_choices())
        streaming = _streaming(config, options)
        graphs = _graphs(archive.weights, config, streaming, options)
        names = _chosen(options, config, graphs, checkpoint)
        with BundleWriter(destination, overwrite=overwrite) as writer:
            digest = beside.submit(sha256_of_file, checkpoint)
            _write_texts(archive, config, writer.folder)
            components = {}
            for name in names:
                on_progress(name)
                components[name] = _save(name, graphs[name], writer.folder, _client_metadata(config))
            on_progress("digests")
            source = _Source(checkpoint, digest.result(), config, streaming, options)
            return writer.publish(lambda files: _meta(source, components, files))


def _range_text(numbers: Collection[int]) -> str:
    return f"from {min(numbers)} to {max(numbers)}"


def _streaming(config: ModelConfig, options: ExportOptions) -> StreamingSpec | None:
    try:
        return streaming_spec(config.encoder, options.cache, drop=options.cache_drop)
    except UnsupportedModelError:
        if "encoder_streaming" in options.components:
            raise
        return None


def _graphs(
    weights: Weights, config: ModelConfig, streaming: StreamingSpec | None, options: ExportOptions
) -> dict[ComponentName, GraphBuilder]:
    """All components of the model: also those not asked for, so that every weight is accounted for."""
    graphs = {}
    axes = {} if options.fixed_seconds is None else fixed_axes(config, options.fixed_seconds)
    for name, write in component_writers(config, streaming).items():
        graphs[name] = GraphBuilder(name, opset=options.opset, axes=axes)
        write(graphs[name], weights)
    own_features = config.front_end is None  # what makes them is not ours to account for
    weights.refuse_unexpected(_MODEL_PREFIXES if own_features else (*_MODEL_PREFIXES, _FRONT_END_PREFIX))
    return graphs


def _chosen(
    options: ExportOptions, config: ModelConfig, graphs: Mapping[ComponentName, GraphBuilder], checkpoint: Path
) -> tuple[ComponentName, ...]:
    unknown = [name for name in options.components if name not in (*graphs, ALL)]
    if unknown:
        raise UsageError(
            f"the model has no component {unknown[0]!r}",
            where=checkpoint,
            fix=f"choose from: {', '.join((*graphs, ALL))}",
        )
    wanted = options.components or DEFAULT
    if options.decoder is not None:
        wanted = _of_decoder(options.decoder, config, checkpoint)
    if (options.cache != "inputs" or options.cache_drop) and not {"encoder_streaming", ALL} & set(wanted):
        raise UsageError(
            "something was chosen for a cache, but nothing that has a cache is exported",
            where=checkpoint,
            found=f"components {', '.join(wanted)}",
            fix="add --component encoder_streaming, or leave --cache and --streaming-cache-drop-size out",
        )
    needed = {*wanted, *(VARIANT_OF[name] for name in graphs if name in wanted and name in VARIANT_OF)}
    return tuple(name for name in graphs if name in needed or ALL in wanted)


def _of_decoder(decoder: Decoder, config: ModelConfig, checkpoint: Path) -> tuple[ComponentName, ...]:
    available = decoders_of(config)
    if decoder not in available:
        raise UsageError(
            f"the model has no {decoder} decoder",
            where=checkpoint,
            fix=f"choose from: {', '.join(available)}",
        )
    return OF_DECODER[decoder]


def _write_texts(archive: NemoArchive, config: ModelConfig, folder: Path) -> None:
    if config.tokenizer.kind != "characters":
        models = [archive.artifact(reference) for reference in config.tokenizer.models]
        check_tokenizers(models, config.vocabulary, origin=archive.path)
        if config.tokenizer.kind == "sentencepiece":
            (folder / TOKENIZER_NAME).write_bytes(models[0])
    (folder / VOCAB_NAME).write_text(vocabulary_text(config.vocabulary), encoding="utf-8")
    (folder / TOKENS_NAME).write_text(tokens_text(config.vocabulary), encoding="utf-8")


def _save(name: ComponentName, graph: GraphBuilder, folder: Path, metadata: Mapping[str, str]) -> ComponentSpec:
    """One graph file and at most one data file; weights pass through memory one at a time."""
    model = graph.model()
    model.metadata_props.update(metadata)
    base = VARIANT_OF.get(name)
    graph_file, data_file = f"{name}.onnx", f"{base or name}.onnx.data"
    try:
        if base is not None:
            share_weights(model, folder / f"{base}.onnx")
            ir.save(model, folder / graph_file)
        else:
            ir.save(
                model, folder / graph_file, external_data=data_file, size_threshold_bytes=_INLINE_BYTES, max_workers=1
            )
    except ir.serde.SerdeError as exc:
        cause = _unwrapped(exc)
        raise cause from cause.__cause__
    return ComponentSpec(
        graph=graph_file,
        data=data_file if (folder / data_file).exists() else None,
        inputs=graph.input_specs,
        outputs=graph.output_specs,
        parameters=graph.parameters,
    )


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


@dataclass(frozen=True)
class _Source:
    """What the bundle was made from."""

    checkpoint: Path
    sha256: str
    config: ModelConfig
    streaming: StreamingSpec | None
    options: ExportOptions


def _meta(source: _Source, components: dict[ComponentName, ComponentSpec], files: dict[str, FileRecord]) -> BundleMeta:
    config = source.config
    return BundleMeta(
        schema_version=1,
        name=source.checkpoint.stem,
        family=config.family,
        precision="fp32",
        components=components,
        mel=config.mel,
        encoder=config.encoder.spec,
        streaming=source.streaming if "encoder_streaming" in components else None,
        transducer=None if config.transducer is None else config.transducer.spec,
        vocabulary_size=len(config.vocabulary),
        blank_id=config.blank_id,
        tokenizer=config.tokenizer.kind,
        notes=config.notes,
        checkpoint_sha256=source.sha256,
        exported=source.options.record(),
        tools={package: version(package) for package in ("nemotrt", "onnx-ir", "numpy")},
        files=files,
    )

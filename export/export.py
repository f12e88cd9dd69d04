"""``.nemo`` -> bundle.

open_nemo -> model_config -> component_graphs -> room? -> save each (weights stream through) -> verify -> publish

An export that dies leaves what it had finished, and the next one of the same checkpoint, options and versions goes on
from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from nemotrt.bundle import (
    TOKENIZER_NAME,
    TOKENS_NAME,
    VOCAB_NAME,
    Bundle,
    BundleMeta,
    ComponentName,
    ComponentSpec,
    FileRecord,
    StreamingSpec,
    sha256_of_file,
)
from nemotrt.bundle_writer import BundleWriter
from nemotrt.errors import UnsupportedModelError
from nemotrt.export.archive import NemoArchive, open_nemo
from nemotrt.export.component_files import component_spec, save_component
from nemotrt.export.components import component_writers, fixed_axes
from nemotrt.export.config import ModelConfig, model_config
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.options import DEFAULTS, Alive, ExportOptions, OnNotice, Progress, TakenOver
from nemotrt.export.preflight import needs_of, refuse_without_room
from nemotrt.export.selection import chosen_components
from nemotrt.export.smoke_test import run_component
from nemotrt.export.streaming import streaming_spec
from nemotrt.export.verify import verify_caches, verify_files
from nemotrt.export.vocabulary import check_tokenizers, tokens_text, vocabulary_text
from nemotrt.export.weights import Weights
from nemotrt.journal import Work

_MODEL_PREFIXES = ("encoder.", "decoder.", "joint.", "ctc_decoder.")
_FRONT_END_PREFIX = "preprocessor."
_Components = Mapping[ComponentName, ComponentSpec]


def export_checkpoint(
    checkpoint: Path,
    destination: Path,
    *,
    options: ExportOptions = DEFAULTS,
    overwrite: bool = False,
    smoke_test: bool = False,
    on_progress: Progress = lambda _: None,
    on_notice: OnNotice = lambda _: None,
) -> Bundle:
    """Write the bundle of ``checkpoint`` to the folder ``destination``: all of it, verified, or nothing.

    ``smoke_test`` also runs each component in ONNX Runtime. ``on_progress`` hears the name of each component before
    it is written, then ``digests`` and ``checks``; ``on_notice`` hears what else there is to tell.

    Raises:
        CheckpointError: the checkpoint cannot be read, is hostile, or of a kind that is not built.
        UsageError: ``destination`` exists, or the model does not have what the options ask for.
        GraphError, BundleError: what was written is not what it should be.
        MachineError: not enough memory or disk, or ``destination`` cannot be written. Finished components stay in a
            hidden folder beside it, for the next export of the same.
    """
    with open_nemo(checkpoint) as archive:
        config = model_config(archive.config, origin=checkpoint, choices=options.model_choices())
        source = _Source(checkpoint, config, _streaming(config, options), options)
        graphs = _graphs(archive.weights, source)
        names = chosen_components(options, config, graphs, origin=checkpoint)
        chosen = {name: graphs[name] for name in names}
        work = cache(source.work)
        with BundleWriter(destination, overwrite=overwrite, work=work) as writer, ThreadPoolExecutor(1) as beside:
            left = {name: graph for name, graph in chosen.items() if name not in writer.taken_over}
            needs = needs_of(left, archive.weights, run=chosen.values() if smoke_test else ())
            on_notice(needs)
            refuse_without_room(needs, writer.folder)
            if writer.taken_over:
                on_notice(TakenOver(tuple(name for name in chosen if name not in left)))
            noted = beside.submit(lambda: writer.note_work(work()))
            texts = _write_texts(archive, config, writer.folder)
            for name, graph in left.items():
                on_progress(name)
                save_component(name, graph, writer.folder, config=config, on_weight=lambda: on_notice(Alive()))
                writer.finish(name, component_spec(name, graph, writer.folder).files)
            on_progress("digests")
            noted.result()
            on_progress("checks")
            components = {name: component_spec(name, graph, writer.folder) for name, graph in chosen.items()}
            _verify(writer.folder, components, source, texts)
            if smoke_test:
                _run_each(writer.folder, components, source, on_notice)
            return writer.publish(lambda files: _meta(source, work(), components, files))


@dataclass(frozen=True)
class _Source:
    """What the bundle is made from."""

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


def _streaming(config: ModelConfig, options: ExportOptions) -> StreamingSpec | None:
    try:
        return streaming_spec(config.encoder, options.cache, drop=options.cache_drop)
    except UnsupportedModelError:
        if "encoder_streaming" in options.components:
            raise
        return None


def _graphs(weights: Weights, source: _Source) -> dict[ComponentName, GraphBuilder]:
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


def _write_texts(archive: NemoArchive, config: ModelConfig, folder: Path) -> tuple[str, ...]:
    """The names of the files."""
    texts = {VOCAB_NAME: vocabulary_text(config.vocabulary), TOKENS_NAME: tokens_text(config.vocabulary)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if config.tokenizer.kind == "characters":
        return tuple(texts)
    models = [archive.artifact(reference) for reference in config.tokenizer.models]
    check_tokenizers(models, config.vocabulary, origin=archive.path)
    if config.tokenizer.kind == "aggregate":
        return tuple(texts)
    (folder / TOKENIZER_NAME).write_bytes(models[0])
    return (*texts, TOKENIZER_NAME)


def _verify(folder: Path, components: _Components, source: _Source, texts: Iterable[str]) -> None:
    verify_files(folder, components, texts=texts)
    if "encoder_streaming" in components and source.streaming is not None:
        verify_caches(components["encoder_streaming"], source.config.encoder.spec, source.streaming)


def _run_each(folder: Path, components: _Components, source: _Source, on_notice: OnNotice) -> None:
    for spec in components.values():
        run_component(folder / spec.graph, spec, source.config.encoder.spec)
        on_notice(Alive())


def _meta(source: _Source, work: Work, components: _Components, files: dict[str, FileRecord]) -> BundleMeta:
    config = source.config
    return BundleMeta(
        schema_version=1,
        name=source.checkpoint.stem,
        family=config.family,
        precision="fp32",
        components=dict(components),
        mel=config.mel,
        encoder=config.encoder.spec,
        streaming=source.streaming if "encoder_streaming" in components else None,
        transducer=None if config.transducer is None else config.transducer.spec,
        vocabulary_size=len(config.vocabulary),
        blank_id=config.blank_id,
        tokenizer=config.tokenizer.kind,
        notes=config.notes,
        checkpoint_sha256=work.checkpoint_sha256,
        exported=work.exported,
        tools=work.tools,
        files=files,
    )

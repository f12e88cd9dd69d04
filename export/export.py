"""``.nemo`` -> bundle.

open_nemo -> model_graphs -> room? -> save each (weights stream through) -> verify -> publish
                     `-- front end nemo: encoder, heads and predictor are traced from NeMo's modules

An export that dies leaves what it had finished, and the next one of the same checkpoint, options and versions goes on
from there. What NeMo traces is not taken over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

from nemotrt.bundle import Bundle, BundleMeta, ComponentName, ComponentSpec, FileRecord
from nemotrt.bundle_writer import BundleWriter
from nemotrt.export.archive import open_nemo
from nemotrt.export.component_files import component_spec, save_component
from nemotrt.export.model_graphs import Graphs, Source, model_graphs
from nemotrt.export.nemo_front_end import Traced, traced_by_nemo
from nemotrt.export.options import DEFAULTS, Alive, ExportOptions, NemoProcess, OnNotice, Progress, TakenOver
from nemotrt.export.preflight import needs_of, refuse_without_room
from nemotrt.export.selection import chosen_components
from nemotrt.export.smoke_test import run_component
from nemotrt.export.verify import verify_caches, verify_files
from nemotrt.export.vocabulary import write_vocabulary
from nemotrt.journal import Work

_THIS_INTERPRETER = NemoProcess()
_Components = Mapping[ComponentName, ComponentSpec]


def export_checkpoint(
    checkpoint: Path,
    destination: Path,
    *,
    options: ExportOptions = DEFAULTS,
    nemo: NemoProcess = _THIS_INTERPRETER,
    overwrite: bool = False,
    smoke_test: bool = False,
    on_progress: Progress = lambda _: None,
    on_notice: OnNotice = lambda _: None,
) -> Bundle:
    """Write the bundle of ``checkpoint`` to the folder ``destination``: all of it, verified, or nothing.

    ``nemo`` is how NeMo is run, if it makes the graphs. ``smoke_test`` also runs each component in ONNX Runtime.
    ``on_progress`` hears the name of each component before it is written, then ``digests`` and ``checks``;
    ``on_notice`` hears what else there is to tell.

    Raises:
        CheckpointError: the checkpoint cannot be read, is hostile, or of a kind that is not built.
        UsageError: ``destination`` exists, or the model does not have what the options ask for.
        GraphError, BundleError: what was written, or what NeMo exported, is not what it should be.
        MachineError: not enough memory or disk, ``destination`` cannot be written, or NeMo does not run. Finished
            components stay in a hidden folder beside it, for the next export of the same.
    """
    with open_nemo(checkpoint) as archive:
        source, graphs = model_graphs(archive, options)
        names = chosen_components(options, source.config, graphs, origin=checkpoint)
        chosen = {name: graphs[name] for name in names}
        work = cache(source.work)
        taken_over = work if options.frontend == "native" else None
        with BundleWriter(destination, overwrite=overwrite, work=taken_over) as writer, ThreadPoolExecutor(1) as beside:
            left = {name: graph for name, graph in chosen.items() if name not in writer.taken_over}
            needs = needs_of(left, archive.weights, run=chosen.values() if smoke_test else ())
            on_notice(needs)
            refuse_without_room(needs, writer.folder)
            if writer.taken_over:
                on_notice(TakenOver(tuple(name for name in chosen if name not in left)))
            noted = beside.submit(lambda: writer.note_work(work()))
            texts = write_vocabulary(archive, source.config, writer.folder)
            components = {
                name: component_spec(name, graph, writer.folder) for name, graph in chosen.items() if name not in left
            }
            with _traced(source, left, nemo, writer.folder) as traced:
                for name, emitted in left.items():
                    graph = traced.graphs.get(name, emitted)
                    on_progress(name)
                    save_component(name, graph, writer.folder, source.config, on_weight=lambda: on_notice(Alive()))
                    components[name] = component_spec(name, graph, writer.folder)
                    writer.finish(name, components[name].files)
            on_progress("digests")
            noted.result()
            on_progress("checks")
            ordered = {name: components[name] for name in chosen}
            _verify(writer.folder, ordered, source, texts)
            if smoke_test:
                _run_each(writer.folder, ordered, source, on_notice)
            return writer.publish(lambda files: _meta(source, work(), traced, ordered, files))


def _traced(source: Source, graphs: Graphs, nemo: NemoProcess, folder: Path) -> AbstractContextManager[Traced]:
    """What NeMo makes of the components: nothing, unless it is the front end."""
    options, spec = source.options, source.config.encoder.spec
    if options.frontend == "native":
        return nullcontext(Traced())
    as_trained = options.choices.lookahead is None and options.choices.left_context is None
    context = None if as_trained else spec.attention_context
    return traced_by_nemo(source.checkpoint, graphs, spec, process=nemo, attention_context=context, folder=folder)


def _verify(folder: Path, components: _Components, source: Source, texts: Iterable[str]) -> None:
    verify_files(folder, components, texts=texts)
    if "encoder_streaming" in components and source.streaming is not None:
        verify_caches(components["encoder_streaming"], source.config.encoder.spec, source.streaming)


def _run_each(folder: Path, components: _Components, source: Source, on_notice: OnNotice) -> None:
    for spec in components.values():
        run_component(folder / spec.graph, spec, source.config.encoder.spec)
        on_notice(Alive())


def _meta(
    source: Source, work: Work, traced: Traced, components: _Components, files: dict[str, FileRecord]
) -> BundleMeta:
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
        tools={**work.tools, **traced.tools},
        files=files,
    )

"""The command line: parse, call one library function, print.

Results go to stdout (tables for people, one JSON document with ``--json``), progress and errors to stderr.
Exit codes: 0 done, 1 compared and different, 2 the input is wrong, 3 this machine cannot do it, 130 interrupted.
The library is imported inside of each command, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nemotrt import __version__
from nemotrt import cli_options as options
from nemotrt.errors import ComparisonFailed, MachineError, NemotrtError, UsageError

if TYPE_CHECKING:
    from nemotrt.bundle import Decoder
    from nemotrt.engines.audio import Clip
    from nemotrt.verbs import ClipText

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="nemotrt",
    help="NVIDIA NeMo speech checkpoints to verified TensorRT engines.",
    epilog="Start with: nemotrt run MODEL.nemo -o OUT --audio CLIPS",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Options of the tool itself."""
    if version:
        typer.echo(f"nemotrt {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def run(
    checkpoint: options.Checkpoint,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help="Folder for everything.")],
    audio: Annotated[
        Path | None,
        typer.Option("--audio", metavar="CLIPS", help="Manifest, folder or file; without it nothing is compared."),
    ] = None,
    profile: options.ProfileName = "single-stream",
    runtime: options.Runtime = "auto",
    compute_capability: options.ComputeCapabilities = None,
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Timed runs of each system.")] = 10,
    as_json: options.Json = False,
) -> None:
    """Everything in one command: export, cast, build, compare, measure, report.

    What an earlier run finished in the same folder is not done again.
    On a GPU host the engines are run and judged. Elsewhere they are
    "built, not verified".
    Exit code 1 means that something compared was different.
    """
    from nemotrt import console, pipeline

    request = pipeline.RunRequest(
        checkpoint=checkpoint,
        output=output,
        audio=audio,
        profile=profile,
        runtime=None if runtime == "auto" else runtime,
        compute_capabilities=tuple(compute_capability or ()),
        runs=runs,
    )
    with console.stage_progress() as progress:
        summary = pipeline.run(request, on_progress=progress)
    if as_json:
        _print_json(
            {
                "verdict": summary.verdict,
                "reasons": summary.results.reasons,
                "report": str(summary.report),
                "stages": [asdict(stage) for stage in summary.stages],
                "results": summary.results.model_dump(mode="json"),
            }
        )
    else:
        console.print_summary(summary)
    if summary.verdict == "fail":
        raise typer.Exit(ComparisonFailed.exit_code)


@app.command()
def export(
    checkpoint: options.Checkpoint,
    output: options.NewBundle,
    component: options.Components = None,
    decoder: options.OnlyDecoder = None,
    lookahead: options.Lookahead = None,
    max_seconds: options.MaxSeconds = None,
    streaming_cache_size: options.StreamingCacheSize = None,
    streaming_cache_drop_size: options.StreamingCacheDropSize = 0,
    cache: options.Cache = "inputs",
    fixed: options.Fixed = None,
    opset: options.Opset = 18,
    frontend: options.FrontEnd = "native",
    nemo_python: options.NemoPython = None,
    device: options.Device = None,
    max_memory: options.MaxMemory = None,
    smoke_test_ort: options.SmokeTest = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Turn a checkpoint into an ONNX bundle: one graph and one data file per component, and the contract.

    It runs in a process of its own, and is checked before it is published.
    What an export that died had finished is not done again.
    With --frontend nemo, NeMo runs what the checkpoint names: trust it first.
    """
    from nemotrt import console
    from nemotrt.export import ExportOptions, ModelChoices
    from nemotrt.export.chosen_process import ProcessOptions, export_in_process

    wanted = ExportOptions(
        components=tuple(component or ()),
        decoder=decoder,
        choices=ModelChoices(lookahead=lookahead, left_context=streaming_cache_size, max_seconds=max_seconds),
        cache=cache,
        cache_drop=streaming_cache_drop_size,
        fixed_seconds=fixed,
        opset=opset,
        frontend=frontend,
    )
    process = ProcessOptions(max_memory_gib=max_memory, nemo_python=nemo_python, device=device)
    with console.progress("export") as progress:
        bundle = export_in_process(
            checkpoint,
            output,
            options=wanted,
            process=process,
            overwrite=overwrite,
            smoke_test=smoke_test_ort,
            on_progress=lambda name: progress(f"writing {name}", 0.5),
            on_notice=console.print_taken_over,
        )
    _print_bundle(bundle, as_json)


@app.command()
def layout(
    bundle: options.BundleFolder,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for the client's files.")],
    client: Annotated[
        Literal["onnx-asr", "sherpa-onnx"], typer.Option("--client", help="Who will load it.")
    ] = "onnx-asr",
    decoder: options.Decoder = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="For streams: sherpa-onnx's OnlineRecognizer.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Write a bundle as another client expects a model to be: its files, tensors and metadata, the same weights.

    A model whose features the client cannot compute is refused.
    What the bundle lacks is exported with --component all.
    """
    from nemotrt.export.clients import write_onnx_asr_layout, write_sherpa_onnx_layout
    from nemotrt.stages import proven_bundle

    if client == "sherpa-onnx":
        load_as = write_sherpa_onnx_layout(proven_bundle(bundle), output, decoder=decoder, streaming=streaming)
    elif streaming:
        raise UsageError("onnx-asr has no streaming recognizer", fix="leave --streaming out, or --client sherpa-onnx")
    else:
        load_as = write_onnx_asr_layout(proven_bundle(bundle), output, decoder=decoder)
    if as_json:
        _print_json({"client": client, "load_as": load_as, "path": str(output)})
    else:
        typer.echo(f"{output}: load it in {client} as {load_as}")


@app.command()
def check(
    target: options.BundleOrGraph,
    rule: options.OnlyRules = None,
    ignore: options.IgnoredRules = None,
    sarif: options.Sarif = None,
    as_json: options.Json = False,
) -> None:
    """Inspect the graphs of a bundle, or one ONNX file, by rule; prove that a bundle is complete and unaltered.

    Nothing is built. Exit code 1 means that a rule found an error.
    What each rule is about: trt/check/README.md
    """
    from nemotrt import console
    from nemotrt.inspection import inspect_target

    with console.progress("check") as progress:
        inspection = inspect_target(target, only=rule or (), ignored=ignore or (), on_progress=progress)
    if sarif is not None:
        inspection.write_sarif(sarif)
    if as_json:
        _print_json(inspection.document())
    else:
        console.print_inspection(inspection)
    if inspection.verdict == "fail":
        raise typer.Exit(ComparisonFailed.exit_code)


@app.command()
def cast(
    bundle: options.BundleFolder,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder for the typed bundle.")],
    to: options.CastTo = "fp16",
    keep: options.Keep = None,
    engine: options.CastEngine = "native",
    modelopt_python: options.ModelOptPython = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write precision into the graphs. Lengths, masks, norms and softmax stay as they are.

    A bfloat16 bundle needs a GPU to run. Model Optimizer runs in a process of its own.
    """
    from nemotrt import console
    from nemotrt.stages import proven_bundle
    from nemotrt.trt.precision import cast_bundle, cast_plan

    if modelopt_python is not None and engine != "modelopt":
        raise UsageError(
            "--modelopt-python is only for --engine modelopt",
            found=modelopt_python,
            fix="add --engine modelopt, or leave it out",
        )
    python = (modelopt_python or Path(sys.executable)) if engine == "modelopt" else None
    plan = cast_plan(to, keep=keep, modelopt_python=python)
    with console.progress(f"cast to {to}") as progress:
        typed = cast_bundle(
            proven_bundle(bundle), output, plan, overwrite=overwrite, on_component=lambda name, _: progress(name, 0.5)
        )
    _print_bundle(typed, as_json)


@app.command()
def precision_search(
    bundle: options.BundleFolder,
    audio: options.Audio,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="KEEP.yaml", help="The keep list to write.")],
    to: Annotated[Literal["fp16", "bf16"], typer.Option("--to", help="The half precision to search for.")] = "fp16",
    decoder: options.Decoder = None,
    as_json: options.Json = False,
) -> None:
    """Find the fewest nodes that must stay float32 for half precision to pass the comparison on the clips.

    The list is for: nemotrt cast BUNDLE --to mixed --keep KEEP.yaml
    A search that was interrupted goes on where it was.
    """
    from nemotrt import console
    from nemotrt.bench.precision_search import SearchPlan, search_precision
    from nemotrt.bench.utterance import read_utterances
    from nemotrt.engines.audio import read_clips
    from nemotrt.stages import proven_bundle

    loaded = proven_bundle(bundle)
    utterances = read_utterances(read_clips(audio), sample_rate=loaded.meta.audio_front_end().sample_rate)
    with console.progress("precision-search") as progress:
        found = search_precision(loaded, utterances, output, SearchPlan(to, decoder), on_progress=progress)
    if as_json:
        _print_json({"keep_list": str(output), **asdict(found)})
    else:
        for name in found.keep:
            typer.echo(name)
        kept = f"{len(found.keep)} of {found.half_nodes} half precision nodes stay float32"
        typer.echo(f"{output}: {kept}; {found.comparisons} comparisons, {found.recalled} known before")


@app.command()
def quantize(
    bundle: options.BundleFolder,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder for the quantized bundle.")],
    to: Annotated[Literal["int8", "fp8"], typer.Option("--to", help="Eight-bit numbers to store.")] = "int8",
    audio: options.CalibrationAudio = None,
    calibration: options.Calibration = "percentile",
    weight_only: options.WeightOnly = False,
    keep: options.KeepScopes = None,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write eight-bit weights and activations into the large matrix products, calibrated on real speech.

    Everything else stays in float32. What it costs in words: nemotrt compare BUNDLE QUANTIZED --audio CLIPS
    """
    from nemotrt import console
    from nemotrt.quantize import quantize as quantize_on_audio
    from nemotrt.stages import proven_bundle
    from nemotrt.trt.quantization.audit import check_quantized
    from nemotrt.trt.quantization.quantized_bundle import QuantizationOrder

    order = QuantizationOrder(to=to, calibration=calibration, weight_only=weight_only, keep=tuple(keep or ()))
    with console.progress(f"quantize to {to}") as progress:
        made = quantize_on_audio(
            proven_bundle(bundle),
            output,
            order,
            audio=audio,
            threads=threads,
            overwrite=overwrite,
            on_progress=progress,
        )
    audit = check_quantized(made)
    if as_json:
        _print_json({"path": str(made.path), "audit": asdict(audit), **made.meta.model_dump(mode="json")})
    else:
        console.print_bundle(made)
        console.print_audit(audit)


@app.command()
def fix(
    source: options.FixSource = None,
    output: options.FixOutput = None,
    only: options.OnlyPasses = None,
    skip: options.SkipPasses = None,
    no_verify: options.NoVerify = False,
    list_passes: options.ListPasses = False,
    explain: options.Explain = False,
    as_json: options.Json = False,
) -> None:
    """Turn somebody else's ONNX encoder, NeMo's own export for one, into a lean one with the same results.

    Each change is proved: ONNX Runtime runs both graphs over a grid of shapes with ragged lengths.
    A pass that would change results is named, and nothing is written.
    """
    from nemotrt import console, console_fix
    from nemotrt.fixing import fix as fix_files
    from nemotrt.trt.surgery import PASSES, chosen_passes

    if list_passes:
        if as_json:
            _print_json({"passes": [{"name": one.name, "does": one.does} for one in PASSES]})
        else:
            console_fix.print_passes(PASSES)
        return
    if source is None or output is None:
        raise UsageError("there is nothing to fix, or nowhere to write it", fix="nemotrt fix GRAPH.onnx -o FOLDER")
    passes = chosen_passes(only=only or (), skip=skip or ())
    with console.progress("fix") as progress:
        fixed = fix_files(
            source,
            output,
            passes=passes,
            verify=not no_verify,
            explain=explain,
            on_pass=lambda name: progress(name, 0.5),
        )
    if as_json:
        _print_json({"graphs": [one.as_dict() for one in fixed]})
    else:
        console_fix.print_fixed(fixed, explain=explain)


@app.command()
def build(
    bundle: options.BundleFolder,
    engines: Annotated[Path, typer.Option("--engines", metavar="STORE", help="Folder of the engine store.")],
    profile: options.ProfileName = "single-stream",
    runtime: options.Runtime = "auto",
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="NAME", help="Component to build, repeatable.", show_default="all"),
    ] = None,
    compute_capability: options.ComputeCapabilities = None,
    as_json: options.Json = False,
) -> None:
    """Build a TensorRT engine of each component and put it into the engine store."""
    from nemotrt import console
    from nemotrt.engines.store import EngineStore
    from nemotrt.profiles import load_profile
    from nemotrt.stages import EngineOrder, ensure_engines, proven_bundle, runtime_or_best

    loaded = proven_bundle(bundle)
    order = EngineOrder(
        (load_profile(profile),),
        runtime_or_best(None if runtime == "auto" else runtime),
        tuple(compute_capability or ()),
    )
    with console.progress("build") as progress:
        made = ensure_engines(loaded, order, EngineStore(engines), components=component or (), on_progress=progress)
    if as_json:
        rows = [
            {"plan": str(one.engine.plan_path), "reused": one.reused, **one.engine.manifest.model_dump(mode="json")}
            for one in made
        ]
        _print_json({"engines": rows})
    else:
        console.print_engines(made)


@app.command()
def transcribe(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A bundle, or the folder of nemotrt run.", show_default=False)
    ],
    audio: Annotated[
        list[Path], typer.Argument(metavar="CLIP", help="Audio files, folders or manifests.", show_default=False)
    ],
    decoder: options.Decoder = None,
    threads: options.Threads = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Push the audio in pieces and show the text as it comes.")
    ] = False,
    chunk_seconds: Annotated[
        float | None,
        typer.Option("--chunk-seconds", metavar="X", help="Length of the pieces.", show_default="the model's chunk"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Print the text of audio files. A run folder uses its verified engines on a GPU host, else ONNX Runtime.

    With --stream the bundle needs encoder_streaming: nemotrt export MODEL.nemo -o BUNDLE --component all
    """
    from nemotrt import console
    from nemotrt.engines.audio import read_clips
    from nemotrt.verbs import open_transcriber, transcribe_clips

    clips = [clip for path in audio for clip in read_clips(path)]
    if stream:
        _transcribe_streams(
            model, clips, decoder=decoder, threads=threads, chunk_seconds=chunk_seconds, as_json=as_json
        )
        return
    if chunk_seconds is not None:
        raise UsageError(
            "only a stream has chunks", found="--chunk-seconds without --stream", fix="add --stream, or leave it out"
        )
    with open_transcriber(model, decoder=decoder, threads=threads) as transcriber:
        heard = transcribe_clips(transcriber, clips)
        if as_json:
            rows = [_row(one) for one in heard]
            _print_json({"runtime": transcriber.label, "decoder": transcriber.decoder, "clips": rows})
        else:
            console.print_transcripts(transcriber, heard)


@app.command()
def compare(
    reference: Annotated[
        Path,
        typer.Argument(metavar="A", help="The reference: a bundle, or a folder of nemotrt run.", show_default=False),
    ],
    candidate: Annotated[Path, typer.Argument(metavar="B", help="The candidate: the same.", show_default=False)],
    audio: options.Audio,
    decoder: options.Decoder = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Run the same audio through two bundles: lengths, frames, rows, tokens, words. Exit code 1 if different."""
    from nemotrt import console
    from nemotrt.bench.error_places import error_places
    from nemotrt.verbs import compare_models

    with console.progress("compare") as progress:
        comparison = compare_models(
            reference,
            candidate,
            audio,
            decoder=decoder,
            threads=threads,
            on_progress=progress,
        )
    if as_json:
        places = {
            title: {at: count.model_dump() for at, count in counts.items()}
            for title, counts in error_places(comparison).items()
        }
        _print_json({**comparison.model_dump(mode="json"), **places})
    else:
        console.print_comparison(comparison)
    if comparison.verdict == "fail":
        raise typer.Exit(ComparisonFailed.exit_code)


@app.command()
def debug(
    reference: Annotated[Path, typer.Argument(metavar="A", help="The bundle that is right.", show_default=False)],
    candidate: Annotated[Path, typer.Argument(metavar="B", help="The bundle that is wrong.", show_default=False)],
    audio: options.Audio,
    component: Annotated[
        str | None,
        typer.Option(
            "--component", metavar="NAME", help="Try this one only.", show_default="all that the decoder runs"
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for the report and the inputs.")
    ] = Path("nemotrt-debug"),
    decoder: options.Decoder = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Find what makes two bundles of one checkpoint differ: the component, then the node. Exit code 1 if they do.

    Each component of B runs alone in the pipeline of A.
    Within one that differs the first wrong tensor is looked for.
    """
    from nemotrt import console
    from nemotrt.bench.debug_report import report_lines
    from nemotrt.debugging import debug_bundles

    with console.progress("debug") as progress:
        found = debug_bundles(
            reference,
            candidate,
            audio,
            output=output,
            component=component,
            decoder=decoder,
            threads=threads,
            on_progress=progress,
        )
    if as_json:
        _print_json(found.document())
    else:
        typer.echo("\n".join(report_lines(found)))
    if not found.agrees:
        raise typer.Exit(ComparisonFailed.exit_code)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE|ONNX|PLAN", help="What to look into.", show_default=False)],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with every graph by block.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say what is in a bundle, an ONNX file or an engine: interface, operators, weights by type, limits."""
    from nemotrt.bench.inspection import inspect_path
    from nemotrt.bench.inspection_page import write_inspection_page
    from nemotrt.bench.inspection_text import inspection_lines

    inspection = inspect_path(path)
    if html is not None:
        write_inspection_page(inspection, html)
    if as_json:
        _print_json(inspection.document())
    else:
        typer.echo("\n".join(inspection_lines(inspection)))


@app.command()
def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL", help="Bundles or folders of nemotrt run; the first is the baseline.", show_default=False
        ),
    ],
    audio: options.Audio,
    batch_size: Annotated[
        list[int] | None,
        typer.Option("--batch-size", metavar="N", min=1, help="Clips in a batch, repeatable.", show_default="1"),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Timed runs of each model.")] = 20,
    decoder: options.Decoder = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Time models on the same audio, interleaved in one run: latency by stage, RTFx and ratios."""
    from nemotrt import console
    from nemotrt.bench.latency import LatencyPlan
    from nemotrt.verbs import bench_models

    plan = LatencyPlan(batch_sizes=tuple(batch_size or (1,)), runs=runs, warmup=2, threads=threads)
    with console.progress("bench") as progress:
        latency = bench_models(models, audio, plan=plan, decoder=decoder, on_progress=progress)
    if as_json:
        _print_json(latency.model_dump(mode="json"))
    else:
        console.print_latency(latency)


@app.command()
def bench_export(
    checkpoints: Annotated[
        list[Path], typer.Argument(metavar="MODEL.nemo", help="NeMo checkpoints.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RESULTS.json", help="The results to write.")],
    nemo_python: options.NemoPython = None,
    profile: options.ProfileName = "demo",
    runs: Annotated[int, typer.Option("--runs", metavar="N", min=1, help="Timed runs of each graph and shape.")] = 20,
    builds: Annotated[int, typer.Option("--builds", metavar="N", min=0, help="TensorRT builds of each graph.")] = 3,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Compare our export with NeMo's own: cost, files, speed in ONNX Runtime, TensorRT layers and build time.

    NeMo runs in a process of its own. The results' page: nemotrt report.
    """
    from nemotrt import console
    from nemotrt.bench.nemo_export import NemoExportPlan, compare_with_nemo_export
    from nemotrt.bench.nemo_export_results import write_nemo_export_results
    from nemotrt.profiles import load_profile

    python = nemo_python or Path(sys.executable)
    plan = NemoExportPlan(load_profile(profile), nemo_python=python, runs=runs, builds=builds, threads=threads)
    with console.progress("bench-export") as progress:
        results = compare_with_nemo_export(checkpoints, plan, on_progress=progress)
    write_nemo_export_results(results, output)
    if as_json:
        _print_json(results.model_dump(mode="json"))
    else:
        console.print_nemo_export(results)


@app.command()
def report(
    results: Annotated[
        Path,
        typer.Argument(metavar="RESULTS.json", help="Made by nemotrt run or nemotrt bench-export.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="REPORT.html", help="The page to write.")],
    as_json: options.Json = False,
) -> None:
    """Write the HTML report of a results file."""
    from nemotrt.bench.pages import write_page

    page = write_page(results, output)
    if as_json:
        _print_json({"report": str(page)})
    else:
        typer.echo(page)


@app.command()
def doctor(nemo_python: options.NemoPython = None, as_json: options.Json = False) -> None:
    """Say what this machine can do, and what to install for the rest.

    With --nemo-python, NeMo is imported there, and an import that fails is explained.
    """
    from nemotrt import console
    from nemotrt.doctor import diagnose

    findings = diagnose(Path.cwd(), nemo_python=nemo_python)
    if as_json:
        _print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        console.print_findings(findings)


def main() -> None:
    """Run the command line; what the user or the machine did wrong becomes one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without an en dash shows something else
    try:
        code = app(prog_name="nemotrt", standalone_mode=False) or 0
    except NemotrtError as exc:
        code = _print_error(exc)
    except typer.TyperException as exc:
        code = _print_error(_wrong_command_line(exc))
    except OSError as exc:
        code = _print_error(_refused_by_the_system(exc))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        typer.echo("interrupted; what was finished stays, and nemotrt run goes on from there", err=True)
    raise SystemExit(code)


def _transcribe_streams(
    model: Path,
    clips: Sequence[Clip],
    *,
    decoder: Decoder | None,
    threads: int | None,
    chunk_seconds: float | None,
    as_json: bool,
) -> None:
    from nemotrt import console
    from nemotrt.verbs import StreamedText, open_streaming_transcriber, stream_clip

    with open_streaming_transcriber(model, decoder=decoder, threads=threads) as transcriber:

        def streamed(clip: Clip) -> StreamedText:
            with console.live_text() as show:
                return stream_clip(transcriber, clip, chunk_seconds=chunk_seconds, on_partial=show)

        heard = map(streamed, clips)
        if as_json:
            rows = [{**_row(one.heard), "partials": [asdict(partial) for partial in one.partials]} for one in heard]
            _print_json({"runtime": transcriber.label, "decoder": transcriber.decoder, "clips": rows})
        else:
            console.print_transcripts(transcriber, (one.heard for one in heard))


def _row(heard: ClipText) -> dict[str, object]:
    path, ids = str(heard.clip.path), heard.token_ids
    return {"path": path, "seconds": heard.seconds, "text": heard.text, "token_ids": ids}


def _print_bundle(bundle: Any, as_json: bool) -> None:
    from nemotrt import console

    if as_json:
        _print_json({"path": str(bundle.path), **bundle.meta.model_dump(mode="json")})
    else:
        console.print_bundle(bundle)


def _print_json(document: object) -> None:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    typer.echo(json.dumps(document, indent=1, ensure_ascii=not is_utf8))


def _print_error(error: NemotrtError) -> int:
    """Say what is wrong, and return the exit code."""
    if "--json" in sys.argv:
        _print_json(error.as_dict())
    typer.echo(f"error: {error}", err=True)
    return error.exit_code


def _wrong_command_line(exc: typer.TyperException) -> UsageError:
    context = getattr(exc, "ctx", None)
    command = context.command_path if context else "nemotrt"
    what = exc.format_message().replace(": Value error, ", ": ")  # a name of the validator's, not of the user's
    return UsageError(what, where=command, fix=f"see: {command} --help")


def _refused_by_the_system(exc: OSError) -> MachineError:
    return MachineError(
        "the system refuses to read or write a file",
        where=exc.filename,
        found=exc.strerror or str(exc),
        fix="check the path, its permissions, and the space on the disk",
    )

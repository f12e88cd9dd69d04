"""What people see: tables on stdout, progress on stderr."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nemotrt.bench import quantities
from nemotrt.bench.error_places import error_places
from nemotrt.bench.nemo_export_page import figure_rows, latency_rows, summary_sentence
from nemotrt.bench.nemo_export_results import NemoExportResults
from nemotrt.bench.results import Comparison, EngineBuild, Latency, Results
from nemotrt.bench.transcripts import word_errors_by_system
from nemotrt.bundle import Bundle
from nemotrt.export.options import Notice, TakenOver

if TYPE_CHECKING:  # what is only shown need not be loaded: an export starts as fast as it can
    from nemotrt.doctor import Finding
    from nemotrt.engines.streaming_transcriber import StreamingTranscriber
    from nemotrt.engines.transcriber import Transcriber
    from nemotrt.inspection import Inspection
    from nemotrt.pipeline import RunSummary
    from nemotrt.stages import MadeEngine
    from nemotrt.trt.quantization.audit import DtypeAudit
    from nemotrt.verbs import ClipText, PartialText

_PIPE_WIDTH = 160  # columns where stdout is a file or a pipe: tables are not cut there
# What is printed comes from files: "[noise]" is a word of a transcript, not an instruction to the console.
_out = Console(width=None if Console().is_terminal else _PIPE_WIDTH, highlight=False, markup=False, emoji=False)
_err = Console(stderr=True, highlight=False, markup=False, emoji=False)

_LONGEST = 240  # characters of a sentence in a table; --json has all of it

_STYLES = {"pass": "green", "verified": "green", "yes": "green", "fail": "red", "failed": "red", "no": "yellow"}
_STYLES |= {"error": "red", "warning": "yellow", "note": "dim"}


@contextmanager
def progress(verb: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr while the block runs; without a terminal, nothing."""
    with stage_progress() as report:
        yield lambda what, fraction: report(verb, what, fraction)


@contextmanager
def stage_progress() -> Iterator[Callable[[str, str, float], None]]:
    """A bar a stage; without a terminal, a line when a stage begins."""
    columns = (SpinnerColumn(), TextColumn("{task.description:<22}"), BarColumn(24), TextColumn("{task.fields[what]}"))
    with Progress(*columns, TimeElapsedColumn(), console=_err, transient=True, disable=not _err.is_terminal) as bars:
        tasks: dict[str, object] = {}

        def report(stage: str, what: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0, what=what)
                if not _err.is_terminal:
                    _err.print(f"{stage} ...")
            bars.update(tasks[stage], completed=fraction, what=what)  # type: ignore[arg-type]  # rich's TaskID is int

        yield report


def show(what: str | Table) -> None:
    """On stdout, a line or a table."""
    _out.print(what, soft_wrap=isinstance(what, str))


def print_taken_over(notice: Notice) -> None:
    """On stderr, what an export does not do again; other notices are not for people."""
    if isinstance(notice, TakenOver):
        _err.print(f"taken over from an export that did not finish: {', '.join(notice.components)}", soft_wrap=True)


def print_summary(summary: RunSummary) -> None:
    """The end of ``nemotrt run``: transcripts, errors, engines, verdicts, and where the report is."""
    results = summary.results
    _print_transcripts(results)
    _print_word_errors(results)
    _print_engines(results.engines)
    for comparison in results.comparisons:
        _print_verdict(comparison)
    if results.latency is not None:
        print_latency(results.latency)
    for skipped in results.skipped:
        _line(Text.assemble(("skipped  ", "yellow"), f"{skipped.what}: {skipped.reason}"))
    done = ", ".join(f"{stage.stage}: {stage.made}{' (reused)' if stage.reused else ''}" for stage in summary.stages)
    _line(f"\n{done}")
    _line(Text.assemble("verdict  ", (summary.verdict, _STYLES.get(summary.verdict, "yellow")), _unproven(results)))
    for reason in results.reasons:
        _line(f"         {reason}")
    _line(f"report   {summary.report}")


def print_bundle(bundle: Bundle) -> None:
    """Components with nodes' interfaces and sizes."""
    meta = bundle.meta
    table = _table(f"{bundle.path}: {meta.name}, {meta.family}, {meta.precision}")
    for column in ("component", "inputs", "outputs", "parameters", "size"):
        table.add_column(column, justify="right" if column in ("parameters", "size") else "left")
    counted: set[str] = set()  # a variant shares the data file of its component
    for name, spec in meta.components.items():
        size = sum(meta.files[file].size_bytes for file in spec.files if file not in counted)
        counted.update(spec.files)
        table.add_row(
            name,
            ", ".join(tensor.name for tensor in spec.inputs),
            ", ".join(tensor.name for tensor in spec.outputs),
            f"{spec.parameters:,}",
            quantities.size(size),
        )
    _out.print(table)
    for note in meta.notes:
        _line(f"note: {note}")


def print_inspection(inspection: Inspection) -> None:
    """The bundle, if it is one; then a line for each finding, worst first, and the verdict."""
    if inspection.bundle is not None:
        print_bundle(inspection.bundle)
    rows = [(one.rule, one.component, one.place) for one in inspection.findings]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, finding in zip(rows, inspection.findings, strict=True):
        columns = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        severity = Text(f"{finding.severity:<9}", _STYLES[finding.severity])
        _line(Text.assemble(severity, columns, f"  {_cut(finding.what)}", (f"  -> {finding.fix}", "dim")))
    counts = Counter(finding.severity for finding in inspection.findings)
    found = ", ".join(quantities.counted(counts[kind], kind) for kind in counts) or "nothing found"
    verdict = Text(inspection.verdict.upper(), _STYLES[inspection.verdict])
    _line(
        Text.assemble(verdict, f"  {inspection.target}: {quantities.counted(len(inspection.rules), 'rule')}, {found}")
    )
    for name in inspection.unasked:
        _line(Text.assemble(("not asked  ", "yellow"), f"{name}: not installed here"))


def print_engines(made: Iterable[MadeEngine]) -> None:
    """Engines that were built or found."""
    table = _engine_table()
    for one in made:
        manifest = one.engine.manifest
        state = manifest.verification.state
        table.add_row(
            manifest.component,
            manifest.precision,
            f"{manifest.runtime} {manifest.runtime_version}",
            manifest.profile,
            str(manifest.layers),
            quantities.size(manifest.size_bytes),
            "reused" if one.reused else quantities.duration(manifest.build_seconds),
            Text(state, _STYLES.get(state, "yellow")),
        )
    _out.print(table)


@contextmanager
def live_text() -> Iterator[Callable[[PartialText], None]]:
    """The text so far, on stderr while the block runs; without a terminal, a line for every change."""
    if not _err.is_terminal:
        yield lambda partial: _err.print(f"{partial.seconds:8.2f} s  {partial.text}", soft_wrap=True)
        return
    with Live(console=_err, transient=True) as live:
        yield lambda partial: live.update(Text(partial.text, "dim"), refresh=True)


def print_transcripts(transcriber: Transcriber | StreamingTranscriber, spoken: Iterable[ClipText]) -> None:
    """One line a clip, as it is heard; what ran it goes to stderr."""
    _err.print(f"{transcriber.decoder} on {transcriber.label}", style="dim")
    for one in spoken:
        _out.file.write(f"{one.clip.path}\t{one.text}\n")  # the console would make blanks of the tab


def print_audit(audit: DtypeAudit) -> None:
    """What the weights of a quantized bundle are stored as."""
    total = sum(audit.weight_bytes.values())
    for dtype, stored in sorted(audit.weight_bytes.items(), key=lambda item: -item[1]):
        products = quantities.counted(audit.products.get(dtype, 0), "product")
        _line(f"{dtype:<14} {quantities.size(stored):>8}  {quantities.percent(stored / total):>8}  {products}")
    _line(f"products with quantized activations: {audit.quantized_activations}")


def print_comparison(comparison: Comparison) -> None:
    """The verdict with its checks, where errors are, then the clips that differ."""
    _print_verdict(comparison)
    if comparison.differing:
        for title, counts in error_places(comparison).items():
            _line(
                f"  {title.replace('_', ' ')}: "
                + ", ".join(f"{at} {quantities.error_rate(count)}" for at, count in counts.items())
            )
    for row in comparison.differing:
        changes = "; ".join(f"{c.kind} {c.reference!r} -> {c.candidate!r}" for c in row.changes) or "same words"
        _line(f"  {row.clip}: {row.tokens.errors} of {row.tokens.length} tokens differ; {changes}")


def print_latency(latency: Latency) -> None:
    """Median of each stage, RTFx, and the ratio to the baseline."""
    table = _table(f"latency, median of {latency.runs} interleaved runs")
    for column in ("system", "batch", "preprocessor", "encoder", "decode", "whole", "p95", "RTFx", "ratio"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for row in latency.rows:
        stages = [row.stage(name) for name in ("preprocessor", "encoder", "decode", "whole")]
        whole = stages[-1]
        table.add_row(
            row.candidate,
            str(row.batch_size),
            *(quantities.duration(stage.p50 if stage else None) for stage in stages),
            quantities.duration(whole.p95 if whole else None),
            quantities.whole(row.rtfx),
            "baseline" if row.ratio is None else f"{row.ratio.p50:.2f}",
        )
    _out.print(table)


def print_nemo_export(results: NemoExportResults) -> None:
    """Both exports side by side, one table a checkpoint; then which goals were met."""
    for exports in results.checkpoints:
        table = _table(f"{exports.checkpoint}: {exports.layers} layers of {exports.d_model}")
        for column in ("", "NeMo", "nemotrt", "nemotrt / NeMo"):
            table.add_column(column, justify="right" if column else "left")
        for row in figure_rows(exports):
            table.add_row(row.name, row.nemo, row.nemotrt, row.ratio)
        for latency in latency_rows(exports):
            name = f"ONNX Runtime, {latency.shape}; largest difference {latency.difference}"
            table.add_row(name, latency.nemo, latency.nemotrt, latency.ratio)
        _out.print(table)
        for skipped in exports.unmeasured:
            _out.print(Text.assemble(("not measured  ", "yellow"), f"{skipped.what}: {skipped.reason}"))
    _out.print(summary_sentence(results))


def print_findings(findings: Iterable[Finding]) -> None:
    """The diagnosis, with advice below what is missing."""
    table = _table("")
    table.add_column("")
    table.add_column("", overflow="fold")
    for finding in findings:
        mark = {"yes": "yes", "no": "no ", "info": "   "}[finding.state]
        table.add_row(Text(f"{mark} {finding.subject}", _STYLES.get(finding.state, "")), finding.found)
        if finding.advice:
            table.add_row("", Text(f"-> {finding.advice}", "dim"))
    table.show_header = False
    _out.print(table)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _unproven(results: Results) -> str:
    """What the verdict does not cover."""
    count = sum(engine.state == "built, not verified" for engine in results.engines)
    return f"; {quantities.counted(count, 'engine')} built, not verified" if count else ""


def _print_transcripts(results: Results) -> None:
    if not results.transcripts:
        return
    systems = [output.system for output in results.transcripts[0].outputs]
    shown = next((name for name in systems if "FP16" in name), systems[-1])
    table = _table(f"transcripts ({shown})")
    for column in ("clip", "seconds", "truth", "heard"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for transcript in results.transcripts:
        heard = next((output.text for output in transcript.outputs if output.system == shown), "")
        same = heard == transcript.truth
        table.add_row(
            transcript.clip, f"{transcript.seconds:.2f}", transcript.truth or "", Text(heard, "" if same else "yellow")
        )
    _out.print(table)


def _print_word_errors(results: Results) -> None:
    errors = word_errors_by_system(results.transcripts)
    if not errors:
        return
    table = _table("word error rate against the truth")
    table.add_column("system")
    table.add_column("WER", justify="right")
    for system, count in errors.items():
        table.add_row(system, quantities.error_rate(count))
    _out.print(table)


def _print_engines(engines: Sequence[EngineBuild]) -> None:
    if not engines:
        return
    table = _engine_table()
    for engine in engines:
        table.add_row(
            engine.component,
            engine.precision,
            f"{engine.runtime} {engine.runtime_version}",
            engine.profile,
            str(engine.layers),
            quantities.size(engine.size_bytes),
            quantities.duration(engine.seconds),
            Text(engine.state, _STYLES.get(engine.state, "yellow")),
        )
    _out.print(table)


def _print_verdict(comparison: Comparison) -> None:
    verdict = Text(comparison.verdict.upper(), _STYLES[comparison.verdict])
    _line(Text.assemble(verdict, f"  {comparison.decoder}: {comparison.candidate} against {comparison.reference}"))
    for check in comparison.checks:
        if check.state != "not checked":
            mark = Text(f"      {check.state:<5}", _STYLES[check.state])
            _line(Text.assemble(mark, f"{check.name}: {check.finding}"))


def _line(text: str | Text) -> None:
    """One line, however long: whoever reads a pipe line by line gets all of it."""
    _out.print(text, soft_wrap=True)


def _engine_table() -> Table:
    table = _table("engines")
    for column in ("component", "precision", "runtime", "profile", "layers", "size", "built in", "state"):
        table.add_column(column, justify="right" if column in ("layers", "size", "built in") else "left")
    return table


def _table(title: str) -> Table:
    return Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )

"""Which component of a bundle is to blame: each is tried alone in the pipeline of the reference.

    clips --> reference pipeline --------------> calls of every component, tokens, lengths
          --> the same with one component of B --> tokens, lengths        what it does to the text
    calls --> that component of B alone ---------> outputs                what it does to its own outputs
          --> all components of B ---------------> tokens                 what they do together

The variants without masks, which run wherever nothing is padded, are tried as components of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MappingProxyType

from nemotrt.bench.system import Progress, silent
from nemotrt.bench.tensor_difference import TensorDifference, tensor_difference
from nemotrt.bench.tolerances import TensorTolerance
from nemotrt.bench.utterance import Utterance
from nemotrt.bundle import Bundle, ComponentName, Decoder, TensorSpec
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.padding_aware_runner import VARIANT_SUFFIX, PaddingAwareRunner
from nemotrt.engines.runner import Array, Arrays, Runner
from nemotrt.engines.transcriber import Transcriber, Transcription, components_of, decoders_of
from nemotrt.errors import GraphError, UsageError
from nemotrt.trt.tensor_graph import TensorGraph

CALLS_KEPT = 32
"""Calls of a component that are kept of one clip: a decoder calls its components for every token."""


@dataclass(frozen=True, eq=False)
class Side:
    """A bundle, with runners for the components that something else than ONNX Runtime runs."""

    bundle: Bundle
    runners: Mapping[str, Runner] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, eq=False)
class Call:
    """One inference of a component while a clip was transcribed."""

    clip: str
    number: int
    feeds: Arrays
    outputs: Arrays


@dataclass(frozen=True, eq=False)
class OutputDifference:
    """The first output that differs although the component was given what the reference was given."""

    tensor: str
    call: Call
    difference: TensorDifference


@dataclass(frozen=True, eq=False)
class SwappedComponent:
    """One component of B in the pipeline of A.

    ``tokens`` and ``lengths`` name the clips where these differ; ``failed`` says why a clip could not be transcribed.
    """

    component: str
    output: OutputDifference | None
    tokens: tuple[str, ...]
    lengths: tuple[str, ...]
    failed: str | None

    @property
    def is_to_blame(self) -> bool:
        """Whether anything differs."""
        return bool(self.output or self.tokens or self.lengths or self.failed)


@dataclass(frozen=True, eq=False)
class ComponentSwap:
    """Every component, in the order of the data; ``together`` names the clips whose tokens all of B changes."""

    decoder: Decoder
    clips: int
    components: tuple[SwappedComponent, ...]
    together: tuple[str, ...]

    @property
    def to_blame(self) -> tuple[SwappedComponent, ...]:
        """The components that differ."""
        return tuple(one for one in self.components if one.is_to_blame)

    @property
    def agrees(self) -> bool:
        """Whether A and B are the same."""
        return not self.to_blame and not self.together


def swap_components(
    reference: Side,
    candidate: Side,
    utterances: Sequence[Utterance],
    *,
    tolerance: TensorTolerance,
    decoder: Decoder | None = None,
    only: str | None = None,
    threads: int | None = None,
    on_progress: Progress = silent,
) -> ComponentSwap:
    """Try every component of ``candidate``, or ``only`` one, in the pipeline of ``reference``, each clip alone.

    Raises:
        UsageError: no clips, a bundle without this decoder, or ``only`` is no component that the decoder runs.
        BundleError, AudioError, GraphError: the reference itself cannot be run.
    """
    if not utterances:
        raise UsageError("there is no clip to try", fix="give a manifest, a folder or a file with audio")
    pipeline = _Pipeline(reference, utterances, decoder=decoder, threads=threads)
    names = _chosen(pipeline.components, candidate.bundle, only)
    with pipeline:
        swapped = []
        for number, name in enumerate(names):
            on_progress(f"{name} of B in A", number / (len(names) + 1))
            swapped.append(pipeline.with_component(candidate, name, tolerance=tolerance))
        expected, decided = pipeline.tokens, pipeline.decoder
    on_progress("all of B", len(names) / (len(names) + 1))
    together = () if only else _changed_by_all(candidate, utterances, expected, decoder=decided, threads=threads)
    return ComponentSwap(decided, len(utterances), tuple(swapped), together)


class _Pipeline:
    """The reference, its calls and results on every clip; closed on exit."""

    def __init__(
        self, side: Side, utterances: Sequence[Utterance], *, decoder: Decoder | None, threads: int | None
    ) -> None:
        self._bundle, self._utterances, self._threads = side.bundle, utterances, threads
        self.decoder = decoder or decoders_of(side.bundle.meta)[0]
        self.components = [name for name in components_of(self.decoder) if name in side.bundle.meta.components]
        with ExitStack() as opened:
            self._runners: dict[str, Runner] = {
                name: _open(side, name, opened, threads=threads) for name in self.components
            }
            recorders: dict[str, _Recorder] = {name: _Recorder(runner) for name, runner in self._runners.items()}
            self._heard = [self._recorded(utterance, recorders) for utterance in utterances]
            self._opened = opened.pop_all()
        self._calls = {name: recorder.calls for name, recorder in recorders.items()}

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def tokens(self) -> tuple[tuple[int, ...], ...]:
        """Of every clip."""
        return tuple(heard.hypothesis.token_ids for heard in self._heard)

    def with_component(self, side: Side, name: str, *, tolerance: TensorTolerance) -> SwappedComponent:
        """What changes when ``name`` comes from ``side``."""
        base = _component_of(name)
        with ExitStack() as opened:
            runner = _open(side, name, opened, threads=self._threads)
            output = _first_difference(runner, self._calls[base], TensorGraph(side.bundle.graph_path(name)), tolerance)
            if name != base:
                runner = self._padding_aware(runner, base)
            swapped = Transcriber(self._bundle, decoder=self.decoder, runners={**self._runners, base: runner})
            tokens, lengths, failed = self._changes(swapped)
        return SwappedComponent(name, output, tokens, lengths, failed)

    def _padding_aware(self, variant: Runner, base: ComponentName) -> Runner:
        spec = self._bundle.component(base)
        return PaddingAwareRunner(
            variant,
            lambda: self._runners[base],
            inputs=spec.inputs,
            outputs=spec.outputs,
            spec=self._bundle.meta.encoder,
        )

    def _recorded(self, utterance: Utterance, recorders: Mapping[str, _Recorder]) -> Transcription:
        for recorder in recorders.values():
            recorder.begin(utterance.clip.name)
        transcriber = Transcriber(self._bundle, decoder=self.decoder, runners=recorders)
        return transcriber.transcribe([utterance.waveform])[0]

    def _changes(self, swapped: Transcriber) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
        tokens: list[str] = []
        lengths: list[str] = []
        for utterance, expected in zip(self._utterances, self._heard, strict=True):
            try:
                heard = swapped.transcribe([utterance.waveform])[0]
            except GraphError as exc:
                return tuple(tokens), tuple(lengths), f"{utterance.clip.name}: {exc.what}: {exc.found}"
            if heard.hypothesis.token_ids != expected.hypothesis.token_ids:
                tokens.append(utterance.clip.name)
            if heard.encoded_length != expected.encoded_length:
                lengths.append(utterance.clip.name)
        return tuple(tokens), tuple(lengths), None


class _Recorder:
    """The runner it is made of, and the first calls that it got of every clip."""

    def __init__(self, inner: Runner) -> None:
        self._inner, self._clip, self._number = inner, "", 0
        self.calls: list[Call] = []

    @property
    def label(self) -> str:
        return self._inner.label

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._inner.outputs

    def begin(self, clip: str) -> None:
        self._clip, self._number = clip, 0

    def run(self, feeds: Arrays) -> dict[str, Array]:
        outputs = self._inner.run(feeds)
        if self._number < CALLS_KEPT:
            self.calls.append(Call(self._clip, self._number, dict(feeds), outputs))
        self._number += 1
        return outputs

    def close(self) -> None:
        self._inner.close()


def _chosen(components: Sequence[ComponentName], candidate: Bundle, only: str | None) -> tuple[str, ...]:
    """Components in the order of the data, each before its variant."""
    names = [
        variant
        for name in components
        for variant in (name, f"{name}{VARIANT_SUFFIX}")
        if variant in candidate.meta.components
    ]
    if only is None:
        return tuple(names)
    if only not in names:
        raise UsageError(
            f"{only!r} is not a component that the decoder runs",
            where=candidate.path,
            found=", ".join(names),
            fix="name one of those found, or another --decoder",
        )
    return (only,)


def _component_of(name: str) -> ComponentName:
    base: ComponentName = name.removesuffix(VARIANT_SUFFIX)  # type: ignore[assignment]  # it is one without its suffix
    return base


def _open(side: Side, name: str, opened: ExitStack, *, threads: int | None) -> Runner:
    given = side.runners.get(name)
    if given is not None:
        return given
    runner = OnnxRuntimeRunner(side.bundle.graph_path(name), spec=side.bundle.component(name), threads=threads)
    opened.callback(runner.close)
    return runner


def _first_difference(
    runner: Runner, calls: Sequence[Call], graph: TensorGraph, tolerance: TensorTolerance
) -> OutputDifference | None:
    """Of the calls of the reference, given to ``runner``."""
    taken = [spec.name for spec in runner.inputs]
    for call in calls:
        outputs = runner.run({name: call.feeds[name] for name in taken})
        for name, array in outputs.items():
            difference = tensor_difference(
                call.outputs[name], array, limit=tolerance.at(graph.depth(name)), frame_axis=graph.frame_axis(name)
            )
            if difference.differs:
                return OutputDifference(name, call, difference)
    return None


def _changed_by_all(
    candidate: Side,
    utterances: Sequence[Utterance],
    expected: Sequence[tuple[int, ...]],
    *,
    decoder: Decoder,
    threads: int | None,
) -> tuple[str, ...]:
    """The clips whose tokens all of B changes, or that it cannot decode."""
    changed = []
    with Transcriber(candidate.bundle, decoder=decoder, runners=candidate.runners, threads=threads) as transcriber:
        for utterance, tokens in zip(utterances, expected, strict=True):
            try:
                is_equal = transcriber.transcribe([utterance.waveform])[0].hypothesis.token_ids == tokens
            except GraphError:
                is_equal = False
            if not is_equal:
                changed.append(utterance.clip.name)
    return tuple(changed)

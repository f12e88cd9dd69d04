"""The graph against the contract of its bundle: tensors, widths of heads, caches of a streaming encoder."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from nemotrt.bundle import BATCH, BundleMeta, ComponentName
from nemotrt.graph_contract import interface_problems
from nemotrt.trt.check.finding import Finding
from nemotrt.trt.check.rule import Rule
from nemotrt.trt.check.subject import Subject

JOINTS: frozenset[ComponentName] = frozenset({"joint", "decoder_joint", "rnnt_step"})
_CTC: frozenset[ComponentName] = frozenset({"ctc", "ctc_nomask", "ctc_head"})
_CACHE = "cache_"
_NEXT = ("_out", "_next")  # ours, NeMo's
_RE_EXPORT = "make the bundle again with nemotrt export"


class ContractInterface(Rule):
    """Names, types and shapes of inputs and outputs."""

    id = "contract-interface"
    severity = "error"
    reason = "clients and profiles are made for the tensors that the metadata names"
    fix = _RE_EXPORT

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each tensor."""
        if subject.component is None:
            return
        graph = subject.proto.graph
        for wanted, found in ((subject.component.inputs, graph.input), (subject.component.outputs, graph.output)):
            for name, problem in interface_problems(wanted, found):
                yield self.found(subject, problem, places=(name,))


class HeadWidth(Rule):
    """The last axis of logits, as shape inference finds it."""

    id = "head-width"
    severity = "error"
    reason = "a joint gives the pieces, blank, and a TDT's durations; a decoder that cuts elsewhere emits noise"
    fix = _RE_EXPORT

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        wanted = None if subject.meta is None else _head_width(subject.name, subject.meta)
        if wanted is None or not subject.graph.outputs:
            return
        logits = subject.graph.outputs[0]
        found = logits.shape[-1] if logits.shape else None
        if isinstance(found, int) and found != wanted:
            yield self.found(
                subject, f"the head is {found} wide, the vocabulary asks for {wanted}", places=(logits.name,)
            )


class StreamingCaches(Rule):
    """Caches of attention and convolution, in and out, and how many frames of them are filled."""

    id = "streaming-caches"
    severity = "error"
    reason = "a streaming encoder without its caches repeats text, or stops with a broadcast error"
    fix = "export the streaming encoder with its caches: nemotrt export --component encoder_streaming"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each cache that is missing or of another shape."""
        inputs = {value.name or "": value for value in subject.graph.inputs}
        outputs = {value.name or "": value for value in subject.graph.outputs}
        caches = {name: value for name, value in inputs.items() if name.startswith(_CACHE)}
        if "streaming" not in subject.name and not caches:
            return
        expected = _cache_shapes(subject.meta, caches.keys())
        for name in dict.fromkeys((*expected, *caches)):
            pair = {name: inputs.get(name), f"{name}_out": _first(outputs, *(name + suffix for suffix in _NEXT))}
            for tensor, value in pair.items():
                shape = expected.get(name)
                if value is None:
                    yield self.found(subject, f"{tensor} is missing", places=(tensor,))
                elif shape and not _has_shape(value, shape):
                    yield self.found(subject, f"{tensor} is {value.shape}, not {list(shape)}", places=(tensor,))


class JointLogSoftmax(Rule):
    """One softmax over the whole width of a TDT joint."""

    id = "joint-log-softmax"
    severity = "error"
    reason = "one log-softmax over tokens and durations makes probabilities of one depend on the other"
    fix = "export raw logits: in NeMo, joint.log_softmax = False"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding; without a contract nobody knows whether it is a TDT, so only a warning."""
        meta = subject.meta
        is_joint = subject.name in JOINTS if meta else "joint" in subject.name
        if not is_joint or (meta and not (meta.transducer and meta.transducer.durations)):
            return
        width = meta.logits_width if meta else None
        nodes = [node for node in subject.nodes if node.op_type in ("LogSoftmax", "Softmax") and _over(node, width)]
        if nodes:
            yield self.found(
                subject,
                "the joint gives log-probabilities of tokens and durations together"
                if meta
                else "the joint gives log-probabilities, which is wrong of a TDT",
                places=(node.name for node in nodes),
                severity=self.severity if meta else "warning",
            )


def _head_width(name: str, meta: BundleMeta) -> int | None:
    if name in JOINTS:
        return meta.logits_width
    return meta.vocabulary_size + 1 if name in _CTC else None


def _cache_shapes(meta: BundleMeta | None, given: Collection[str]) -> Mapping[str, tuple[int | str, ...]]:
    """Every cache by the name of its input; shapes are empty where no contract says them."""
    if meta is None or meta.streaming is None:
        kept = ("cache_keys", "cache_values") if "cache_keys" in given else ("cache_last_channel",)
        return dict.fromkeys((*kept, "cache_last_time", "cache_last_channel_len"), ())
    spec, streaming = meta.encoder, meta.streaming
    stacked, left = (spec.layers, BATCH), streaming.left_context_frames
    by_head = (*stacked, spec.heads, left, spec.d_model // spec.heads)
    attention: dict[str, tuple[int | str, ...]] = (
        {"cache_last_channel": (*stacked, left, spec.d_model)}
        if streaming.cache == "inputs"
        else {"cache_keys": by_head, "cache_values": by_head}
    )
    convolution = (*stacked, spec.d_model, streaming.conv_cache_frames)
    return {**attention, "cache_last_time": convolution, "cache_last_channel_len": (BATCH,)}


def _has_shape(value: ir.Value, shape: tuple[int | str, ...]) -> bool:
    axes = tuple(value.shape or ())
    fits = (not isinstance(wanted, int) or axis == wanted for axis, wanted in zip(axes, shape, strict=False))
    return len(axes) == len(shape) and all(fits)


def _first(values: Mapping[str, ir.Value], *names: str) -> ir.Value | None:
    return next((values[name] for name in names if name in values), None)


def _over(node: ir.Node, width: int | None) -> bool:
    shape = node.outputs[0].shape
    return width is None or not shape or shape[-1] in (width, None) or not isinstance(shape[-1], int)


RULES = (ContractInterface(), HeadWidth(), StreamingCaches(), JointLogSoftmax())

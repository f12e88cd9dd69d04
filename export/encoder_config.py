"""The encoder's part of a config: ``encoder`` and what the user chooses -> EncoderConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemotrt.bundle import EncoderSpec
from nemotrt.errors import ConfigError, UnsupportedModelError, UsageError
from nemotrt.export.section import Section, shown
from nemotrt.profiles import subsampled_frames

Subsampling = Literal["dw_striding", "striding", "linear"]
ConvNorm = Literal["batch_norm", "fused_batch_norm", "layer_norm", "instance_norm", "group_norm"]

LOCAL_ATTENTION = "rel_pos_local_attn"

_MAX_CONTEXT_FRAMES = 1 << 20
_MAX_FEATURE_FRAMES = 1 << 20


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder (``ConformerEncoder``). ``conv_context`` is (left, right) padding of the depthwise convolution.

    ``subsampling`` "linear" is a projection that keeps every frame; ``conv_groups`` is 1 but for group norm.
    """

    spec: EncoderSpec
    subsampling: Subsampling
    subsampling_channels: int
    positions: Literal["rel_pos", "abs_pos"]
    use_bias: bool
    xscaling: bool
    conv_norm: ConvNorm
    conv_groups: int
    conv_context: tuple[int, int]


@dataclass(frozen=True)
class ModelChoices:
    """What an export may choose where a checkpoint leaves a choice; ``None``: as it was trained.

    Attributes:
        lookahead: encoder frames that attention sees to the right, one of the trained ones; ``None``: the first.
        left_context: encoder frames that it sees to the left: the size of a streaming cache.
        max_seconds: the longest input, and so the length of the position table.
    """

    lookahead: int | None = None
    left_context: int | None = None
    max_seconds: float | None = None


AS_TRAINED = ModelChoices()


def encoder_config(section: Section, choices: ModelChoices, *, frame_seconds: float) -> EncoderConfig:
    """Read ``encoder``. ``frame_seconds`` is from one feature frame to the next.

    Raises: as ``model_config``.
    """
    section.require("reduction", [None])
    factor: int = section.require("subsampling_factor", [1, 2, 4, 8], default=4)
    d_model = section.integer("d_model", maximum=1 << 14)
    heads = section.integer("n_heads", 4)
    if d_model % heads or d_model % 2:
        raise ConfigError(
            "encoder.d_model must be even and a multiple of encoder.n_heads",
            where=section.origin,
            found=f"{d_model}, {heads}",
        )
    if section.values.get("feat_out", -1) not in (-1, None, d_model):
        raise UnsupportedModelError(
            "encoder.feat_out: an output projection is not built",
            where=section.origin,
            found=shown(section.values["feat_out"]),
        )
    style: Literal["regular", "chunked_limited"] = section.require(
        "att_context_style", ["regular", "chunked_limited"], default="regular"
    )
    causal = section.boolean("causal_downsampling", default=False) and factor > 1
    kernel = section.integer("conv_kernel_size", 31, maximum=1001)
    channels = section.integer("subsampling_conv_channels", -1, minimum=-1)
    trained_frames = section.integer("pos_emb_max_len", 5000)
    max_frames = _position_table_frames(section, choices, trained_frames, factor, causal, frame_seconds)
    conv_norm, groups = _conv_norm(section, d_model)
    return EncoderConfig(
        spec=EncoderSpec(
            layers=section.integer("n_layers", maximum=256),
            d_model=d_model,
            heads=heads,
            feed_forward=d_model * section.integer("ff_expansion_factor", 4, maximum=64),
            conv_kernel=kernel,
            features=section.integer("feat_in", maximum=4096),
            subsampling_factor=factor,
            causal_subsampling=causal,
            max_encoder_frames=max_frames,
            max_feature_frames=_longest_input(max_frames, factor, causal=causal),
            attention_context=_attention_context(section, style, choices),
            attention_style=style,
        ),
        subsampling="linear" if factor == 1 else _subsampling(section),
        subsampling_channels=d_model if channels == -1 else channels,
        positions=_positions(section, style),
        use_bias=section.boolean("use_bias", default=True),
        xscaling=section.boolean("xscaling", default=True),
        conv_norm=conv_norm,
        conv_groups=groups,
        conv_context=_conv_context(section, kernel),
    )


def _subsampling(section: Section) -> Subsampling:
    found: Subsampling = section.require("subsampling", ["dw_striding", "striding"], default="striding")
    return found


def _positions(section: Section, style: str) -> Literal["rel_pos", "abs_pos"]:
    """Local attention is attention over all frames under a window mask: the same numbers.

    Only where it looks as far to both sides: NeMo adds the positions of a lopsided window to the wrong frames.
    """
    kind = section.require("self_attention_model", ["rel_pos", "abs_pos", LOCAL_ATTENTION], default="rel_pos")
    if kind != LOCAL_ATTENTION:
        return "abs_pos" if kind == "abs_pos" else "rel_pos"
    section.require("global_tokens", [0], default=0)
    context = section.values.get("att_context_size")
    match context:
        case [int(left), int(right)] if style == "regular" and left == right > 0:
            return "rel_pos"
    raise UnsupportedModelError(
        f"encoder.self_attention_model {LOCAL_ATTENTION} is built for one regular, symmetric window only",
        where=section.origin,
        found=f"att_context_size {shown(context)}, att_context_style {style}",
        fix=f"change_attention_model('{LOCAL_ATTENTION}', [n, n]) in NeMo and save it again, or export rel_pos",
    )


def _conv_norm(section: Section, d_model: int) -> tuple[ConvNorm, int]:
    """Kind of norm, and its groups (``group_norm8``: 8)."""
    value = section.values.get("conv_norm_type", "batch_norm")
    groups = value.removeprefix("group_norm") if isinstance(value, str) else ""
    if isinstance(value, str) and value.startswith("group_norm") and groups.isdecimal():
        if not 0 < int(groups) <= d_model or d_model % int(groups):
            raise section.wrong("conv_norm_type", value, f"group_norm with a divisor of d_model {d_model} behind it")
        return "group_norm", int(groups)
    supported = ["batch_norm", "fused_batch_norm", "layer_norm", "instance_norm"]
    kind: ConvNorm = section.require("conv_norm_type", supported, default="batch_norm")
    return kind, 1


def _position_table_frames(
    section: Section, choices: ModelChoices, trained: int, factor: int, causal: bool, frame_seconds: float
) -> int:
    """Encoder frames that the position table holds: enough for ``max_seconds``, else as many as in training."""
    if choices.max_seconds is None:
        return trained
    frames = round(choices.max_seconds / frame_seconds)
    if not 1 <= frames <= _MAX_FEATURE_FRAMES:
        raise UsageError(
            "the longest input is out of range",
            where=section.origin,
            found=f"{choices.max_seconds:g} s, {frames} feature frames",
            fix=f"choose from {frame_seconds:g} to {_MAX_FEATURE_FRAMES * frame_seconds:g} s",
        )
    return subsampled_frames(frames, factor=factor, causal=causal)


def _longest_input(max_encoder_frames: int, factor: int, *, causal: bool) -> int:
    """The most feature frames whose subsampled length is still within the position table."""
    return max_encoder_frames * factor - (factor - 1 if causal else 0)


def _attention_context(section: Section, style: str, choices: ModelChoices) -> tuple[int, int]:
    """The default (first) of the trained contexts, as NeMo uses at inference, or the one that was chosen."""
    value = section.values.get("att_context_size") or [-1, -1]
    contexts = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for context in contexts:
        is_pair = isinstance(context, list) and len(context) == 2
        if not is_pair or not all(_is_context(n) for n in context):
            raise section.wrong("att_context_size", value, "a pair [left, right], or a list of such pairs")
    chosen = [context for context in contexts if choices.lookahead in (None, context[1])]
    if not chosen:
        raise UsageError(
            "the encoder was not trained with this look-ahead",
            where=section.origin,
            found=f"{choices.lookahead} encoder frames",
            fix=f"choose from: {', '.join(str(context[1]) for context in contexts)}",
        )
    left, right = chosen[0]
    _refuse_partial_chunks(section, style, left, right)
    return (left if choices.left_context is None else _left_context(section, style, choices.left_context, right)), right


def _refuse_partial_chunks(section: Section, style: str, left: int, right: int) -> None:
    if style == "chunked_limited" and (right < 0 or (left > 0 and left % (right + 1))):
        raise ConfigError(
            "encoder.att_context_size: chunked_limited needs a right context, and a left one in multiples of right + 1",
            where=section.origin,
            found=[left, right],
        )


def _left_context(section: Section, style: str, left: int, right: int) -> int:
    chunk = right + 1 if style == "chunked_limited" else 1
    if not 0 < left <= _MAX_CONTEXT_FRAMES or left % chunk:
        raise UsageError(
            "the streaming cache cannot have this size",
            where=section.origin,
            found=f"{left} encoder frames, chunks of {chunk}",
            fix=f"choose a positive multiple of {chunk}",
        )
    return left


def _is_context(value: object) -> bool:
    return type(value) is int and -1 <= value <= _MAX_CONTEXT_FRAMES


def _conv_context(section: Section, kernel: int) -> tuple[int, int]:
    if kernel % 2 == 0:
        raise ConfigError("encoder.conv_kernel_size must be odd", where=section.origin, found=kernel)
    value = section.values.get("conv_context_size")
    if value is None:
        return (kernel - 1) // 2, (kernel - 1) // 2
    if value == "causal":
        return kernel - 1, 0
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(type(n) is int and n >= 0 for n in value)
        and sum(value) == kernel - 1
    ):
        return value[0], value[1]
    raise section.wrong("conv_context_size", value, f"'causal' or two numbers that sum to {kernel - 1}")

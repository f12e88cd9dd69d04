"""What a checkpoint's config says about the model, in one frozen value.

    model_config.yaml (mapping) -> ModelConfig(mel, encoder, transducer, ctc, vocabulary, tokenizer)

Defaults are NeMo's own (``nemo.collections.asr.modules``). What nemotrt does not build is refused by the config key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nemotrt.bundle import EncoderSpec, Family, MelSpec, TransducerSpec
from nemotrt.errors import ConfigError, UnsupportedModelError, UsageError
from nemotrt.export.section import Section, shown

Decoder = Literal["ctc", "rnnt", "tdt"]

_MAX_CONTEXT_FRAMES = 1 << 20
_LINE_ENDS = frozenset("\n\r")


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder (``ConformerEncoder``). ``conv_context`` is (left, right) padding of the depthwise convolution."""

    spec: EncoderSpec
    subsampling: Literal["dw_striding", "striding"]
    subsampling_channels: int
    positions: Literal["rel_pos", "abs_pos"]
    use_bias: bool
    xscaling: bool
    conv_norm: Literal["batch_norm", "layer_norm"]
    conv_context: tuple[int, int]


@dataclass(frozen=True)
class TransducerConfig:
    """Predictor (``RNNTDecoder``) and joint (``RNNTJoint``).

    ``joint_out`` is where the joint's last matrix stands: NeMo puts a dropout module before it if there is dropout.
    """

    spec: TransducerSpec
    joint_hidden: int
    joint_out: Literal["joint_net.1", "joint_net.2"]
    joint_activation: Literal["relu", "sigmoid", "tanh"]


@dataclass(frozen=True)
class TokenizerConfig:
    """``model`` is the ``nemo:`` reference of a SentencePiece model, ``None`` for character vocabularies."""

    model: str | None


@dataclass(frozen=True)
class ModelConfig:
    """A supported model. ``ctc_prefix`` is where the CTC head's weights stand, ``None`` without such a head."""

    family: Family
    mel: MelSpec
    mel_zero_guard: float
    encoder: EncoderConfig
    transducer: TransducerConfig | None
    ctc_prefix: Literal["decoder", "ctc_decoder"] | None
    vocabulary: tuple[str, ...]
    tokenizer: TokenizerConfig

    @property
    def blank_id(self) -> int:
        """The id after the last piece."""
        return len(self.vocabulary)


def model_config(config: Mapping[str, Any], *, origin: Path, lookahead: int | None = None) -> ModelConfig:
    """Read a parsed ``model_config.yaml``.

    ``lookahead`` chooses among several trained attention contexts, by encoder frames to the right; ``None``: the first.

    Raises:
        ConfigError: a key is missing or of the wrong type, or two keys contradict each other.
        UnsupportedModelError: a well-formed model of a kind that nemotrt does not build.
    """
    root = Section(config, "", origin)
    _refuse_other_tasks(root)
    encoder = _encoder(root.section("encoder"), lookahead)
    mel, zero_guard = _mel(root.section("preprocessor"), root)
    if mel.features != encoder.spec.features:
        raise ConfigError(
            "preprocessor.features and encoder.feat_in differ",
            where=origin,
            found=f"{mel.features}, {encoder.spec.features}",
        )
    transducer, ctc_prefix, vocabulary = _heads(root, encoder)
    return ModelConfig(
        family=_family(encoder, transducer, ctc_prefix),
        mel=mel,
        mel_zero_guard=zero_guard,
        encoder=encoder,
        transducer=transducer,
        ctc_prefix=ctc_prefix,
        vocabulary=vocabulary,
        tokenizer=_tokenizer(root),
    )


def _refuse_other_tasks(root: Section) -> None:
    target = str(root.values.get("target", ""))
    for section, suffix in (
        ("encoder", "ConformerEncoder"),
        ("preprocessor", "AudioToMelSpectrogramPreprocessor"),
    ):
        values = root.values.get(section)
        found = values.get("_target_") if isinstance(values, dict) else None
        if not isinstance(found, str) or found.rsplit(".", 1)[-1] != suffix:
            raise UnsupportedModelError(
                f"{section}._target_ is not a {suffix}",
                where=root.origin,
                found=f"{found} in a {target.rsplit('.', 1)[-1] or 'model without target'}",
                fix="nemotrt builds NeMo's (Fast)Conformer CTC, RNNT, TDT and hybrid speech recognizers",
            )
    if "transf_decoder" in root.values:
        raise UnsupportedModelError("transf_decoder: attention decoders are not built", where=root.origin, found=target)


def _encoder(section: Section, lookahead: int | None) -> EncoderConfig:
    section.require("reduction", [None])
    factor: int = section.require("subsampling_factor", [2, 4, 8], default=4)
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
    causal = section.boolean("causal_downsampling", default=False)
    kernel = section.integer("conv_kernel_size", 31, maximum=1001)
    channels = section.integer("subsampling_conv_channels", -1, minimum=-1)
    max_frames = section.integer("pos_emb_max_len", 5000)
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
            attention_context=_attention_context(section, style, lookahead),
            attention_style=style,
        ),
        subsampling=section.require("subsampling", ["dw_striding", "striding"], default="striding"),
        subsampling_channels=d_model if channels == -1 else channels,
        positions=section.require("self_attention_model", ["rel_pos", "abs_pos"], default="rel_pos"),
        use_bias=section.boolean("use_bias", default=True),
        xscaling=section.boolean("xscaling", default=True),
        conv_norm=section.require("conv_norm_type", ["batch_norm", "layer_norm"], default="batch_norm"),
        conv_context=_conv_context(section, kernel),
    )


def _longest_input(max_encoder_frames: int, factor: int, *, causal: bool) -> int:
    """The most feature frames whose subsampled length is still within the position table."""
    return max_encoder_frames * factor - (factor - 1 if causal else 0)


def _attention_context(section: Section, style: str, lookahead: int | None) -> tuple[int, int]:
    """The default (first) of the trained contexts, as NeMo uses at inference, or the one with this look-ahead."""
    value = section.values.get("att_context_size") or [-1, -1]
    contexts = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for context in contexts:
        is_pair = isinstance(context, list) and len(context) == 2
        if not is_pair or not all(_is_context(n) for n in context):
            raise section.wrong("att_context_size", value, "a pair [left, right], or a list of such pairs")
    chosen = [context for context in contexts if lookahead in (None, context[1])]
    if not chosen:
        raise UsageError(
            "the encoder was not trained with this look-ahead",
            where=section.origin,
            found=f"{lookahead} encoder frames",
            fix=f"choose from: {', '.join(str(context[1]) for context in contexts)}",
        )
    left, right = chosen[0]
    if style == "chunked_limited" and (right < 0 or (left > 0 and left % (right + 1))):
        raise ConfigError(
            "encoder.att_context_size: chunked_limited needs a right context, and a left one in multiples of right + 1",
            where=section.origin,
            found=[left, right],
        )
    return left, right


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


def _mel(section: Section, root: Section) -> tuple[MelSpec, float]:
    section.require("log", [True], default=True)
    section.require("mag_power", [2.0], default=2.0)
    section.require("frame_splicing", [1], default=1)
    section.require("exact_pad", [False], default=False)
    section.require("log_zero_guard_type", ["add"], default="add")
    section.require("pad_value", [0, 0.0], default=0)
    rate = section.integer("sample_rate", 16000)
    if root.values.get("sample_rate", rate) != rate:
        raise ConfigError(
            "sample_rate and preprocessor.sample_rate differ",
            where=root.origin,
            found=shown(root.values["sample_rate"]),
        )
    window = int(section.number("window_size", 0.02) * rate)  # cut, not rounded, as in NeMo
    hop = int(section.number("window_stride", 0.01) * rate)
    if not 0 < hop <= window:
        raise ConfigError(
            "preprocessor.window_stride must be positive and at most window_size",
            where=section.origin,
            found=f"{hop}, {window} samples",
        )
    default_fft = 1 << (window - 1).bit_length()
    n_fft = default_fft if section.values.get("n_fft") is None else section.integer("n_fft")
    if n_fft < window or n_fft % 2 or window % 2:
        raise UnsupportedModelError(
            "preprocessor.n_fft must be even and hold an even window",
            where=section.origin,
            found=f"{n_fft}, window {window}",
        )
    normalize = section.require("normalize", ["per_feature", "NA", "none", None, ""], default="per_feature")
    spec = MelSpec(
        sample_rate=rate,
        features=section.integer("features", 64),
        n_fft=n_fft,
        window_samples=window,
        hop_samples=hop,
        normalize="per_feature" if normalize == "per_feature" else "none",
        preemphasis=None if section.values.get("preemph", 0.97) is None else section.number("preemph", 0.97),
    )
    return spec, section.number("log_zero_guard_value", 2.0**-24)


def _heads(
    root: Section, encoder: EncoderConfig
) -> tuple[TransducerConfig | None, Literal["decoder", "ctc_decoder"] | None, tuple[str, ...]]:
    if root.values.get("joint") is None:
        head = root.section("decoder")
        return None, "decoder", _ctc_vocabulary(head, encoder)
    transducer, vocabulary = _transducer(root, encoder)
    auxiliary = root.optional_section("aux_ctc")
    if auxiliary is None:
        return transducer, None, vocabulary
    if _ctc_vocabulary(auxiliary.section("decoder"), encoder) != vocabulary:
        raise UnsupportedModelError("aux_ctc.decoder.vocabulary differs from joint.vocabulary", where=root.origin)
    return transducer, "ctc_decoder", vocabulary


def _ctc_vocabulary(section: Section, encoder: EncoderConfig) -> tuple[str, ...]:
    target = section.text("_target_", "")
    if not target.endswith("ConvASRDecoder"):
        raise UnsupportedModelError(
            f"{section.name}._target_ is not a ConvASRDecoder", where=section.origin, found=target
        )
    section.require("feat_in", [encoder.spec.d_model, None], default=None)
    return _vocabulary(section)


def _vocabulary(section: Section) -> tuple[str, ...]:
    pieces = section.strings("vocabulary")
    classes = section.integer("num_classes", len(pieces), minimum=-1)
    if classes not in (-1, len(pieces)) or not pieces:
        raise ConfigError(
            f"{section.name}.num_classes is not the size of its vocabulary",
            where=section.origin,
            found=f"{classes}, {len(pieces)} pieces",
        )
    broken = [piece for piece in pieces if not piece or not _LINE_ENDS.isdisjoint(piece)]
    if broken:
        raise UnsupportedModelError(
            f"{section.name}.vocabulary has an empty or multi-line piece",
            where=section.origin,
            found=repr(broken[0]),
        )
    return pieces


def _transducer(root: Section, encoder: EncoderConfig) -> tuple[TransducerConfig, tuple[str, ...]]:
    decoder, joint = root.section("decoder"), root.section("joint")
    for section, name in ((decoder, "RNNTDecoder"), (joint, "RNNTJoint")):
        if section.text("_target_", "").rsplit(".", 1)[-1] != name:
            raise UnsupportedModelError(
                f"{section.name}._target_ is not an {name}",
                where=root.origin,
                found=section.text("_target_", ""),
            )
    decoder.require("blank_as_pad", [True], default=True)
    decoder.require("normalization_mode", [None])
    prednet, jointnet = decoder.section("prednet"), joint.section("jointnet")
    prednet.require("rnn_hidden_size", [-1, None], default=-1)
    hidden = prednet.integer("pred_hidden", maximum=1 << 14)
    jointnet.require("encoder_hidden", [encoder.spec.d_model, None], default=None)
    jointnet.require("pred_hidden", [hidden, None], default=None)
    vocabulary = _vocabulary(joint)
    durations = _durations(root, joint)
    transducer = TransducerConfig(
        spec=TransducerSpec(
            predictor_layers=prednet.integer("pred_rnn_layers", 1, maximum=16),
            predictor_hidden=hidden,
            durations=durations,
            max_symbols_per_frame=_max_symbols(root),
        ),
        joint_hidden=jointnet.integer("joint_hidden", maximum=1 << 14),
        joint_out="joint_net.2" if jointnet.values.get("dropout") else "joint_net.1",
        joint_activation=jointnet.require("activation", ["relu", "sigmoid", "tanh"], default="relu"),
    )
    return transducer, vocabulary


def _durations(root: Section, joint: Section) -> tuple[int, ...]:
    count = joint.integer("num_extra_outputs", 0, minimum=0, maximum=64)
    if count == 0:
        return ()
    decoding = root.section("decoding")
    holder = decoding if decoding.values.get("durations") else root.section("model_defaults")
    durations = holder.integers("durations" if holder is decoding else "tdt_durations")
    if len(durations) != count or min(durations) < 0 or max(durations) < 1:
        raise ConfigError(
            f"{holder.name}: durations do not fit joint.num_extra_outputs",
            where=root.origin,
            found=f"{list(durations)}, {count} outputs",
        )
    return durations


def _max_symbols(root: Section) -> int:
    """``decoding.greedy.max_symbols`` (older configs: ``max_symbols_per_step``); NeMo's default is 10."""
    decoding = root.optional_section("decoding")
    greedy = decoding.optional_section("greedy") if decoding else None
    if greedy is None:
        return 10
    key = "max_symbols" if "max_symbols" in greedy.values else "max_symbols_per_step"
    return 10 if greedy.values.get(key) is None else greedy.integer(key, maximum=1000)


def _tokenizer(root: Section) -> TokenizerConfig:
    section = root.optional_section("tokenizer")
    if section is None:
        return TokenizerConfig(model=None)
    section.require("type", ["bpe"], default="bpe")
    return TokenizerConfig(model=section.text("model_path"))


def _family(encoder: EncoderConfig, transducer: TransducerConfig | None, ctc_prefix: str | None) -> Family:
    """FastConformer is the Conformer with depthwise-striding subsampling."""
    architecture = "fastconformer" if encoder.subsampling == "dw_striding" else "conformer"
    if transducer is None:
        head = "ctc"
    else:
        head = "tdt" if transducer.spec.durations else "rnnt"
        head = f"hybrid-{head}-ctc" if ctc_prefix else head
    family: Family = next(known for known in get_args(Family) if known == f"{architecture}-{head}")
    return family

"""What a checkpoint's config says about the model, in one frozen value.

    model_config.yaml (mapping), ModelChoices -> ModelConfig(front_end, encoder, transducer, ctc, vocabulary, tokenizer)

Defaults are NeMo's own (``nemo.collections.asr.modules``). What nemotrt does not build is refused by the config key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from nemotrt.bundle import Family, MelSpec, TokenizerKind, TransducerSpec, frame_seconds_of
from nemotrt.errors import ConfigError, UnsupportedModelError
from nemotrt.export.encoder_config import AS_TRAINED, LOCAL_ATTENTION, EncoderConfig, ModelChoices, encoder_config
from nemotrt.export.section import Section, shown

_LOCAL_ATTENTION_NOTE = (
    "encoder.self_attention_model rel_pos_local_attn is written as attention over all frames under a window mask: "
    "the same results, at a cost that grows with the square of the length"
)
_LINE_ENDS = frozenset("\n\r")


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
    """``models`` are ``nemo:`` references of SentencePiece models: none for character vocabularies, one a language for
    aggregate tokenizers, whose vocabularies stand one behind the other."""

    kind: TokenizerKind
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrontEnd:
    """The log-mel front end. ``zero_guard`` is added to energies before the logarithm."""

    mel: MelSpec
    zero_guard: float


@dataclass(frozen=True)
class ModelConfig:
    """A supported model. ``front_end`` is ``None`` for a model that takes other features than log-mel energies,
    ``ctc_prefix`` is where the CTC head's weights stand, ``None`` without such a head.

    ``notes`` say in what the export differs from the checkpoint without changing its results.
    """

    family: Family
    front_end: FrontEnd | None
    encoder: EncoderConfig
    transducer: TransducerConfig | None
    ctc_prefix: Literal["decoder", "ctc_decoder"] | None
    vocabulary: tuple[str, ...]
    tokenizer: TokenizerConfig
    notes: tuple[str, ...] = ()

    @property
    def mel(self) -> MelSpec | None:
        """The front end's part of the contract."""
        return None if self.front_end is None else self.front_end.mel

    @property
    def blank_id(self) -> int:
        """The id after the last piece."""
        return len(self.vocabulary)


def model_config(config: Mapping[str, Any], *, origin: Path, choices: ModelChoices = AS_TRAINED) -> ModelConfig:
    """Read a parsed ``model_config.yaml``.

    Raises:
        ConfigError: a key is missing or of the wrong type, or two keys contradict each other.
        UnsupportedModelError: a well-formed model of a kind that nemotrt does not build.
        UsageError: a choice that the model does not have.
    """
    root = Section(config, "", origin)
    _refuse_other_tasks(root)
    front_end, notes = _front_end(root)
    frame_seconds = frame_seconds_of(None if front_end is None else front_end.mel)
    section = root.section("encoder")
    encoder = encoder_config(section, choices, frame_seconds=frame_seconds)
    if section.values.get("self_attention_model") == LOCAL_ATTENTION:
        notes += (_LOCAL_ATTENTION_NOTE,)
    if front_end is not None and front_end.mel.features != encoder.spec.features:
        raise ConfigError(
            "preprocessor.features and encoder.feat_in differ",
            where=origin,
            found=f"{front_end.mel.features}, {encoder.spec.features}",
        )
    transducer, ctc_prefix, vocabulary = _heads(root, encoder)
    return ModelConfig(
        family=_family(encoder, transducer, ctc_prefix),
        front_end=front_end,
        encoder=encoder,
        transducer=transducer,
        ctc_prefix=ctc_prefix,
        vocabulary=vocabulary,
        tokenizer=_tokenizer(root),
        notes=notes,
    )


def _refuse_other_tasks(root: Section) -> None:
    target = str(root.values.get("target", ""))
    encoder = root.values.get("encoder")
    found = encoder.get("_target_") if isinstance(encoder, dict) else None
    if not isinstance(found, str) or found.rsplit(".", 1)[-1] != "ConformerEncoder":
        raise UnsupportedModelError(
            "encoder._target_ is not a ConformerEncoder",
            where=root.origin,
            found=f"{found} in a {target.rsplit('.', 1)[-1] or 'model without target'}",
            fix="nemotrt builds NeMo's (Fast)Conformer CTC, RNNT, TDT and hybrid models",
        )
    if "transf_decoder" in root.values:
        raise UnsupportedModelError("transf_decoder: attention decoders are not built", where=root.origin, found=target)


def _front_end(root: Section) -> tuple[FrontEnd | None, tuple[str, ...]]:
    """The log-mel front end, or none for a model that is given its features; and what to tell the user of it."""
    section = root.optional_section("preprocessor")
    name = None if section is None else section.text("_target_").rsplit(".", 1)[-1]
    if section is not None and name == "AudioToMelSpectrogramPreprocessor":
        mel, zero_guard = _mel(section, root)
        return FrontEnd(mel, zero_guard), ()
    made_by = "the config has no preprocessor" if name is None else f"preprocessor._target_ is {name}"
    return None, (f"{made_by}: the bundle has no front end, and its graphs take the model's own features",)


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
        return TokenizerConfig("characters")
    kind = section.require("type", ["bpe", "agg"], default="bpe")
    if kind == "bpe":
        return TokenizerConfig("sentencepiece", (section.text("model_path"),))
    languages = section.section("langs")
    parts = [languages.section(language) for language in languages.values]
    for part in parts:
        part.require("type", ["bpe"], default="bpe")
    if not parts:
        raise languages.wrong("", {}, "one tokenizer a language")
    return TokenizerConfig("aggregate", tuple(part.text("model_path") for part in parts))


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

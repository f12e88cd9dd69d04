"""The bundle contract: what every stage may rely on.

A bundle is a folder:

    model_meta.json                    this contract, schema version 1
    encoder.onnx + encoder.onnx.data   one graph and one data file per component
    vocab.txt                          one piece a line, in id order, without blank
    tokens.txt                         the same with ids and ``<blk>``, as sherpa-onnx reads it
    tokenizer.model                    SentencePiece model, if the checkpoint has one

Writers build it in a temporary folder and publish it by rename, the metadata last (see ``nemotrt.bundle_writer``).
Readers call :func:`load_bundle`, which refuses a folder that is incomplete; :func:`verify_digests` proves
that nothing was altered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nemotrt.errors import BundleError
from nemotrt.profiles import Geometry, subsampled_frames

SCHEMA_VERSION = 1
META_NAME = "model_meta.json"
VOCAB_NAME = "vocab.txt"
TOKENS_NAME = "tokens.txt"
TOKENIZER_NAME = "tokenizer.model"

DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "bool"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Family = Literal[
    "fastconformer-ctc",
    "fastconformer-rnnt",
    "fastconformer-tdt",
    "fastconformer-hybrid-rnnt-ctc",
    "fastconformer-hybrid-tdt-ctc",
    "conformer-ctc",
    "conformer-rnnt",
    "conformer-tdt",
    "conformer-hybrid-rnnt-ctc",
    "conformer-hybrid-tdt-ctc",
]
ComponentName = Literal[
    "preprocessor",
    "encoder",
    "encoder_streaming",
    "predictor",
    "joint",
    "decoder_joint",
    "rnnt_step",
    "greedy_step",
    "ctc",
    "encoder_nomask",
    "ctc_nomask",
    "ctc_head",
]
CacheLayout = Literal["inputs", "kv"]
Frontend = Literal["native", "nemo"]
Decoder = Literal["ctc", "rnnt", "tdt"]
TokenizerKind = Literal["sentencepiece", "characters", "aggregate"]

OWN_FEATURE_FRAMES_PER_SECOND = 100
"""What a second of a profile means for a model without a front end, whose features nobody here can date."""

# Symbolic axes of the contract. A profile gives each of them a range.
BATCH, SAMPLES, FRAMES, ENCODER_FRAMES = "batch", "samples", "frames", "encoder_frames"
JOINT_FRAMES, TOKENS = "joint_frames", "tokens"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PositiveInt = Annotated[int, Field(gt=0)]


class _Record(BaseModel):
    """A value of the contract: immutable, no unknown fields, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TensorSpec(_Record):
    """An input or output: fixed axes are numbers, dynamic ones are names from the list above."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


class ComponentSpec(_Record):
    """One ONNX graph of the bundle, with its external data file (``None``: all weights are inline).

    A variant of another component shares that component's data file.
    """

    graph: str
    data: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int

    @property
    def files(self) -> tuple[str, ...]:
        """The component's file names."""
        return (self.graph,) if self.data is None else (self.graph, self.data)


class MelSpec(_Record):
    """The log-mel front end (NeMo ``AudioToMelSpectrogramPreprocessor``). Sample counts are at ``sample_rate``."""

    sample_rate: PositiveInt
    features: PositiveInt
    n_fft: PositiveInt
    window_samples: PositiveInt
    hop_samples: PositiveInt
    normalize: Literal["per_feature", "none"]
    preemphasis: float | None


def frame_seconds_of(mel: MelSpec | None) -> float:
    """Seconds from one feature frame to the next; ``None``: of a model that takes its own features."""
    return 1 / OWN_FEATURE_FRAMES_PER_SECOND if mel is None else mel.hop_samples / mel.sample_rate


class EncoderSpec(_Record):
    """What decoding, profiles and comparison need to know about the encoder.

    ``max_encoder_frames`` is the length of the position table; ``max_feature_frames`` the longest input that stays
    inside of it. ``attention_context`` is (left, right) in encoder frames, -1 for unlimited.
    """

    layers: PositiveInt
    d_model: PositiveInt
    heads: PositiveInt
    feed_forward: PositiveInt
    conv_kernel: PositiveInt
    features: PositiveInt
    subsampling_factor: PositiveInt
    causal_subsampling: bool
    max_encoder_frames: PositiveInt
    max_feature_frames: PositiveInt
    attention_context: tuple[int, int]
    attention_style: Literal["regular", "chunked_limited"]

    def encoder_frames_from_feature_frames(self, frames: int) -> int:
        """Exact output length for ``frames`` valid feature frames."""
        return subsampled_frames(frames, factor=self.subsampling_factor, causal=self.causal_subsampling)


class StreamingSpec(_Record):
    """How the streaming encoder is fed. A window is the end of the audio so far: ``window_feature_frames`` frames, of
    which the last ``chunk_feature_frames`` are new. In the first window ``first_chunk_feature_frames`` are new, at its
    end, behind zeros. ``length`` counts from the start of the window.

    The last ``cache_drop_frames`` of the ``chunk_encoder_frames`` are not cached but come again with the next chunk:
    unless the audio ends there, they are preliminary.
    """

    window_feature_frames: PositiveInt
    chunk_feature_frames: PositiveInt
    first_chunk_feature_frames: PositiveInt
    chunk_encoder_frames: PositiveInt
    left_context_frames: int
    conv_cache_frames: int
    cache: CacheLayout
    cache_drop_frames: int = 0


class TransducerSpec(_Record):
    """Predictor and joint. ``durations`` is empty for RNNT; for TDT the joint's last ``len(durations)`` outputs."""

    predictor_layers: PositiveInt
    predictor_hidden: PositiveInt
    durations: tuple[int, ...]
    max_symbols_per_frame: PositiveInt


class FileRecord(_Record):
    """Size and digest of a file when the bundle was published."""

    size_bytes: int
    sha256: Sha256


class ExportRecord(_Record):
    """What was asked of the export: see ``nemotrt.export.ExportOptions``."""

    components: tuple[str, ...] = ()
    decoder: Decoder | None = None
    lookahead: int | None = None
    left_context: int | None = None
    max_seconds: float | None = None
    cache: CacheLayout = "inputs"
    cache_drop: int = 0
    fixed_seconds: float | None = None
    opset: int = 18
    frontend: Frontend = "native"


class QuantizationRecord(_Record):
    """How the products of a bundle in int8 or fp8 were quantized.

    ``calibration``, ``clips`` and ``audio_sha256`` (of the clips' digests, in order) say what the scales of activations
    were taken from; a bundle whose weights alone are quantized has none. ``kept_float`` are scopes left in float32.
    """

    weight_only: bool
    calibration: Literal["max", "percentile"] | None
    clips: int
    audio_sha256: Sha256 | None
    kept_float: tuple[str, ...] = ()


class BundleMeta(_Record):
    """The whole of ``model_meta.json``.

    ``mel`` is ``None`` for a model that takes its own features; ``notes`` are for the person who uses it;
    ``cast_from`` is the fingerprint of the bundle this one was cast from, ``quantized`` how one in eight bits was made.
    """

    schema_version: Literal[1]
    name: str
    family: Family
    precision: Precision
    components: dict[ComponentName, ComponentSpec]
    mel: MelSpec | None
    encoder: EncoderSpec
    streaming: StreamingSpec | None = None
    transducer: TransducerSpec | None
    vocabulary_size: PositiveInt
    blank_id: int
    tokenizer: TokenizerKind
    notes: tuple[str, ...] = ()
    checkpoint_sha256: Sha256
    exported: ExportRecord = ExportRecord()
    cast_from: Sha256 | None = None
    quantized: QuantizationRecord | None = None
    tools: dict[str, str]
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _names_stay_inside_the_folder(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if PurePosixPath(name).name != name or name in ("", ".", ".."):
                raise ValueError(f"file name {name!r} is not a plain name inside the bundle")
        return files

    @model_validator(mode="after")
    def _every_component_file_is_recorded(self) -> BundleMeta:
        missing = [f for c in self.components.values() for f in c.files if f not in self.files]
        if missing:
            raise ValueError(f"component files without a record: {missing}")
        if self.blank_id != self.vocabulary_size:
            raise ValueError(f"blank_id {self.blank_id} is not the id after the {self.vocabulary_size} pieces")
        return self

    @property
    def geometry(self) -> Geometry:
        """How this model turns time into frames, as profiles ask for it."""
        return Geometry(
            sample_rate=OWN_FEATURE_FRAMES_PER_SECOND if self.mel is None else self.mel.sample_rate,
            hop_samples=1 if self.mel is None else self.mel.hop_samples,
            subsampling_factor=self.encoder.subsampling_factor,
            causal_subsampling=self.encoder.causal_subsampling,
            max_feature_frames=self.fixed_feature_frames or self.encoder.max_feature_frames,
        )

    def audio_front_end(self) -> MelSpec:
        """What turns audio into the model's features.

        Raises:
            BundleError: the model takes features of its own.
        """
        if self.mel is None:
            raise BundleError(
                "the model takes features of its own, not audio",
                where=self.name,
                found=f"{self.encoder.features} features a frame, and no front end in the bundle",
                fix="give float32 features [features, frames] as .npy files: nemotrt transcribe takes them",
            )
        return self.mel

    @property
    def fixed_feature_frames(self) -> int | None:
        """Feature frames of the one clip that a bundle of fixed shapes takes; ``None`` where lengths are free."""
        whole = self.components.get("encoder") or self.components.get("ctc")
        frames = None if whole is None else whole.inputs[0].shape[-1]
        return frames if isinstance(frames, int) else None

    def fingerprint(self) -> str:
        """SHA-256 of the whole document, and so of every file it records."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def logits_width(self) -> int:
        """Joint output width: pieces, blank, then TDT durations."""
        return self.vocabulary_size + 1 + (len(self.transducer.durations) if self.transducer else 0)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are all there with the recorded sizes."""

    path: Path
    meta: BundleMeta

    def component(self, name: str) -> ComponentSpec:
        """Raises :class:`BundleError` naming the components that exist."""
        for key, spec in self.meta.components.items():
            if key == name:
                return spec
        raise BundleError(
            f"the bundle has no component {name!r}",
            where=self.path,
            found=", ".join(self.meta.components),
            fix="export the checkpoint again, or name one of the components found",
        )

    def graph_path(self, name: str) -> Path:
        """Where the graph of component ``name`` stands."""
        return self.path / self.component(name).graph

    def vocabulary(self) -> tuple[str, ...]:
        """The pieces in id order, without blank."""
        pieces = tuple((self.path / VOCAB_NAME).read_text(encoding="utf-8").split("\n")[:-1])
        if len(pieces) != self.meta.vocabulary_size:
            raise BundleError(
                f"{VOCAB_NAME} does not have one line per piece",
                where=self.path / VOCAB_NAME,
                found=f"{len(pieces)} lines, {self.meta.vocabulary_size} expected",
                fix="export the checkpoint again",
            )
        return pieces


def load_bundle(path: Path) -> Bundle:
    """Read and validate the contract at ``path`` (a bundle folder).

    Raises:
        BundleError: no metadata, another schema, or a file that is missing, of another size or not recorded.
    """
    meta_path = path / META_NAME
    if not meta_path.is_file():
        raise _not_a_bundle(path)
    try:
        meta = BundleMeta.model_validate_json(meta_path.read_bytes())
    except ValidationError as exc:
        problem = exc.errors()[0]
        raise BundleError(
            f"{META_NAME} does not follow schema version {SCHEMA_VERSION}",
            where=f"{meta_path}: {'.'.join(map(str, problem['loc'])) or 'document'}",
            found=problem["msg"].removeprefix("Value error, "),
            fix="export the checkpoint again with this version of nemotrt",
        ) from exc
    _check_sizes(path, meta.files)
    return Bundle(path, meta)


def verify_digests(bundle: Bundle) -> None:
    """Prove that every file is the one that was exported.

    Raises:
        BundleError: naming the first file whose SHA-256 differs.
    """
    for name, record in bundle.meta.files.items():
        digest = sha256_of_file(bundle.path / name)
        if digest != record.sha256:
            raise BundleError(
                f"{name} is not the file that was exported",
                where=bundle.path / name,
                found=f"sha256 {digest[:16]}..., {record.sha256[:16]}... recorded",
                fix="export the checkpoint again; do not edit files of a bundle in place",
            )


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _not_a_bundle(path: Path) -> BundleError:
    """Says what is there instead: a checkpoint, say, or a folder with bundles in it."""
    found = "a file" if path.exists() else "no such folder"
    fix = "make one with: nemotrt export MODEL.nemo -o BUNDLE"
    if path.is_dir():
        found = f"a folder without {META_NAME}"
        inside = sorted(meta.parent.name for meta in path.glob(f"*/{META_NAME}"))
        if inside:
            found, fix = f"a folder that holds bundles: {', '.join(inside)}", "give one of them"
    return BundleError("this is not a bundle", where=path, found=found, fix=fix)


def _check_sizes(path: Path, files: Mapping[str, FileRecord]) -> None:
    present = {entry.name: entry for entry in path.iterdir() if entry.name != META_NAME}
    for name, record in files.items():
        entry = present.pop(name, None)
        if entry is None or entry.is_symlink() or not entry.is_file():
            raise BundleError(f"{name} is missing from the bundle", where=path, fix="export the checkpoint again")
        if entry.stat().st_size != record.size_bytes:
            raise BundleError(
                f"{name} has the wrong size",
                where=entry,
                found=f"{entry.stat().st_size} bytes, {record.size_bytes} recorded",
                fix="copy the bundle again, or export the checkpoint again",
            )
    if present:
        raise BundleError(
            "the bundle folder holds files that are not part of it",
            where=path,
            found=", ".join(sorted(present)),
            fix="move them elsewhere: a bundle is exactly the files its metadata lists",
        )

"""Audio files and manifests.

    file --soundfile--> [N, channels] --mean--> mono --soxr--> [N'] at the model's rate    read_waveform
    manifest | folder | file --> clips: name, path, reference text, recorded transcripts   read_clips

Whatever is wrong with either is an ``AudioError`` that names the file, and of a manifest the line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nemotrt.engines.hypothesis import DECODERS
from nemotrt.errors import AudioError

MANIFEST_SUFFIXES = (".json", ".jsonl", ".manifest")
_AUDIO_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"} | {".aif", ".oga", ".opus"}
)
# NeMo writes durations rounded, and counts of compressed formats are estimates.
_DURATION_SLACK_SECONDS = 0.1


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono audio: finite float32 ``samples`` ``[N]``, N > 0, usually within -1..1, at ``sample_rate`` Hz.

    Raises:
        AudioError: the samples are none of that.
    """

    samples: NDArray[np.float32]
    sample_rate: int

    def __post_init__(self) -> None:
        _check_samples(self.samples, where=None)
        if self.sample_rate < 1:
            raise AudioError(
                "a sample rate is a positive number of hertz", found=self.sample_rate, fix="give the real one"
            )

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True)
class Recorded:
    """What another toolkit decoded from a clip."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Clip:
    """An audio file with what is known about it. ``recorded`` is by decoder: ``ctc``, ``rnnt``, ``tdt``."""

    name: str
    path: Path
    text: str | None = None
    recorded: Mapping[str, Recorded] = field(default_factory=lambda: MappingProxyType({}))


def read_waveform(path: Path, *, sample_rate: int) -> Waveform:
    """The audio at ``path``, in any format soundfile reads, as mono at ``sample_rate`` Hz.

    Raises:
        AudioError: no such file, not audio, no samples in it, or samples that are not finite.
    """
    if not _holds(path.is_file):
        raise _no_file(path)
    try:
        channels, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError, OSError, MemoryError) as exc:
        # TypeError: soundfile takes the suffix .raw for headerless audio and asks for its rate.
        # MemoryError: a header that claims more samples than any machine holds.
        raise AudioError(
            "not a readable audio file",
            where=path,
            found=exc,
            fix="convert it to WAV or FLAC, for instance with ffmpeg",
        ) from exc
    mono = channels.mean(axis=1)
    _check_samples(mono, where=path)
    if own_rate != sample_rate:
        mono = soxr.resample(mono, own_rate, sample_rate).astype(np.float32, copy=False)
        _check_samples(mono, where=path)
    return Waveform(mono, sample_rate)


def read_clips(source: Path) -> tuple[Clip, ...]:
    """The clips that ``source`` names. Of the audio at most the header is read.

    Args:
        source: a NeMo manifest (one JSON object a line, paths relative to it), a folder (its audio files in
            the order of their names), or one audio file.

    Returns:
        At least one clip. A clip is called by its file's name without suffix where that tells all of them
        apart, else by its path.

    Raises:
        AudioError: nothing there, no audio in the folder, or a manifest that is wrong: names file and line.
    """
    if _holds(source.is_dir):
        paths = sorted(entry for entry in source.iterdir() if entry.suffix.lower() in _AUDIO_SUFFIXES)
        if not paths:
            raise AudioError(
                "the folder holds no audio files",
                where=source,
                fix="name a folder with WAV, FLAC, OGG or MP3 files, a manifest, or one file",
            )
        return _named([Clip(name=path.name, path=path) for path in paths])
    if not _holds(source.is_file):
        raise _no_file(source)
    if source.suffix.lower() in MANIFEST_SUFFIXES:
        return _clips_from_manifest(source)
    return (Clip(name=source.stem, path=source),)


_TokenIds = tuple[Annotated[int, Field(ge=0)], ...]


class _ManifestLine(BaseModel):
    """The fields of a NeMo manifest that mean something here; others (language, speaker) are passed over.

    ``nemo_<decoder>`` and ``nemo_<decoder>_ids`` are text and tokens that NeMo's greedy decoding gave.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    audio_filepath: Annotated[str, Field(min_length=1)]
    text: str | None = None
    duration: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    offset: float | None = None
    nemo_ctc: str | None = None
    nemo_ctc_ids: _TokenIds | None = None
    nemo_rnnt: str | None = None
    nemo_rnnt_ids: _TokenIds | None = None
    nemo_tdt: str | None = None
    nemo_tdt_ids: _TokenIds | None = None

    @model_validator(mode="after")
    def _names_a_whole_file(self) -> _ManifestLine:
        if self.offset:
            raise ValueError("parts of a file (offset) are not supported: cut them into files of their own")
        return self

    @model_validator(mode="after")
    def _recordings_are_complete(self) -> _ManifestLine:
        misspelled = [name for name in self.model_extra or () if name.startswith("nemo_")]
        if misspelled:
            raise ValueError(f"{misspelled[0]} is not nemo_<decoder> or nemo_<decoder>_ids of {', '.join(DECODERS)}")
        for decoder in DECODERS:
            text, ids = f"nemo_{decoder}", f"nemo_{decoder}_ids"
            if (getattr(self, text) is None) != (getattr(self, ids) is None):
                raise ValueError(f"{text} and {ids} are given together or not at all")
        return self

    def recorded(self) -> dict[str, Recorded]:
        return {
            decoder: Recorded(text, getattr(self, f"nemo_{decoder}_ids"))
            for decoder in DECODERS
            if (text := getattr(self, f"nemo_{decoder}")) is not None
        }


def _clips_from_manifest(manifest: Path) -> tuple[Clip, ...]:
    try:
        lines = manifest.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as exc:
        raise AudioError("the manifest cannot be read", where=manifest, found=exc) from exc
    clips = [
        _clip_from_line(line, manifest=manifest, where=f"{manifest}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not clips:
        raise AudioError(
            "the manifest names no clips",
            where=manifest,
            fix='write one JSON object a line: {"audio_filepath": "clip.wav", "text": "..."}',
        )
    return _named(clips)


def _clip_from_line(line: bytes, *, manifest: Path, where: str) -> Clip:
    try:
        entry = _ManifestLine.model_validate_json(line)
    except ValidationError as exc:
        problem = exc.errors()[0]
        location, found = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
        raise AudioError(
            "the manifest line is not a clip",
            where=where,
            found=f"{location}: {found}" if location else found,
            fix='write one JSON object a line: {"audio_filepath": "clip.wav", "text": "..."}',
        ) from exc
    path = manifest.parent / entry.audio_filepath
    if not _holds(path.is_file):
        raise _no_file(path, where=where)
    _refuse_part_of_file(path, manifest_seconds=entry.duration, where=where)
    return Clip(name=entry.audio_filepath, path=path, text=entry.text, recorded=entry.recorded())


def _named(clips: Sequence[Clip]) -> tuple[Clip, ...]:
    """``clips`` called by the stem of their file, if that tells them apart."""
    stems = [clip.path.stem for clip in clips]
    if len(set(stems)) < len(stems):
        return tuple(clips)
    return tuple(
        Clip(name=stem, path=clip.path, text=clip.text, recorded=clip.recorded)
        for stem, clip in zip(stems, clips, strict=True)
    )


def _refuse_part_of_file(path: Path, *, manifest_seconds: float | None, where: str) -> None:
    """A ``duration`` shorter than the file means to NeMo its beginning: do not transcribe more."""
    if manifest_seconds is None:
        return
    try:
        file_seconds = soundfile.info(path).duration
    except (soundfile.SoundFileError, TypeError, OSError):
        return  # reported when the audio is read
    if file_seconds - manifest_seconds > _DURATION_SLACK_SECONDS:
        raise AudioError(
            "the manifest line names a part of a file",
            where=where,
            found=f"duration {manifest_seconds:g} s, the file lasts {file_seconds:g} s",
            fix="cut the part into a file of its own, or correct the duration",
        )


def _holds(check: Callable[[], bool]) -> bool:
    """A question to the file system; a name that no file system stores (too long, say) is answered no."""
    try:
        return check()
    except OSError:
        return False


def _no_file(path: Path, *, where: str | None = None) -> AudioError:
    shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
    return AudioError(
        "the file is not there",
        where=where or shown,
        found=None if where is None else f"no file {shown}",
        fix="check the path" if where is None else "paths are relative to the manifest's folder",
    )


def _check_samples(samples: NDArray[np.float32], *, where: Path | None) -> None:
    if samples.ndim != 1 or samples.dtype != np.float32:
        raise AudioError(
            "a waveform is one axis of float32 samples",
            where=where,
            found=f"{samples.dtype} of shape {samples.shape}",
            fix="mix it down to mono and convert it to float32",
        )
    if not samples.size:
        raise AudioError("the audio is empty", where=where, found="0 samples", fix="leave it out")
    if not np.isfinite(samples).all():
        bad = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise AudioError(
            "the audio holds samples that are not finite numbers",
            where=where,
            found=f"{samples[bad]} at sample {bad}",
            fix="write the file again; a float format can store NaN and infinity",
        )

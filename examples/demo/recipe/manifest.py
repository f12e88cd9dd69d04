"""NeMo manifests: one JSON object a line, audio paths relative to the manifest's folder.

Read with ``json`` and ``soundfile`` alone: what NeMo decodes from here is the reference that nemotrt is
tested against, so nemotrt's own audio reader has no part in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from nemotrt.errors import AudioError

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Utterance:
    """One clip and what is said in it."""

    audio: Path
    text: str
    seconds: float

    def samples(self) -> NDArray[np.float32]:
        """Mono samples in [-1, 1], shape ``[samples]``.

        Raises:
            AudioError: the file is unreadable, not mono, or not at 16 kHz.
        """
        try:
            samples, sample_rate = soundfile.read(self.audio, dtype="float32")
        except (OSError, RuntimeError) as exc:
            raise AudioError("an audio file cannot be read", where=self.audio, found=exc) from exc
        if samples.ndim != 1 or sample_rate != SAMPLE_RATE:
            raise AudioError(
                "the recipe reads mono files at 16 kHz",
                where=self.audio,
                found=f"{sample_rate} Hz, shape {samples.shape}",
                fix="make the clips with: python -m recipe.synthesize",
            )
        return np.asarray(samples, dtype=np.float32)


def row_of(utterance: Utterance, *, manifest: Path) -> dict[str, Any]:
    """The JSON object of ``utterance`` in a manifest at ``manifest``."""
    return {
        "audio_filepath": Path(os.path.relpath(utterance.audio, manifest.parent)).as_posix(),
        "duration": round(utterance.seconds, 3),
        "text": utterance.text,
    }


def write_manifest(manifest: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_manifest(manifest: Path) -> tuple[Utterance, ...]:
    """The manifest's utterances, in its order.

    Raises:
        AudioError: no such file, no utterance in it, or a line (named) without path, duration or text.
    """
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise AudioError("the manifest cannot be read", where=manifest, found=exc) from exc
    utterances = tuple(
        _utterance(line, where=f"{manifest}:{number}", folder=manifest.parent)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    if not utterances:
        raise AudioError("the manifest is empty", where=manifest)
    return utterances


def _utterance(line: str, *, where: str, folder: Path) -> Utterance:
    try:
        row = json.loads(line)
        return Utterance(folder / row["audio_filepath"], str(row["text"]), float(row["duration"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise AudioError(
            "a manifest line is not an utterance",
            where=where,
            found=f"{type(exc).__name__}: {exc}",
            fix="one JSON object a line with audio_filepath, duration in seconds and text",
        ) from exc

"""Speaks sentences of the grammar with espeak-ng and flite.

    (seed, split, index) -> Script: text, voice, tempo, pitch, loudness, noise, silences
    Script -> espeak-ng | flite -> 16 kHz -> peak -> noise -> silence around it -> PCM16 wav

Every choice comes from a generator seeded with (seed, split, index), so utterance 7 is the same in a corpus
of 10 and of 3000, in whatever order they are spoken. The voices of the test split are heard in no other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated, Literal

import numpy as np
import soundfile
import soxr
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from nemotrt.errors import MachineError, UsageError
from recipe.command import run
from recipe.grammar import sentence
from recipe.manifest import SAMPLE_RATE, Utterance, row_of, write_manifest

Split = Literal["train", "test"]


@dataclass(frozen=True)
class EspeakVoice:
    """A language of espeak-ng with one of its voice variants."""

    language: str
    variant: str


@dataclass(frozen=True)
class FliteVoice:
    name: str


Voice = EspeakVoice | FliteVoice

_AMERICAN = (
    "m1", "m2", "m3", "m4", "m7", "f1", "f2", "f3", "f4", "f5", "klatt2", "Andy", "Annie", "Michael", "adam",
    "linda",
)  # fmt: skip
_BRITISH = ("m1", "m5", "f2", "f5")
TRAIN_ESPEAK = tuple(EspeakVoice("en-us", v) for v in _AMERICAN) + tuple(EspeakVoice("en-gb", v) for v in _BRITISH)
TRAIN_FLITE = tuple(FliteVoice(name) for name in ("kal16", "awb", "rms", "slt"))
TEST_ESPEAK = (EspeakVoice("en-us", "m6"), EspeakVoice("en-gb", "f4"), EspeakVoice("en-029", "m8"))
FLITE_SHARE = 0.4


@dataclass(frozen=True)
class Script:
    """Everything that decides one utterance.

    ``tempo`` and ``pitch`` run from 0 (slow, low) to 1; ``peak`` is the highest amplitude and ``noise`` the
    standard deviation of the white noise, where full scale is 1; ``lead_samples`` and ``trail_samples`` of
    digital silence surround the speech, at 16 kHz.
    """

    text: str
    voice: Voice
    tempo: float
    pitch: float
    peak: float
    noise: float
    noise_seed: int
    lead_samples: int
    trail_samples: int


def script(index: int, *, split: Split, seed: int) -> Script:
    """Utterance ``index`` of a split: a function of its arguments alone."""
    rng = Random(f"{seed}/{split}/{index}")
    return Script(
        text=sentence(rng),
        voice=_voice(rng, split=split),
        tempo=rng.random(),
        pitch=rng.random(),
        peak=rng.uniform(0.2, 0.8),
        noise=10 ** rng.uniform(-4.0, -2.3),
        noise_seed=rng.getrandbits(32),
        lead_samples=rng.randint(0, 3000),
        trail_samples=rng.randint(0, 3000),
    )


def _voice(rng: Random, *, split: Split) -> Voice:
    if split == "test":
        return rng.choice(TEST_ESPEAK)
    return rng.choice(TRAIN_FLITE) if rng.random() < FLITE_SHARE else rng.choice(TRAIN_ESPEAK)


def require_voices() -> None:
    """Check that both synthesizers have every voice of the recipe.

    Asked for an unknown one, both take a default voice and exit 0: a trained voice in the test split.

    Raises:
        MachineError: a synthesizer or a voice is missing; says what to install.
    """
    fix = "install both synthesizers with: apt-get install espeak-ng flite"
    absent = [tool for tool in ("espeak-ng", "flite") if shutil.which(tool) is None]
    if absent:
        raise MachineError("a speech synthesizer is missing", found=f"no {', '.join(absent)} in PATH", fix=fix)
    known = {word.removeprefix("!v/") for word in _output("espeak-ng", "--voices=variant").split()}
    known.update(_output("flite", "-lv").split())
    wanted = {v.variant for v in TRAIN_ESPEAK + TEST_ESPEAK} | {v.name for v in TRAIN_FLITE}
    if not wanted <= known:
        raise MachineError("a synthesizer lacks voices of the recipe", found=", ".join(sorted(wanted - known)), fix=fix)


def speak(script: Script) -> NDArray[np.float32]:
    """The utterance as mono samples at 16 kHz.

    Raises:
        MachineError: the synthesizer failed; carries what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "speech.wav")
        _output(*_command(script, path))
        speech, sample_rate = soundfile.read(path, dtype="float32")
    speech = soxr.resample(speech, sample_rate, SAMPLE_RATE)
    speech *= script.peak / (np.abs(speech).max() + 1e-6)
    noise = np.random.default_rng(script.noise_seed).standard_normal(len(speech))
    noisy = speech + script.noise * noise
    return np.pad(noisy, (script.lead_samples, script.trail_samples)).astype(np.float32)


def _command(script: Script, path: Path) -> tuple[str, ...]:
    match script.voice:
        case FliteVoice(name):
            stretch = f"duration_stretch={1.2 - 0.4 * script.tempo:.2f}"
            return ("flite", "-voice", name, "--setf", stretch, "-t", script.text, "-o", str(path))
        case EspeakVoice(language, variant):
            words_per_minute, pitch = round(130 + 60 * script.tempo), round(30 + 40 * script.pitch)
            return (
                "espeak-ng", "-v", f"{language}+{variant}", "-s", str(words_per_minute), "-p", str(pitch),
                "-w", str(path), script.text,
            )  # fmt: skip


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as exc:
        raise MachineError(
            f"{command[0]} failed",
            where=" ".join(command),
            found=exc.stderr.strip() or f"exit {exc.returncode}",
        ) from exc


def synthesize(folder: Path, scripts: Iterable[Script]) -> tuple[Utterance, ...]:
    """Write ``folder/00000.wav`` and on, one per script, on all cores; progress on stderr."""
    jobs = list(enumerate(scripts))
    console = Console(stderr=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        spoken = pool.map(partial(_write, folder), jobs)
        return tuple(track(spoken, "speaking", total=len(jobs), console=console))


def _write(folder: Path, job: tuple[int, Script]) -> Utterance:
    index, script = job
    path = folder / f"{index:05d}.wav"
    samples = speak(script)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    return Utterance(path, script.text, len(samples) / SAMPLE_RATE)


def main(
    folder: Annotated[Path, typer.Argument(help="New folder for the wavs; FOLDER.json is their manifest.")],
    count: Annotated[int, typer.Option(min=1, help="Utterances.")] = 3000,
    split: Annotated[Split, typer.Option(help="test: the held-out voices.")] = "train",
    seed: Annotated[int, typer.Option(help="Another seed, another corpus.")] = 0,
) -> None:
    """Synthesize a split of the demo corpus."""
    manifest = folder.with_name(f"{folder.name}.json")
    if folder.exists() or manifest.exists():
        raise UsageError("the output is already there", where=folder, fix="name a new folder, or remove it")
    require_voices()
    folder.mkdir(parents=True)
    utterances = synthesize(folder, (script(i, split=split, seed=seed) for i in range(count)))
    write_manifest(manifest, (row_of(u, manifest=manifest) for u in utterances))
    minutes = sum(u.seconds for u in utterances) / 60
    typer.echo(f"{manifest}: {len(utterances)} utterances, {minutes:.1f} minutes")


if __name__ == "__main__":
    run(main)

"""The tiny CTC model as a reference, its clips, and candidates that differ from it on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_ctc import RATE, AlteredRunner, write_tiny_bundle

from nemotrt.bench.system import System
from nemotrt.bench.utterance import Utterance, read_utterances
from nemotrt.bundle import Bundle
from nemotrt.engines.audio import Clip, Recorded
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Array
from nemotrt.engines.transcriber import Transcriber


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny") / "fp32")


@pytest.fixture(scope="session")
def reference(tiny_bundle: Bundle) -> Iterator[System]:
    with Transcriber(tiny_bundle, threads=1) as transcriber:
        yield System("reference", transcriber)


@pytest.fixture
def altered(tiny_bundle: Bundle) -> Iterator[Callable[..., System]]:
    """Makes the system whose CTC graph's outputs go through ``alter``."""
    opened: list[AlteredRunner] = []

    def make(alter: Callable[[dict[str, Array]], dict[str, Array]]) -> System:
        inner = OnnxRuntimeRunner(tiny_bundle.graph_path("ctc"), spec=tiny_bundle.component("ctc"), threads=1)
        opened.append(AlteredRunner(inner, alter))
        return System("candidate", Transcriber(tiny_bundle, runners={"ctc": opened[-1]}, threads=1))

    yield make
    for runner in opened:
        runner.close()


@pytest.fixture
def system_of(tmp_path: Path) -> Iterator[Callable[..., System]]:
    """Makes the system of a bundle written with other options."""
    opened: list[Transcriber] = []

    def make(**options: object) -> System:
        bundle = write_tiny_bundle(tmp_path / f"bundle{len(opened)}", **options)
        opened.append(Transcriber(bundle, threads=1))
        return System("candidate", opened[-1])

    yield make
    for transcriber in opened:
        transcriber.close()


@pytest.fixture(scope="session")
def utterances(reference: System, tmp_path_factory: pytest.TempPathFactory) -> tuple[Utterance, ...]:
    """Five clips of different lengths; truth and recorded tokens are what the reference says of them."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(11)
    clips = []
    for number, seconds in enumerate((0.31, 0.52, 0.77, 0.93, 1.24)):
        path = folder / f"clip{number}.wav"
        soundfile.write(path, rng.normal(0, 0.1, int(seconds * RATE)).astype(np.float32), RATE, subtype="FLOAT")
        clips.append(Clip(name=path.stem, path=path, text=None, recorded={}))
    silent = read_utterances(clips, sample_rate=RATE)
    heard = [reference.transcriber.transcribe([u.waveform])[0] for u in silent]
    return read_utterances(
        [
            Clip(
                name=u.clip.name,
                path=u.clip.path,
                text=h.text,
                recorded={"ctc": Recorded(text=h.text, token_ids=h.hypothesis.token_ids)},
            )
            for u, h in zip(silent, heard, strict=True)
        ],
        sample_rate=RATE,
    )

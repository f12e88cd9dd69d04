"""The recipe of the demo corpus, as far as it runs without a speech synthesizer and without NeMo."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import sentencepiece
import soundfile
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipe.grammar import VOCABULARY, sentence
from recipe.manifest import SAMPLE_RATE, Utterance, read_manifest, row_of, write_manifest
from recipe.synthesize import Script, require_voices, script
from recipe.tokenizer import train_tokenizer

from nemotrt.errors import AudioError, MachineError, UsageError

RECIPE = Path(__file__).parents[2] / "examples" / "demo" / "recipe"
CORPUS = 300


def corpus(*, split: Any = "train", seed: int = 0, count: int = CORPUS) -> list[Script]:
    return [script(index, split=split, seed=seed) for index in range(count)]


@given(st.integers())
def test_every_sentence_stays_inside_the_vocabulary(seed: int) -> None:
    assert VOCABULARY.issuperset(sentence(Random(seed)).split())


def test_every_word_of_the_vocabulary_is_spoken() -> None:
    assert {word for one in corpus() for word in one.text.split()} == VOCABULARY


def test_the_recorded_clips_are_sentences_of_the_vocabulary(demo_manifest: Path) -> None:
    clips = read_manifest(demo_manifest)
    assert len(clips) == 16
    for clip in clips:
        assert VOCABULARY.issuperset(clip.text.split())


def test_an_utterance_depends_on_seed_split_and_index_alone() -> None:
    assert corpus(count=20) == corpus()[:20]
    assert script(7, split="train", seed=0) == corpus()[7]


def test_the_text_of_an_utterance_is_the_same_on_every_machine() -> None:
    assert [one.text for one in corpus(count=3)] == [
        "nine one four two five two",
        "six two one eight four five",
        "call one three zero one two nine",
    ]


def test_another_seed_or_split_gives_another_corpus() -> None:
    texts = [one.text for one in corpus()]
    assert texts != [one.text for one in corpus(seed=1)]
    assert texts != [one.text for one in corpus(split="test")]


def test_no_voice_of_the_test_split_is_trained_on() -> None:
    trained, held_out = ({one.voice for one in corpus(split=split)} for split in ("train", "test"))
    assert len(held_out) == 3
    assert not trained & held_out


def test_a_missing_synthesizer_is_named_with_its_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="apt-get install espeak-ng flite") as caught:
        require_voices()
    assert caught.value.found == "no espeak-ng, flite in PATH"


def test_a_synthesizer_without_the_voices_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tool in ("espeak-ng", "flite"):
        program = tmp_path / tool
        program.write_text("#!/bin/sh\necho Voices available: kal16 awb rms\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(MachineError, match="lacks voices") as caught:
        require_voices()
    assert caught.value.found is not None
    assert "slt" in caught.value.found
    assert "m6" in caught.value.found
    assert "kal16" not in caught.value.found


@pytest.mark.skipif(
    shutil.which("espeak-ng") is None or shutil.which("flite") is None, reason="needs espeak-ng and flite"
)
def test_a_script_is_always_spoken_with_the_same_samples() -> None:
    from recipe.synthesize import speak

    require_voices()
    one = script(0, split="test", seed=0)
    samples = speak(one)
    np.testing.assert_array_equal(samples, speak(one))
    assert samples.dtype == np.float32
    assert not samples[: one.lead_samples].any()
    loud = np.abs(speak(replace(one, noise=0.0))).max()
    assert loud == pytest.approx(one.peak, rel=1e-3)


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    audio, manifest = tmp_path / "clips" / "a.wav", tmp_path / "clips.json"
    soundfile.write(audio, np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    utterance = Utterance(audio, "turn on the hall light", 1.0)
    write_manifest(manifest, [row_of(utterance, manifest=manifest)])
    assert json.loads(manifest.read_text())["audio_filepath"] == "clips/a.wav"
    assert read_manifest(manifest) == (utterance,)
    assert utterance.samples().shape == (SAMPLE_RATE,)


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"text": "one"}', '{"audio_filepath": "a", "text": "b"}'])
def test_a_malformed_manifest_line_is_named(line: str, tmp_path: Path) -> None:
    manifest = tmp_path / "clips.json"
    manifest.write_text('{"audio_filepath": "a.wav", "duration": 1, "text": "one"}\n' + line)
    with pytest.raises(AudioError, match=r"clips\.json:2"):
        read_manifest(manifest)


def test_audio_at_another_rate_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 8000)
    with pytest.raises(AudioError, match="8000 Hz"):
        Utterance(tmp_path / "a.wav", "one", 1.0).samples()


def test_the_tokenizer_spells_every_word_without_unknowns(tmp_path: Path) -> None:
    train_tokenizer(tmp_path, [one.text for one in corpus()])
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert model.get_piece_size() == 96
    for word in VOCABULARY:
        assert model.unk_id() not in model.encode(word)
        assert model.decode(model.encode(word)) == word


def test_a_corpus_too_small_for_the_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="synthesize more"):
        train_tokenizer(tmp_path, ["one two three"])


# Filled in by NeMo or by training: names of the tokenizer's files, and what follows from its pieces.
DERIVED = (
    "tokenizer.", "labels", "target", "nemo_version", "decoder.vocab_size", "joint.num_classes",
    "joint.vocabulary", "joint.jointnet.encoder_hidden", "joint.jointnet.pred_hidden",
    "aux_ctc.decoder.feat_in", "aux_ctc.decoder.num_classes", "aux_ctc.decoder.vocabulary",
)  # fmt: skip


@pytest.mark.parametrize("name", ["parakeet-style-tdt", "fastconformer-hybrid-streaming"])
def test_a_model_config_is_that_of_the_checkpoint(name: str) -> None:
    with tarfile.open(RECIPE.parent / f"{name}.nemo") as archive:
        member = archive.extractfile("./model_config.yaml")
        assert member is not None
        trained = dict(leaves(yaml.safe_load(member)))
    recipe = dict(leaves(yaml.safe_load((RECIPE / f"{name}.yaml").read_text())))
    assert without_derived(recipe) == without_derived(trained)


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def without_derived(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(DERIVED)}

"""Bundles in onnx-asr. Oracles: what NeMo's own greedy decoding says of each demo clip, and our own decoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import archives
import numpy as np
import pytest
from onnx_sessions import Graph

from nemotrt.bundle import Bundle, Decoder
from nemotrt.engines.audio import Clip, Waveform
from nemotrt.engines.tokenizer import tokenizer_from_bundle
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import UsageError
from nemotrt.export import ExportOptions, export_checkpoint
from nemotrt.export.clients import write_onnx_asr_layout

onnx_asr = pytest.importorskip("onnx_asr")


@pytest.fixture(scope="module")
def normalized_bundle(hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The hybrid as if it had been trained on the features that onnx-asr computes; the same weights."""
    folder = tmp_path_factory.mktemp("normalized")
    members = archives.read_members(hybrid_checkpoint)
    config = archives.changed(archives.config_of(members), "preprocessor.normalize", "per_feature")
    archives.write_archive(folder / "m.nemo", archives.with_config(members, config))
    return export_checkpoint(folder / "m.nemo", folder / "bundle", options=ExportOptions(components=("all",)))


def recognized(folder: Path, model_type: str, waveforms: tuple[Waveform, ...]) -> list[str]:
    """The folder as onnx-asr loads it, with its own front end: nothing of ours but the files."""
    recognizer = onnx_asr.load_model(model_type, folder)
    return [recognizer.recognize(waveform.samples) for waveform in waveforms]


def test_the_tdt_layout_says_what_nemo_says(
    complete_tdt_bundle: Bundle,
    clips: tuple[Clip, ...],
    waveforms: tuple[Waveform, ...],
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    model_type = write_onnx_asr_layout(complete_tdt_bundle, tmp_path / "model")
    assert model_type == "nemo-conformer-tdt"
    found = recognized(tmp_path / "model", model_type, waveforms)
    nemo = [clip.recorded["tdt"].text for clip in clips]
    equal = sum(map(str.__eq__, found, nemo))
    figure(f"onnx-asr on the TDT layout, its own front end: NeMo's text on {equal} of {len(nemo)} demo clips")
    assert found == nemo


def test_the_rnnt_layout_of_a_hybrid_says_what_our_decoder_says(
    normalized_bundle: Bundle, waveforms: tuple[Waveform, ...], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """On features that the weights were not trained on, so that the words are odd ones; but the same."""
    model_type = write_onnx_asr_layout(normalized_bundle, tmp_path / "model")
    assert model_type == "nemo-conformer-rnnt"
    found = recognized(tmp_path / "model", model_type, waveforms)
    with Transcriber(normalized_bundle, decoder="rnnt", threads=1) as transcriber:
        ours = [transcriber.transcribe([waveform])[0].text for waveform in waveforms]
    equal = sum(map(str.__eq__, found, ours))
    figure(f"onnx-asr on the rnnt layout, its own front end: our text on {equal} of {len(ours)} demo clips")
    assert found == ours
    assert len(set(found)) > len(found) // 2


def test_the_ctc_layout_of_a_hybrid_says_what_our_decoder_says_of_the_frames_that_onnx_asr_counts(
    normalized_bundle: Bundle, waveforms: tuple[Waveform, ...], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """It counts encoder frames by itself, ceil(T / factor): a causal encoder has one more where factor divides T."""
    model_type = write_onnx_asr_layout(normalized_bundle, tmp_path / "model", decoder="ctc")
    assert model_type == "nemo-conformer-ctc"
    found = recognized(tmp_path / "model", model_type, waveforms)
    factor, tokenizer = normalized_bundle.meta.encoder.subsampling_factor, tokenizer_from_bundle(normalized_bundle)
    ours, heard_to_the_end = [], []
    with Transcriber(normalized_bundle, decoder="ctc", threads=1) as transcriber:
        for waveform in waveforms:
            features, length = transcriber.features([waveform])
            encoded, lengths = transcriber.encode(features, length)
            (hypothesis,) = transcriber.decode(encoded, -(-length // factor))
            ours.append(tokenizer.text(hypothesis.token_ids))
            heard_to_the_end.append(transcriber.decode(encoded, lengths) == (hypothesis,))
    equal = sum(map(str.__eq__, found, ours))
    figure(
        f"onnx-asr on the ctc layout, its own front end: our text on {equal} of {len(ours)} demo clips, "
        f"{sum(heard_to_the_end)} of them to the last frame"
    )
    assert found == ours
    assert not all(heard_to_the_end)
    assert len(set(found)) > len(found) // 2


@pytest.mark.parametrize(("decoder", "model"), [("rnnt", "NemoConformerRnnt"), ("ctc", "NemoConformerCtc")])
def test_the_layouts_of_a_hybrid_say_what_nemo_says_of_the_features_it_was_trained_on(
    normalized_bundle: Bundle,
    hybrid_bundle: Bundle,
    clips: tuple[Clip, ...],
    waveforms: tuple[Waveform, ...],
    tmp_path: Path,
    figure: Callable[[str], None],
    decoder: Decoder,
    model: str,
) -> None:
    write_onnx_asr_layout(normalized_bundle, tmp_path / "model", decoder=decoder)
    recognizer = with_front_end(model, tmp_path / "model", Graph.of(hybrid_bundle, "preprocessor"))
    found = []
    for waveform in waveforms:
        (result,) = recognizer.recognize_batch(waveform.samples[None], np.array([len(waveform.samples)]))
        found.append(result.text)
    nemo = [clip.recorded[decoder].text for clip in clips]
    equal = sum(map(str.__eq__, found, nemo))
    figure(f"onnx-asr on the {decoder} layout, our front end: NeMo's text on {equal} of {len(nemo)} demo clips")
    assert found == nemo


def with_front_end(model: str, folder: Path, front_end: Graph) -> Any:
    from onnx_asr.models import nemo

    kind = getattr(nemo, model)
    files = {key: folder / name for key, name in kind._get_model_files().items()}
    return kind(
        {**files, "config": folder / "config.json"},
        lambda _name: lambda waveforms, lengths: front_end(waveform=waveforms, waveform_length=lengths),
        {},
    )


def test_a_model_of_other_features_than_the_client_computes_gets_no_layout(
    hybrid_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="other features") as refusal:
        write_onnx_asr_layout(hybrid_bundle, tmp_path / "model")
    assert refusal.value.found == "normalize 'none', 'per_feature' there"
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_that_the_bundle_does_not_have_is_refused(
    complete_tdt_bundle: Bundle, normalized_bundle: Bundle, tmp_path: Path
) -> None:
    for bundle, decoder, found in ((complete_tdt_bundle, "ctc", "tdt"), (normalized_bundle, "tdt", "rnnt, ctc")):
        with pytest.raises(UsageError, match=f"no {decoder} decoder") as refusal:
            write_onnx_asr_layout(bundle, tmp_path / "model", decoder=decoder)
        assert refusal.value.found == found
    assert list(tmp_path.iterdir()) == []


def test_a_tdt_of_other_durations_than_their_indices_is_refused(complete_tdt_bundle: Bundle, tmp_path: Path) -> None:
    transducer = complete_tdt_bundle.meta.transducer
    assert transducer is not None
    doubled = transducer.model_copy(update={"durations": tuple(2 * d for d in transducer.durations)})
    bundle = replace(complete_tdt_bundle, meta=complete_tdt_bundle.meta.model_copy(update={"transducer": doubled}))
    with pytest.raises(UsageError, match="durations") as refusal:
        write_onnx_asr_layout(bundle, tmp_path / "model")
    assert refusal.value.found == "0, 2, 4, 6, 8"


def test_what_the_bundle_lacks_is_named(tdt_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not have: decoder_joint"):
        write_onnx_asr_layout(tdt_bundle, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(complete_tdt_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already there"):
        write_onnx_asr_layout(complete_tdt_bundle, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_layout_that_fails_on_the_way_leaves_nothing(complete_tdt_bundle: Bundle, tmp_path: Path) -> None:
    """A graph that is gone when it is read, after the folder was begun."""
    bundle = replace(complete_tdt_bundle, path=tmp_path / "moved")
    (tmp_path / "moved").mkdir()
    with pytest.raises(FileNotFoundError):
        write_onnx_asr_layout(bundle, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]

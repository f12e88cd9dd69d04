"""Audio files and manifests, good and bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemotrt.engines.audio import Clip, Recorded, Waveform, read_clips, read_waveform
from nemotrt.errors import AudioError

DEMO = Path(__file__).parents[2] / "examples" / "demo"
RATE = 16000


def tone(seconds: float, *, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(0.5), RATE, subtype="FLOAT")
    return path


class TestReadWaveform:
    def test_samples_of_the_same_rate_come_back_as_they_are(self, clip: Path):
        waveform = read_waveform(clip, sample_rate=RATE)
        np.testing.assert_array_equal(waveform.samples, tone(0.5))
        assert (waveform.sample_rate, waveform.seconds) == (RATE, 0.5)

    @pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
    def test_common_formats_are_read(self, tmp_path: Path, suffix: str):
        path = tmp_path / f"clip.{suffix}"
        soundfile.write(path, tone(1.0), RATE)
        assert read_waveform(path, sample_rate=RATE).seconds == pytest.approx(1.0, abs=0.1)

    def test_channels_are_averaged(self, tmp_path: Path):
        path = tmp_path / "stereo.wav"
        soundfile.write(path, np.stack([tone(0.1), np.zeros(1600)], axis=1), RATE, subtype="FLOAT")
        np.testing.assert_allclose(read_waveform(path, sample_rate=RATE).samples, tone(0.1) / 2, atol=1e-7)

    @pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
    def test_another_rate_is_resampled(self, tmp_path: Path, rate: int):
        path = tmp_path / "clip.wav"
        soundfile.write(path, tone(1.0, rate=rate), rate, subtype="FLOAT")
        samples = read_waveform(path, sample_rate=RATE).samples
        assert samples.dtype == np.float32
        assert abs(len(samples) - RATE) <= 1
        inner = slice(1000, 15000)
        np.testing.assert_allclose(samples[inner], tone(1.0)[inner], atol=2e-3)

    def test_a_missing_file_is_refused(self, tmp_path: Path):
        with pytest.raises(AudioError, match="not there") as caught:
            read_waveform(tmp_path / "no.wav", sample_rate=RATE)
        assert caught.value.where == str(tmp_path / "no.wav")

    def test_a_folder_is_refused(self, tmp_path: Path):
        with pytest.raises(AudioError, match="not there"):
            read_waveform(tmp_path, sample_rate=RATE)

    @pytest.mark.parametrize("name", ["notes.wav", "notes.raw", "notes"])
    def test_a_file_that_is_not_audio_is_refused(self, tmp_path: Path, name: str):
        path = tmp_path / name
        path.write_text("not audio at all\n" * 10)
        with pytest.raises(AudioError, match="not a readable audio file") as caught:
            read_waveform(path, sample_rate=RATE)
        assert caught.value.where == str(path)
        assert caught.value.fix

    def test_an_empty_recording_is_refused(self, tmp_path: Path):
        path = tmp_path / "empty.wav"
        soundfile.write(path, np.zeros(0), RATE)
        with pytest.raises(AudioError, match="empty") as caught:
            read_waveform(path, sample_rate=RATE)
        assert caught.value.where == str(path)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_samples_that_are_not_finite_are_refused(self, tmp_path: Path, value: float):
        samples = tone(0.1)
        samples[77] = value
        soundfile.write(tmp_path / "bad.wav", samples, RATE, subtype="FLOAT")
        with pytest.raises(AudioError, match="not finite") as caught:
            read_waveform(tmp_path / "bad.wav", sample_rate=RATE)
        assert "sample 77" in str(caught.value)

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(data=st.data())
    def test_a_damaged_file_is_read_or_refused(self, tmp_path: Path, clip: Path, data: st.DataObject):
        content = bytearray(clip.read_bytes())
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, 100))] = data.draw(st.integers(0, 255))
        path = tmp_path / "damaged.wav"
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            waveform = read_waveform(path, sample_rate=RATE)
        except AudioError:
            return
        assert np.isfinite(waveform.samples).all()


class TestWaveform:
    @pytest.mark.parametrize(
        "samples",
        [np.zeros((2, 9), np.float32), np.zeros(9), np.zeros(0, np.float32), np.array([np.nan], np.float32)],
        ids=["stereo", "float64", "empty", "nan"],
    )
    def test_what_is_not_mono_finite_float32_is_refused(self, samples: Any):
        with pytest.raises(AudioError):
            Waveform(samples, RATE)

    def test_a_sample_rate_of_zero_is_refused(self):
        with pytest.raises(AudioError, match="sample rate"):
            Waveform(np.zeros(9, np.float32), 0)


def write_manifest(folder: Path, *entries: object) -> Path:
    path = folder / "manifest.json"
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n", encoding="utf-8")
    return path


class TestReadClips:
    def test_the_demo_manifest_has_texts_and_recordings(self):
        clips = read_clips(DEMO / "manifest.json")
        assert len(clips) == 16
        assert clips[0].name == "00000"
        assert clips[0].text == "play red music in the kitchen at five two"
        assert clips[0].recorded["ctc"].text == "play red music in the kcen at five two"
        assert clips[3].recorded.keys() == {"tdt", "rnnt", "ctc"}
        assert all(clip.path.is_file() for clip in clips)

    def test_one_file_is_one_clip(self, clip: Path):
        assert read_clips(clip) == (Clip(name="clip", path=clip),)

    def test_a_folder_gives_its_audio_in_the_order_of_names(self, tmp_path: Path):
        for name in ("b.wav", "a.FLAC", "notes.txt", "c.mp3"):
            (tmp_path / name).touch()
        assert [clip.name for clip in read_clips(tmp_path)] == ["a", "b", "c"]

    def test_clips_with_the_same_stem_are_called_by_their_path(self, tmp_path: Path, clip: Path):
        (tmp_path / "clip.flac").touch()
        assert [clip.name for clip in read_clips(tmp_path)] == ["clip.flac", "clip.wav"]

    def test_a_folder_without_audio_is_refused(self, tmp_path: Path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(AudioError, match="no audio files"):
            read_clips(tmp_path)

    @pytest.mark.parametrize("name", ["nothing", "manifest.json", "n" * 5000])
    def test_a_source_that_is_not_there_is_refused(self, tmp_path: Path, name: str):
        with pytest.raises(AudioError, match="not there"):
            read_clips(tmp_path / name)

    def test_lines_carry_what_they_say(self, tmp_path: Path, clip: Path):
        entry = {
            "audio_filepath": "clip.wav",
            "text": "hello",
            "duration": 0.5,
            "offset": 0,
            "lang": "en",
            "nemo_rnnt": "hallo",
            "nemo_rnnt_ids": [4, 0],
        }
        (only,) = read_clips(write_manifest(tmp_path, entry))
        assert only == Clip("clip", clip, "hello", {"rnnt": Recorded("hallo", (4, 0))})

    def test_byte_order_mark_blank_lines_and_absolute_paths_are_fine(self, tmp_path: Path, clip: Path):
        path = tmp_path / "list.jsonl"
        line = json.dumps({"audio_filepath": str(clip)}).encode()
        path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\n  \n")
        assert read_clips(path) == (Clip("clip", clip),)

    def test_an_empty_manifest_is_refused(self, tmp_path: Path):
        with pytest.raises(AudioError, match="no clips"):
            read_clips(write_manifest(tmp_path))

    @pytest.mark.parametrize(
        ("entry", "found"),
        [
            ([], "object"),
            ({"text": "no file"}, "audio_filepath: Field required"),
            ({"audio_filepath": ""}, "audio_filepath"),
            ({"audio_filepath": 7}, "audio_filepath"),
            ({"audio_filepath": "gone.wav"}, "gone.wav"),
            ({"audio_filepath": "n" * 5000}, "nnn..."),
            ({"audio_filepath": "a\0b"}, "no file"),
            ({"audio_filepath": "clip.wav", "text": 7}, "text"),
            ({"audio_filepath": "clip.wav", "offset": 0.5}, "offset"),
            ({"audio_filepath": "clip.wav", "duration": 0.2}, "duration 0.2 s, the file lasts 0.5 s"),
            ({"audio_filepath": "clip.wav", "duration": -1}, "duration"),
            ({"audio_filepath": "clip.wav", "nemo_tdt": "a"}, "nemo_tdt_ids"),
            ({"audio_filepath": "clip.wav", "nemo_tdt_ids": []}, "nemo_tdt"),
            ({"audio_filepath": "clip.wav", "nemo_tdt": "a", "nemo_tdt_ids": [-1]}, "nemo_tdt_ids.0"),
            ({"audio_filepath": "clip.wav", "nemo_tdt": "a", "nemo_tdt_ids": [1.0]}, "nemo_tdt_ids.0"),
            ({"audio_filepath": "clip.wav", "nemo_tdt": "a", "nemo_tdt_ids": [True]}, "nemo_tdt_ids.0"),
            ({"audio_filepath": "clip.wav", "nemo_aed": "a"}, "nemo_aed"),
        ],
    )
    def test_a_wrong_line_is_named_with_its_file_and_number(
        self, tmp_path: Path, clip: Path, entry: object, found: str
    ):
        manifest = write_manifest(tmp_path, {"audio_filepath": "clip.wav"}, entry)
        with pytest.raises(AudioError) as caught:
            read_clips(manifest)
        assert caught.value.where == f"{manifest}, line 2"
        assert found in str(caught.value.found)
        assert caught.value.fix

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    fields = st.sampled_from(
        ["audio_filepath", "text", "duration", "offset", "nemo_tdt", "nemo_tdt_ids", "nemo_ctc_ids", "lang"]
    )
    entries = st.dictionaries(fields, json_values | st.just("clip.wav"), max_size=5).map(json.dumps)

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(lines=st.lists(entries.map(str.encode) | st.binary(max_size=40), max_size=4))
    def test_any_bytes_are_clips_or_a_named_line(self, tmp_path: Path, clip: Path, lines: list[bytes]):
        manifest = tmp_path / "fuzzed.json"
        manifest.write_bytes(b"\n".join(lines))
        clips, error = clips_or_error(manifest)
        if error is None:
            assert clips
            assert all(found.path.is_file() for found in clips)
        else:
            assert str(error.where).startswith(str(manifest))
            assert error.fix


def clips_or_error(manifest: Path) -> tuple[tuple[Clip, ...], AudioError | None]:
    try:
        return read_clips(manifest), None
    except AudioError as error:
        return (), error

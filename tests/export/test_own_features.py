"""Models that are given their features: pen strokes, sensors, whatever a frame of numbers may be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import VOCABULARY, SmallModel, small_ctc, small_transducer

from nemotrt.bench.latency import LatencyPlan
from nemotrt.bundle import Bundle
from nemotrt.engines.audio import Clip, read_clips
from nemotrt.engines.store import EngineStore
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import AudioError, BundleError, UsageError
from nemotrt.export import export_checkpoint
from nemotrt.profiles import SecondsRange, load_profile
from nemotrt.quantize import calibrate, quantize
from nemotrt.stages import EngineOrder, ensure_engines
from nemotrt.trt.quantization.quantized_bundle import QuantizationOrder
from nemotrt.verbs import bench_models, open_transcriber, transcribe_clips

FEATURES = 7
ENCODER = {"feat_in": FEATURES, "subsampling_factor": 1, "pos_emb_max_len": 300}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    folder = tmp_path_factory.mktemp("own-features")
    return small_transducer(folder / "pen.nemo", encoder=ENCODER, seed=3)


@pytest.fixture(scope="module")
def bundle(model: SmallModel) -> Bundle:
    return export_checkpoint(model.checkpoint, model.checkpoint.with_suffix(""))


def strokes(frames: int) -> NDArray[np.float32]:
    return np.random.default_rng(frames).standard_normal((FEATURES, frames)).astype(np.float32)


def test_the_bundle_has_no_front_end_and_says_so(bundle: Bundle) -> None:
    assert bundle.meta.mel is None
    assert "preprocessor" not in bundle.meta.components
    assert bundle.component("encoder").inputs[0].shape == ("batch", FEATURES, "frames")
    (note,) = bundle.meta.notes
    assert "no front end" in note


def test_a_batch_of_features_is_transcribed_as_each_alone(bundle: Bundle, model: SmallModel) -> None:
    several = [strokes(frames) for frames in (60, 1, 33)]
    with Transcriber(bundle, threads=1) as transcriber:
        together = transcriber.transcribe_features(several)
        for features, heard in zip(several, together, strict=True):
            (alone,) = transcriber.transcribe_features([features])
            assert heard.hypothesis == alone.hypothesis
            wanted, lengths = model.nemo.encoder(features[None], np.array([features.shape[1]]))
            assert heard.encoded_length == lengths[0] == features.shape[1]
            assert np.abs(heard.encoder_output - wanted[0]).max() <= 1e-5
        assert transcriber.transcribe_features([]) == ()
    assert any(heard.text for heard in together)
    assert set("".join(heard.text for heard in together)) <= set(VOCABULARY)


@pytest.mark.parametrize(
    "features",
    [strokes(5)[:6], strokes(5)[None], strokes(5).astype(np.float64), strokes(301), strokes(5)[:, :0]],
    ids=["fewer features", "a batch", "float64", "too long", "no frames"],
)
def test_features_that_do_not_fit_are_refused(bundle: Bundle, features: NDArray[np.float32]) -> None:
    with Transcriber(bundle, threads=1) as transcriber, pytest.raises(UsageError, match="do not fit the model"):
        transcriber.transcribe_features([features])


def test_a_file_of_features_is_a_clip(bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", strokes(60))
    with open_transcriber(bundle.path, decoder=None, threads=1) as transcriber:
        (heard,) = transcribe_clips(transcriber, [Clip("a", tmp_path / "a.npy")])
        assert heard.text == transcriber.transcribe_features([strokes(60)])[0].text
    assert heard.seconds == 0.6


@pytest.mark.parametrize("content", [b"", b"RIFF....WAVE", None, "pickle", "infinite", "three axes"])
def test_a_file_that_holds_no_features_is_refused(bundle: Bundle, tmp_path: Path, content: object) -> None:
    path = tmp_path / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif content == "infinite":
        np.save(path, np.full((FEATURES, 5), np.inf, np.float32))
    elif content == "three axes":
        np.save(path, strokes(5)[None])
    with (
        open_transcriber(bundle.path, decoder=None, threads=1) as transcriber,
        pytest.raises(AudioError, match="not a file of features") as refusal,
    ):
        list(transcribe_clips(transcriber, [Clip("a", path)]))
    assert refusal.value.where == str(path)


def test_int8_is_calibrated_on_files_of_features(tmp_path: Path) -> None:
    wide = small_transducer(tmp_path / "wide.nemo", encoder=ENCODER | {"d_model": 64}, seed=3)
    source = export_checkpoint(wide.checkpoint, tmp_path / "wide")
    lines = []
    for frames in (60, 41):
        np.save(tmp_path / f"{frames}.npy", strokes(frames))
        lines.append(json.dumps({"audio_filepath": f"{frames}.npy"}))
    manifest = tmp_path / "strokes.json"
    manifest.write_text("\n".join(lines), encoding="utf-8")
    made = quantize(source, tmp_path / "int8", QuantizationOrder(), audio=manifest, on_progress=lambda *_: None)
    assert made.meta.quantized is not None
    assert made.meta.quantized.clips == 2
    encoded = []
    for one in (source, made):
        with Transcriber(one, threads=1) as transcriber:
            encoded.append(transcriber.transcribe_features([strokes(50)])[0].encoder_output)
    assert 0 < np.linalg.norm(encoded[1] - encoded[0]) / np.linalg.norm(encoded[0]) < 0.1


def test_int8_of_own_features_is_not_calibrated_on_audio(bundle: Bundle, demo_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="not a file of features"):
        calibrate(bundle, {"encoder": ()}, read_clips(demo_manifest), on_progress=lambda *_: None)


def test_audio_is_refused_with_what_the_model_takes(bundle: Bundle, demo_manifest: Path) -> None:
    plan = LatencyPlan(batch_sizes=(1,), runs=1, warmup=0, threads=1)
    with pytest.raises(BundleError, match="features of its own"):
        bench_models([bundle.path], demo_manifest, plan=plan, decoder=None, on_progress=lambda *_: None)


def test_engines_are_built_for_a_hundred_frames_a_second(
    bundle: Bundle, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    demo = load_profile("demo")
    profile = demo.model_copy(update={"seconds": SecondsRange(min=0.1, opt=1.0, max=3.0)})
    order, store = EngineOrder((profile,), "tensorrt-rtx"), EngineStore(tmp_path / "engines")
    (made,) = ensure_engines(bundle, order, store, components=("encoder",), on_progress=lambda *_: None)
    assert made.engine.manifest.ranges[0]["frames"].max == 300
    figure(f"encoder of {FEATURES} own features: {made.engine.manifest.layers} TensorRT-RTX layers")


def test_a_ctc_model_of_own_features(tmp_path: Path) -> None:
    model = small_ctc(tmp_path / "m.nemo", encoder=ENCODER)
    bundle = export_checkpoint(model.checkpoint, tmp_path / "m")
    assert sorted(bundle.meta.components) == ["ctc", "ctc_nomask"]
    with Transcriber(bundle, threads=1) as transcriber:
        (heard,) = transcriber.transcribe_features([strokes(50)])
    encoded, _ = model.nemo.encoder(strokes(50)[None], np.array([50]))
    assert np.abs(heard.encoder_output.T - model.nemo.ctc(encoded)[0]).max() <= 1e-4

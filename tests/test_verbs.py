"""What stands behind ``transcribe``, ``compare`` and ``bench``: which bundle, which engines, whose audio."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpu_stand_in import GPU, StandInGpu, install
from nemotrt.bench.latency import LatencyPlan
from nemotrt.bench.system import silent
from nemotrt.bundle import Bundle, load_bundle
from nemotrt.engines.audio import Clip, read_clips, read_waveform
from nemotrt.engines.manifest import EngineBuild, Verification, json_from_manifest
from nemotrt.engines.store import EngineStore, StoredEngine
from nemotrt.errors import AudioError, BundleError, ProfileError, UsageError
from nemotrt.profiles import load_profile
from nemotrt.stages import EngineOrder, ensure_engines, ensure_fp16
from nemotrt.verbs import bench_models, compare_models, open_transcriber, transcribe_clips

CLIP, WORDS = "00003", "set the light to red"


@pytest.fixture(scope="module")
def made(tdt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``nemotrt run`` leaves behind, before anything was compared."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("made") / "out"
    reference = load_bundle(Path(shutil.copytree(tdt_bundle.path, folder / "bundle")))
    typed = ensure_fp16(reference, folder / "bundle-fp16", on_progress=silent).bundle
    order = EngineOrder((load_profile("demo"),), "tensorrt-rtx")
    ensure_engines(typed, order, EngineStore(folder / "engines"), components=["predictor", "joint"], on_progress=silent)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandInGpu:
    stand_in = StandInGpu()
    install(monkeypatch, stand_in)
    return stand_in


@pytest.fixture(scope="module")
def clip(demo_manifest: Path) -> Clip:
    return next(clip for clip in read_clips(demo_manifest) if clip.name == CLIP)


def judge(folder: Path, *, state: str = "verified", gpu: str = GPU.name) -> None:
    """Write a verdict into every manifest."""
    store = EngineStore(folder / "engines")
    for engine in store.entries():
        verdict = Verification(
            state=state, reason="a reason", reference="the reference", gpu=gpu, checked=datetime.now(UTC)
        )
        store.record_verification(engine, verdict)


def heard(model: Path, clip: Clip) -> tuple[str, str, str]:
    """Label of the runtime, precision, text."""
    with open_transcriber(model, decoder=None, threads=1) as transcriber:
        (spoken,) = transcribe_clips(transcriber, [clip])
        return transcriber.label, transcriber.bundle.meta.precision, spoken.text


# --- opening


def test_a_bundle_runs_on_onnx_runtime(tdt_bundle: Bundle, clip: Clip) -> None:
    label, precision, text = heard(tdt_bundle.path, clip)
    assert label.startswith("onnxruntime")
    assert (precision, text) == ("fp32", WORDS)


def test_a_run_folder_without_a_gpu_is_its_fp32_bundle_even_with_verified_engines(folder: Path, clip: Clip) -> None:
    judge(folder)
    label, precision, text = heard(folder, clip)
    assert "stand-in" not in label
    assert (precision, text) == ("fp32", WORDS)


def test_a_run_folder_on_a_gpu_uses_the_engines_that_passed(folder: Path, clip: Clip, gpu: StandInGpu) -> None:
    judge(folder)
    label, precision, text = heard(folder, clip)
    assert f"TensorRT-RTX stand-in, {GPU.name}" in label
    assert (precision, text) == ("fp16", WORDS)
    assert [runner.is_open for runner in gpu.opened] == [False, False]


@pytest.mark.parametrize(
    ("state", "gpu_name"),
    [("verified", "Another GPU"), ("failed", GPU.name), ("built, not verified", GPU.name)],
)
def test_engines_that_did_not_pass_on_this_gpu_are_not_used(
    folder: Path, clip: Clip, gpu: StandInGpu, state: str, gpu_name: str
) -> None:
    judge(folder, state=state, gpu=gpu_name)
    label, precision, _ = heard(folder, clip)
    assert label.startswith("onnxruntime")
    assert precision == "fp32"
    assert gpu.opened == []


def test_engines_of_another_checkpoint_in_the_same_folder_are_not_used(
    folder: Path, clip: Clip, gpu: StandInGpu, hybrid_bundle: Bundle
) -> None:
    judge(folder)
    for name in ("bundle", "bundle-fp16"):
        shutil.rmtree(folder / name)
    reference = load_bundle(Path(shutil.copytree(hybrid_bundle.path, folder / "bundle")))
    ensure_fp16(reference, folder / "bundle-fp16", on_progress=silent)
    assert heard(folder, clip)[::2] == (heard(folder / "bundle", clip)[0], WORDS)
    assert gpu.opened == []


def test_engines_of_a_bundle_that_was_cast_from_something_else_are_not_used(
    folder: Path, clip: Clip, gpu: StandInGpu, hybrid_bundle: Bundle
) -> None:
    """As a run leaves it that was interrupted between export and cast."""
    judge(folder)
    shutil.rmtree(folder / "bundle")
    shutil.copytree(hybrid_bundle.path, folder / "bundle")
    assert heard(folder, clip)[1:] == ("fp32", WORDS)
    assert gpu.opened == []


def test_of_two_verified_engines_of_a_component_the_newer_one_is_used(
    folder: Path, clip: Clip, gpu: StandInGpu
) -> None:
    judge(folder)
    store = EngineStore(folder / "engines")
    newer = {}
    for engine in store.entries():
        newer[engine.manifest.component] = stored_again_later(store, engine).key
    heard(folder, clip)
    assert {runner.label for runner in gpu.opened} == {f"TensorRT-RTX stand-in, {GPU.name}"}
    assert sorted(gpu.keys) == sorted(newer.values())


def stored_again_later(store: EngineStore, engine: StoredEngine) -> StoredEngine:
    """The same plan as if built a day later for another GPU, and verified as well."""
    manifest = engine.manifest
    facts = {name: getattr(manifest, name) for name in EngineBuild.model_fields}
    later = {"created": manifest.created + timedelta(days=1), "compute_capabilities": ("8.9",)}
    stored = store.put(EngineBuild(**{**facts, **later}), store.load_plan(engine))
    return store.record_verification(stored, manifest.verification)


def test_what_is_no_model_is_refused_by_name(tmp_path: Path, tdt_checkpoint: Path, folder: Path) -> None:
    for model, words in ((tmp_path / "gone", "no such folder"), (tdt_checkpoint, "a file"), (tmp_path, "a folder")):
        with (
            pytest.raises(BundleError, match=f"not a bundle(.|\n)*{words}"),
            open_transcriber(model, decoder=None, threads=1),
        ):
            pass
    (folder / "bundle" / "joint.onnx").unlink()
    with pytest.raises(BundleError, match=r"joint\.onnx is missing"), open_transcriber(folder, decoder=None, threads=1):
        pass


def test_a_batch_outside_of_the_engines_profile_is_refused(folder: Path, clip: Clip, gpu: StandInGpu) -> None:
    judge(folder)
    with open_transcriber(folder, decoder=None, threads=1) as transcriber:
        waveform = read_waveform(clip.path, sample_rate=16000)
        assert len(transcriber.transcribe([waveform] * 4)) == 4
        with pytest.raises(ProfileError, match=r"batch 5(.|\n)*batch 1\.\.4"):
            transcriber.transcribe([waveform] * 5)


# --- comparing and timing


@pytest.fixture(scope="module")
def few(demo_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [json.loads(line) for line in demo_manifest.read_text(encoding="utf-8").splitlines()[3:5]]
    for line in lines:
        line["audio_filepath"] = str(demo_manifest.parent / line["audio_filepath"])
    path = tmp_path_factory.mktemp("few") / "few.json"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_a_bundle_and_its_twin_agree(folder: Path, few: Path) -> None:
    comparison = compare_models(
        folder / "bundle", folder / "bundle-fp16", few, decoder="tdt", threads=1, on_progress=silent
    )
    assert comparison.verdict == "pass"
    assert (comparison.reference[:4], comparison.candidate[:4]) == ("FP32", "FP16")


def test_models_of_two_checkpoints_are_not_compared(tdt_bundle: Bundle, hybrid_bundle: Bundle, few: Path) -> None:
    with pytest.raises(UsageError, match="same checkpoint"):
        compare_models(tdt_bundle.path, hybrid_bundle.path, few, decoder=None, threads=1, on_progress=silent)


def test_a_decoder_that_one_side_does_not_have_is_refused(folder: Path, few: Path) -> None:
    with pytest.raises(UsageError, match="no ctc decoder"):
        compare_models(folder / "bundle", folder / "bundle-fp16", few, decoder="ctc", threads=1, on_progress=silent)


def test_bench_tells_models_of_one_precision_apart_by_their_paths(
    tdt_bundle: Bundle, hybrid_bundle: Bundle, few: Path
) -> None:
    plan = LatencyPlan(batch_sizes=(1,), runs=1, warmup=0, threads=1)
    latency = bench_models([tdt_bundle.path, hybrid_bundle.path], few, plan=plan, decoder=None, on_progress=silent)
    assert [row.candidate.split(": ")[0] for row in latency.rows] == [str(tdt_bundle.path), str(hybrid_bundle.path)]
    with pytest.raises(UsageError, match="given twice"):
        bench_models([tdt_bundle.path] * 2, few, plan=plan, decoder=None, on_progress=silent)


def test_bench_knows_the_peak_of_the_gpu_for_engines_only(folder: Path, few: Path, gpu: StandInGpu) -> None:
    judge(folder)
    plan = LatencyPlan(batch_sizes=(1,), runs=1, warmup=0, threads=1)
    latency = bench_models([folder / "bundle", folder], few, plan=plan, decoder=None, on_progress=silent)
    reasons = [row.encoder_work.peak_reason for row in latency.rows if row.encoder_work]
    assert [GPU.name in reason for reason in reasons] == [False, True]


def test_a_clip_that_cannot_be_read_is_named(tdt_bundle: Bundle, tmp_path: Path, clip: Clip) -> None:
    (tmp_path / "notes.wav").write_text("not audio")
    bad = replace(clip, path=tmp_path / "notes.wav")
    with open_transcriber(tdt_bundle.path, decoder=None, threads=1) as transcriber:
        spoken = transcribe_clips(transcriber, [clip, bad])
        assert next(spoken).text == WORDS
        with pytest.raises(AudioError, match=r"notes\.wav"):
            next(spoken)


def test_a_manifest_that_was_altered_is_not_believed(folder: Path, clip: Clip, gpu: StandInGpu) -> None:
    """A verdict that somebody wrote into the file by hand is no verdict."""
    (engine, *_) = EngineStore(folder / "engines").entries()
    forged = json.loads(json_from_manifest(engine.manifest))
    forged["manifest"]["verification"] |= {"state": "verified", "reference": "me", "gpu": GPU.name}
    (engine.path / "manifest.json").write_text(json.dumps(forged), encoding="utf-8")
    heard(folder, clip)
    assert gpu.opened == []

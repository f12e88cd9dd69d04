"""A run's measurements where a GPU runs the engines. The GPU is a stand-in; bundles, engines and clips are real."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gpu_stand_in import GPU, StandInGpu, install
from nemotrt.bench.latency import LatencyPlan
from nemotrt.bench.measurement import Subject, measure_subject
from nemotrt.bench.results import Results
from nemotrt.bench.system import silent
from nemotrt.bundle import Bundle, load_bundle
from nemotrt.engines.audio import Clip, read_clips
from nemotrt.engines.manifest import Verification
from nemotrt.engines.runner import Array
from nemotrt.engines.store import EngineStore
from nemotrt.errors import AudioError, EngineError, MachineError
from nemotrt.profiles import Profile
from nemotrt.profiles.profile import CountRange, SecondsRange
from nemotrt.stages import EngineOrder, ensure_engines, ensure_fp16

pytest.importorskip("tensorrt_rtx")

PLAN = LatencyPlan(batch_sizes=(1, 4), runs=1, warmup=0, threads=1)
SHORT_CLIPS = ("00003", "00006", "00007")


def profile(*, seconds: tuple[float, float], batch: tuple[int, int]) -> Profile:
    return Profile(
        version=1,
        name="trial",
        seconds=SecondsRange(min=seconds[0], opt=seconds[0], max=seconds[1]),
        batch=CountRange(min=batch[0], opt=batch[0], max=batch[1]),
    )


WIDE = profile(seconds=(0.3, 12), batch=(1, 4))
NARROW = profile(seconds=(1.7, 2), batch=(1, 1))


@pytest.fixture(scope="module")
def pristine(hybrid_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FP16 bundle, and two stores of engines that nobody has compared yet."""
    folder = tmp_path_factory.mktemp("pristine")
    bundle = ensure_fp16(hybrid_bundle, folder / "bundle-fp16", on_progress=silent).bundle
    for name, chosen, components in (("wide", WIDE, ()), ("narrow", NARROW, ("ctc",))):
        order = EngineOrder((chosen,), "tensorrt-rtx")
        ensure_engines(bundle, order, EngineStore(folder / name), components=components, on_progress=silent)
    return folder


@pytest.fixture
def subject(
    pristine: Path, hybrid_bundle: Bundle, demo_manifest: Path, tmp_path: Path
) -> Callable[[str, tuple[str, ...]], Subject]:
    """Makes what is measured: copies of the engines in one of the stores, and a few clips."""
    clips = {clip.name: clip for clip in read_clips(demo_manifest)}
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)

    def make(store_name: str = "wide", names: tuple[str, ...] = SHORT_CLIPS) -> Subject:
        store = EngineStore(tmp_path / store_name)
        return Subject(
            checkpoint=Path("hybrid.nemo"),
            reference=hybrid_bundle,
            candidate=load_bundle(tmp_path / "bundle-fp16"),
            engines=store.entries(),
            reused=frozenset(),
            store=store,
            clips=tuple(clips[name] for name in names),
        )

    return make


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandInGpu:
    stand_in = StandInGpu()
    install(monkeypatch, stand_in)
    return stand_in


def measured(subject: Subject) -> Results:
    return measure_subject(subject, PLAN, skipped=(), commands=(), on_progress=silent)


def states(subject: Subject) -> dict[str, str]:
    """As the manifests on disk say."""
    stored = {engine.key: engine.manifest for engine in subject.store.entries()}
    return {e.manifest.component: stored[e.key].verification.state for e in subject.engines}


def test_engines_that_agree_are_verified_in_their_manifests_and_timed_beside_the_others(
    subject, gpu: StandInGpu
) -> None:
    measurable = subject()
    results = measured(measurable)
    assert results.verdict == "pass", results.reasons
    assert states(measurable) == dict.fromkeys(("encoder", "predictor", "joint", "ctc"), "verified")
    assert {engine.state for engine in results.engines} == {"verified"}
    for engine in measurable.store.entries():
        verification = engine.manifest.verification
        assert verification.gpu == GPU.name
        assert (verification.reference or "").startswith("FP32, onnxruntime")
        assert verification.figures["min_frame_cosine"] > 0.9999
    assert not any(runner.is_open for runner in gpu.opened)
    on_gpu = [comparison for comparison in results.comparisons if GPU.name in comparison.candidate]
    assert [comparison.decoder for comparison in on_gpu] == ["rnnt", "ctc"]
    assert all(check.state == "pass" for comparison in on_gpu for check in comparison.checks)
    assert results.latency is not None
    timed = {(row.candidate, row.batch_size) for row in results.latency.rows if GPU.name in row.candidate}
    assert len(timed) == 2
    assert not any("GPU" in skipped.reason for skipped in results.skipped)


def spoiled_joint(component: str, outputs: dict[str, Array]) -> dict[str, Array]:
    """Pieces in another order: fluent nonsense, as a wrong engine may well produce."""
    if component != "joint":
        return outputs
    logits = outputs["joint_output"].copy()
    logits[..., :-1] = logits[..., -2::-1]
    return {"joint_output": logits}


def test_engines_that_disagree_are_failed_with_the_reason(subject, gpu: StandInGpu) -> None:
    gpu.spoil = spoiled_joint
    measurable = subject()
    results = measured(measurable)
    assert results.verdict == "fail"
    assert states(measurable) == {"encoder": "failed", "predictor": "failed", "joint": "failed", "ctc": "verified"}
    (joint,) = (engine for engine in results.engines if engine.component == "joint")
    assert "token ids equal on 0 of 3 clips" in joint.reason
    assert any("engine joint (fp16)" in reason for reason in results.reasons)


def test_a_later_pass_clears_an_earlier_failure(subject, gpu: StandInGpu) -> None:
    measurable = subject("narrow", ("00003",))
    (engine,) = measurable.engines
    failed = Verification(state="failed", reason="wrong", reference="another", gpu=GPU.name, checked=datetime.now(UTC))
    measured(replace(measurable, engines=(measurable.store.record_verification(engine, failed),)))
    assert states(measurable) == {"ctc": "verified"}


def test_an_engine_for_one_clip_at_a_time_is_compared_without_batches(subject, gpu: StandInGpu) -> None:
    results = measured(subject("narrow", ("00003", "00007")))
    (comparison,) = (c for c in results.comparisons if GPU.name in c.candidate)
    (rows,) = (check for check in comparison.checks if check.name == "rows")
    assert comparison.verdict == "pass"
    assert (rows.state, rows.finding) == ("not checked", "the candidate takes one clip at a time")
    assert {batch for runner in gpu.opened for batch in runner.batches} == {1}
    assert results.latency is not None
    assert {row.batch_size for row in results.latency.rows} == {1}


def test_clips_that_the_engines_do_not_take_are_left_out_by_name(subject, gpu: StandInGpu) -> None:
    results = measured(subject("narrow", ("00003", "00006", "00007", "00002")))
    assert [transcript.clip for transcript in results.transcripts] == ["00003", "00007"]
    left_out = {skipped.what: skipped.reason for skipped in results.skipped}
    assert left_out["clip 00002, 4.31 s"] == "the engines were built for 1.7 to 2 s in batches of 1 to 1"
    assert "clip 00006, 1.68 s" in left_out
    assert results.verdict == "pass"


@pytest.mark.parametrize("kind", [EngineError, MachineError])
def test_engines_that_cannot_be_loaded_here_stay_unverified_and_the_rest_is_measured(
    subject, gpu: StandInGpu, kind: type
) -> None:
    gpu.broken["ctc"] = kind("the plan was built for another GPU", found="built for 12.0, this is 8.9", fix="build")
    measurable = subject()
    results = measured(measurable)
    reason = "the plan was built for another GPU (built for 12.0, this is 8.9)"
    assert states(measurable) == {
        "encoder": "verified", "predictor": "verified", "joint": "verified", "ctc": "built, not verified",
    }  # fmt: skip
    assert ("running the ctc engines, and comparing them", reason) in [(s.what, s.reason) for s in results.skipped]
    (ctc,) = (engine for engine in results.engines if engine.component == "ctc")
    assert ctc.reason == reason
    assert results.verdict == "pass"


def test_without_a_gpu_the_engines_stay_unverified_and_the_results_say_why(subject) -> None:
    measurable = subject("narrow")
    results = measured(measurable)
    assert states(measurable) == {"ctc": "built, not verified"}
    assert len(results.transcripts) == len(SHORT_CLIPS)
    assert any(s.what == "running the engines, and comparing them" and "no GPU" in s.reason for s in results.skipped)
    assert results.verdict == "pass"


def test_clips_that_the_model_does_not_take_are_left_out(subject, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "click.wav", np.zeros(100, np.float32), 16000)
    measurable = subject("narrow")
    results = measured(replace(measurable, clips=(*measurable.clips[:1], Clip("click", tmp_path / "click.wav"))))
    assert "clip click, 0.01 s" in [skipped.what for skipped in results.skipped]
    assert [transcript.clip for transcript in results.transcripts] == ["00003"]


def test_clips_without_recorded_tokens_are_compared_and_the_gap_is_named(subject) -> None:
    measurable = subject("narrow")
    bare = tuple(replace(clip, recorded={}) for clip in measurable.clips)
    results = measured(replace(measurable, clips=bare))
    assert {s.what for s in results.skipped} >= {"rnnt tokens against NeMo", "ctc tokens against NeMo"}
    assert [comparison.decoder for comparison in results.comparisons] == ["rnnt", "ctc"]


def test_a_clip_that_is_not_audio_stops_the_measurement_by_name(subject, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("not audio")
    measurable = subject("narrow")
    with pytest.raises(AudioError, match=r"notes\.wav"):
        measured(replace(measurable, clips=(Clip("notes", tmp_path / "notes.wav"),)))

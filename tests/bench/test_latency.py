"""The bookkeeping of a measurement: what is run, in which order, on what. No test looks at a clock's result."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from nemotrt.bench.latency import LatencyPlan, measure
from nemotrt.bench.results import Latency
from nemotrt.bench.roofline import HardwarePeak, hardware_peak
from nemotrt.bench.system import System
from nemotrt.bundle import EncoderSpec
from nemotrt.errors import UsageError

PEAK = hardware_peak(None, "fp32")


@pytest.fixture
def two_systems(altered: Callable[..., System]) -> tuple[tuple[System, System], list[tuple[str, int, bool]]]:
    """Two systems whose encoder runs are written down: name, rows, whether garbage collection was on."""
    calls: list[tuple[str, int, bool]] = []

    def noting(name: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
        def note(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            calls.append((name, len(outputs["logprobs"]), gc.isenabled()))
            return outputs

        return note

    return (
        System("first", altered(noting("first")).transcriber),
        System("second", altered(noting("second")).transcriber),
    ), calls


def test_systems_take_turns_and_the_first_one_rotates(two_systems, utterances) -> None:
    systems, calls = two_systems
    plan = LatencyPlan(batch_sizes=(2,), runs=4, warmup=1, threads=1)
    measure(systems, utterances, plan=plan, peaks={"first": PEAK, "second": PEAK})
    names = [name for name, _, _ in calls]
    assert names[:2] == ["first", "second"]
    assert names[2:] == ["first", "second", "second", "first"] * 2
    assert {rows for _, rows, _ in calls} == {2}


def test_garbage_is_not_collected_while_timing_and_is_again_afterwards(two_systems, utterances) -> None:
    systems, calls = two_systems
    plan = LatencyPlan(batch_sizes=(1,), runs=2, warmup=1, threads=1)
    measure(systems, utterances, plan=plan, peaks={"first": PEAK, "second": PEAK})
    assert [collecting for _, _, collecting in calls] == [True] * 2 + [False] * 4
    assert gc.isenabled()


@pytest.fixture
def latency(reference: System, utterances) -> Latency:
    systems = [reference, System("again", reference.transcriber)]
    plan = LatencyPlan(batch_sizes=(1, 3, 8), runs=3, warmup=0, threads=1)
    known = HardwarePeak(flops_per_second=1e9, bytes_per_second=1e9, reason="made up")
    return measure(systems, utterances, plan=plan, peaks={"reference": PEAK, "again": known})


def test_every_system_is_reported_at_every_batch_size_with_all_stages(latency: Latency) -> None:
    assert [(row.candidate, row.batch_size) for row in latency.rows] == [
        (name, size) for size in (1, 3, 8) for name in ("reference", "again")
    ]
    for row in latency.rows:
        assert [stage.stage for stage in row.stages] == ["preprocessor", "encoder", "decode", "whole"]
        for stage in row.stages:
            assert 0 < stage.seconds.p5 <= stage.seconds.p50 <= stage.seconds.p95 <= stage.seconds.p99


def test_rtfx_is_audio_over_the_median_of_the_whole(latency: Latency) -> None:
    for row in latency.rows:
        assert row.rtfx == pytest.approx(row.audio_seconds / row.stage("whole").p50)


def test_only_the_baseline_has_no_ratio(latency: Latency) -> None:
    assert [row.ratio is None for row in latency.rows] == [True, False] * 3
    assert {row.ratio.baseline for row in latency.rows if row.ratio} == {"reference"}


def test_batches_are_the_clips_around_the_median_and_repeat_when_there_are_too_few(latency, utterances) -> None:
    seconds = sorted(u.waveform.seconds for u in utterances)
    by_size = {row.batch_size: row for row in latency.rows}
    assert by_size[1].audio_seconds == pytest.approx(seconds[2])
    assert by_size[1].padding == 0.0
    assert by_size[3].audio_seconds == pytest.approx(sum(seconds[1:4]))
    assert by_size[3].padding == pytest.approx(1 - sum(seconds[1:4]) / (3 * seconds[3]))
    assert by_size[8].audio_seconds == pytest.approx(sum(seconds) + sum(seconds[:3]))


def test_encoder_work_counts_padding_and_an_unknown_peak_is_null_with_the_reason(
    latency: Latency, reference: System
) -> None:
    encoder: EncoderSpec = reference.transcriber.bundle.meta.encoder
    assert encoder.layers == 1
    for row in latency.rows:
        work = row.encoder_work
        assert work.flops_per_audio_second == pytest.approx(work.flops / row.audio_seconds)
        assert work.achieved_flops_per_second == pytest.approx(work.flops / row.stage("encoder").p50)
        if row.candidate == "reference":
            assert (work.floor_seconds, work.share_of_floor) == (None, None)
            assert "not known" in work.peak_reason
        else:
            assert work.share_of_floor == pytest.approx(work.floor_seconds / row.stage("encoder").p50)
    same = {row.encoder_work.flops for row in latency.rows if row.batch_size == 3}
    assert len(same) == 1


def test_plans_and_systems_that_measure_nothing_are_refused(reference: System, utterances) -> None:
    for sizes, runs, warmup in (((), 1, 0), ((0,), 1, 0), ((1,), 0, 0), ((1,), 1, -1)):
        with pytest.raises(UsageError, match="measures nothing"):
            LatencyPlan(batch_sizes=sizes, runs=runs, warmup=warmup, threads=None)
    plan = LatencyPlan(batch_sizes=(1,), runs=1, warmup=0, threads=None)
    for systems in ([], [reference, reference]):
        with pytest.raises(UsageError, match="named apart"):
            measure(systems, utterances, plan=plan, peaks={"reference": PEAK})

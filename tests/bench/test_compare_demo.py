"""The demo checkpoints through the comparison: NeMo's record, FP16 against FP32, and that FP16 is not FP32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_ctc import AlteredRunner

from nemotrt.bench.compare import compare, compare_recorded
from nemotrt.bench.system import System
from nemotrt.bench.tolerances import tolerance_for
from nemotrt.bench.utterance import Utterance, read_utterances
from nemotrt.bundle import Bundle
from nemotrt.engines.audio import read_clips
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.transcriber import Decoder, Transcriber
from nemotrt.errors import UsageError
from nemotrt.trt.precision import cast_bundle


@pytest.fixture(scope="module")
def demo_utterances(demo_manifest: Path) -> tuple[Utterance, ...]:
    return read_utterances(read_clips(demo_manifest), sample_rate=16000)


@pytest.fixture(scope="module")
def open_system() -> Iterator[Callable[..., System]]:
    opened: list[Transcriber] = []

    def make(bundle: Bundle, decoder: Decoder) -> System:
        opened.append(Transcriber(bundle, decoder=decoder, threads=1))
        return System.named_by_precision(opened[-1])

    yield make
    for transcriber in opened:
        transcriber.close()


@pytest.fixture(scope="module")
def tdt_half(tdt_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return cast_bundle(tdt_bundle, tmp_path_factory.mktemp("half") / "tdt")


@pytest.mark.parametrize(("bundle", "decoder"), [("tdt", "tdt"), ("hybrid", "rnnt"), ("hybrid", "ctc")])
def test_token_ids_equal_what_nemo_recorded_on_every_clip(
    bundle: str,
    decoder: Decoder,
    demo_utterances: tuple[Utterance, ...],
    open_system: Callable[..., System],
    request: pytest.FixtureRequest,
) -> None:
    system = open_system(request.getfixturevalue(f"{bundle}_bundle"), decoder)
    result = compare_recorded(system, demo_utterances)
    assert result.verdict == "pass", result.reasons
    assert len(result.clips) == len(demo_utterances)


def test_half_precision_passes_its_own_limits_and_fails_those_of_full_precision(
    tdt_bundle: Bundle,
    tdt_half: Bundle,
    demo_utterances: tuple[Utterance, ...],
    open_system: Callable[..., System],
    figure: Callable[[str], None],
) -> None:
    full, half = open_system(tdt_bundle, "tdt"), open_system(tdt_half, "tdt")
    limits = {p: tolerance_for("fastconformer-tdt", p, decoder="tdt") for p in ("fp16", "fp32")}
    within = compare(full, half, demo_utterances, tolerance=limits["fp16"])
    assert within.verdict == "pass", within.reasons
    beyond = compare(full, half, demo_utterances, tolerance=limits["fp32"])
    assert {check.name for check in beyond.checks if check.state == "fail"} >= {"frames"}
    lowest = min(row.frames.min_cosine for row in within.clips)
    figure(f"FP16 demo TDT against FP32: lowest frame cosine {lowest:.7f}")


def test_a_predictor_that_forgets_its_state_fails_tokens_while_the_frames_agree(
    tdt_bundle: Bundle, demo_utterances: tuple[Utterance, ...], open_system: Callable[..., System]
) -> None:
    def forget(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return outputs | {"g": np.zeros_like(outputs["g"])}

    inner = OnnxRuntimeRunner(tdt_bundle.graph_path("predictor"), spec=tdt_bundle.component("predictor"), threads=1)
    forgetful = Transcriber(tdt_bundle, runners={"predictor": AlteredRunner(inner, forget)}, threads=1)
    result = compare(
        open_system(tdt_bundle, "tdt"),
        System("forgetful", forgetful),
        demo_utterances,
        tolerance=tolerance_for("fastconformer-tdt", "fp32", decoder="tdt"),
    )
    assert {check.name for check in result.checks if check.state == "fail"} >= {"tokens", "text"}
    assert {c.name for c in result.checks if c.state == "pass"} >= {"lengths", "finite", "frames"}
    assert result.candidate_wer.errors > result.reference_wer.errors


def test_two_decoders_are_not_compared_with_each_other(
    hybrid_bundle: Bundle, demo_utterances: tuple[Utterance, ...], open_system: Callable[..., System]
) -> None:
    with pytest.raises(UsageError, match="decode differently"):
        compare(
            open_system(hybrid_bundle, "rnnt"),
            open_system(hybrid_bundle, "ctc"),
            demo_utterances,
            tolerance=tolerance_for("fastconformer-hybrid-rnnt-ctc", "fp32", decoder="ctc"),
        )

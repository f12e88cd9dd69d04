"""The demo checkpoints in eight bits. Oracle: their float32 bundles in ONNX Runtime, on the demo clips."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from nemotrt.bench.compare import compare
from nemotrt.bench.error_places import error_places
from nemotrt.bench.results import Comparison
from nemotrt.bench.system import System
from nemotrt.bench.tolerances import tolerance_for
from nemotrt.bench.utterance import Utterance, read_utterances
from nemotrt.bundle import Bundle, Decoder, load_bundle, verify_digests
from nemotrt.engines.audio import Clip, Waveform
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.streaming_transcriber import StreamingTranscriber
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import GraphError
from nemotrt.profiles import AxisRange
from nemotrt.quantize import calibrate
from nemotrt.trt.build import BuildRequest, build_engine
from nemotrt.trt.quantization.amplitudes import Amplitude
from nemotrt.trt.quantization.audit import audit_dtypes
from nemotrt.trt.quantization.quantized_bundle import Calibrated, Products, QuantizationOrder, quantize_bundle
from nemotrt.trt.quantization.selection import select_from_bundle
from nemotrt.verbs import stream_clip

Quantize = Callable[..., Bundle]
Figure = Callable[[str], None]
ORDERS = {
    "int8": {},
    "int8, largest value": {"calibration": "max"},
    "int8 weights": {"weight_only": True},
    "fp8": {"to": "fp8"},
    "fp8 weights": {"to": "fp8", "weight_only": True},
}


@pytest.fixture(scope="module")
def utterances(clips: tuple[Clip, ...]) -> tuple[Utterance, ...]:
    return read_utterances(clips, sample_rate=16000)


@pytest.fixture(scope="module")
def joined(utterances: tuple[Utterance, ...]) -> tuple[Utterance, ...]:
    """Clips of 10 to 46 s. The demo models were trained on single clips and mishear these: numbers, not words."""
    groups = [utterances[start : start + count] for start, count in ((0, 4), (4, 4), (8, 8), (0, 16))]
    samples = [np.concatenate([one.waveform.samples for one in group]) for group in groups]
    return tuple(
        Utterance(Clip(name=f"joined{index}", path=group[0].clip.path), Waveform(array, 16000))
        for index, (group, array) in enumerate(zip(groups, samples, strict=True))
    )


def compared(wanted: Bundle, found: Bundle, utterances: tuple[Utterance, ...], decoder: Decoder) -> Comparison:
    limits = tolerance_for(wanted.meta.family, found.meta.precision, decoder=decoder)
    with (
        Transcriber(wanted, decoder=decoder, threads=1) as reference,
        Transcriber(found, decoder=decoder, threads=1) as candidate,
    ):
        return compare(System("a", reference), System("b", candidate), utterances, tolerance=limits)


def lowest_cosine(comparison: Comparison) -> float:
    return min(row.frames.min_cosine for row in comparison.clips)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "decoder"), [("tdt", "tdt"), ("hybrid", "rnnt"), ("hybrid", "ctc")])
def test_eight_bits_hear_the_same_words(
    name: str,
    decoder: Decoder,
    order: str,
    quantized: Quantize,
    utterances: tuple[Utterance, ...],
    figure: Figure,
    request: pytest.FixtureRequest,
) -> None:
    source = request.getfixturevalue(f"{name}_bundle")
    comparison = compared(source, quantized(source, **ORDERS[order]), utterances, decoder)
    places = {
        title: ", ".join(f"{at} {count.errors} of {count.length}" for at, count in counts.items())
        for title, counts in error_places(comparison).items()
    }
    figure(f"{order}, demo {name}, {decoder}: lowest frame cosine {lowest_cosine(comparison):.4f}; {places}")
    if order == "int8, largest value":
        return  # shown beside the others; the range that is the default is the one that is judged
    assert comparison.verdict == "pass", comparison.reasons


@pytest.mark.parametrize("order", ["int8", "fp8"])
def test_clips_joined_to_long_ones_are_told(
    order: str, tdt_bundle: Bundle, quantized: Quantize, joined: tuple[Utterance, ...], figure: Figure
) -> None:
    comparison = compared(tdt_bundle, quantized(tdt_bundle, **ORDERS[order]), joined, "tdt")
    figure(f"{order}, demo tdt, joined clips: {error_places(comparison)['tokens_by_clip_length']}")
    assert lowest_cosine(comparison) > 0.99  # a minute of audio drifts no further than a second


def test_the_streaming_encoder_hears_the_same_in_int8(
    streaming_bundle: Bundle, quantized: Quantize, clips: tuple[Clip, ...]
) -> None:
    made = quantized(streaming_bundle)
    assert audit_dtypes(made.graph_path("encoder_streaming")).products["int8"] == 36
    heard = []
    for bundle in (streaming_bundle, made):
        with StreamingTranscriber(bundle, threads=1) as transcriber:
            heard.append(
                [stream_clip(transcriber, c, chunk_seconds=None, on_partial=lambda _: None).heard.text for c in clips]
            )
    assert sum(a == b for a, b in zip(*heard, strict=True)) >= len(clips) - 1


@pytest.mark.parametrize(("to", "dtype"), [("int8", "int8"), ("fp8", "float8_e4m3fn")])
def test_the_chosen_weights_are_stored_in_eight_bits(
    to: str, dtype: str, tdt_bundle: Bundle, quantized: Quantize, figure: Figure
) -> None:
    before, after = (audit_dtypes(b.graph_path("encoder")) for b in (tdt_bundle, quantized(tdt_bundle, to=to)))
    assert (before.products, after.products) == ({"float32": 34}, {dtype: 33, "float32": 1})
    assert after.quantized_activations == 33
    saved = sum(before.weight_bytes.values()) - sum(after.weight_bytes.values())
    assert saved == pytest.approx(3 * after.weight_bytes[dtype], rel=0.03)  # scales take the rest
    position_table = 4 * 2 * tdt_bundle.meta.encoder.max_encoder_frames * tdt_bundle.meta.encoder.d_model
    without = after.weight_bytes[dtype] / (sum(after.weight_bytes.values()) - position_table)
    figure(
        f"{to} demo TDT encoder: {after.weight_bytes}, {after.share(dtype):.1%} of the weights' bytes in {dtype}, "
        f"{without:.1%} without the position table"
    )


def test_float8_runs_with_the_optimizations_of_onnx_runtime_off_and_is_wrong_with_them(
    hybrid_bundle: Bundle, quantized: Quantize
) -> None:
    made = quantized(hybrid_bundle, to="fp8")
    rng = np.random.default_rng(0)
    feeds = {
        "encoder_output": rng.standard_normal((1, made.meta.encoder.d_model, 1), np.float32),
        "predictor_output": 0.3 * rng.standard_normal((1, made.meta.transducer.predictor_hidden, 1), np.float32),
    }

    def logits(bundle: Bundle, *, optimize: bool) -> np.ndarray:
        runner = OnnxRuntimeRunner(bundle.graph_path("joint"), threads=1, optimize=optimize)
        return runner.run(feeds)["joint_output"]

    wanted = logits(hybrid_bundle, optimize=True)
    assert np.linalg.norm(logits(made, optimize=False) - wanted) < 0.05 * np.linalg.norm(wanted)
    # When this passes with them on, OnnxRuntimeRunner no longer needs the option.
    with pytest.raises(GraphError, match="cannot load the graph"):
        logits(made, optimize=True)


def test_inputs_outputs_and_all_other_components_are_those_of_the_float32_bundle(
    tdt_bundle: Bundle, quantized: Quantize, tmp_path: Path
) -> None:
    made = quantized(tdt_bundle)
    for name in made.meta.components:
        a, b = (onnx.load(x.graph_path(name), load_external_data=False).graph for x in (tdt_bundle, made))
        assert [v.SerializeToString() for v in a.input] == [v.SerializeToString() for v in b.input]
        assert [v.SerializeToString() for v in a.output] == [v.SerializeToString() for v in b.output]
    for name, record in tdt_bundle.meta.files.items():
        if name.startswith(("preprocessor", "predictor", "vocab", "tokens", "tokenizer")):
            assert made.meta.files[name] == record
    verify_digests(load_bundle(made.path))


def test_the_metadata_says_from_what_and_on_which_audio(
    tdt_bundle: Bundle, quantized: Quantize, clips: tuple[Clip, ...]
) -> None:
    meta = load_bundle(quantized(tdt_bundle).path).meta
    assert (meta.precision, meta.cast_from) == ("int8", tdt_bundle.meta.fingerprint())
    assert meta.quantized is not None
    assert (meta.quantized.clips, meta.quantized.calibration) == (len(clips), "percentile")
    weights_only = quantized(tdt_bundle, weight_only=True).meta.quantized
    assert weights_only is not None
    assert (weights_only.weight_only, weights_only.clips, weights_only.audio_sha256) == (True, 0, None)
    assert any("float8" in note for note in quantized(tdt_bundle, to="fp8").meta.notes)


def recalibrated(
    source: Bundle,
    folder: Path,
    calibration: Calibrated,
    *,
    factor: float = 1.0,
    order: QuantizationOrder | None = None,
) -> Bundle:
    """The twin with every amplitude ``factor`` times what it was."""

    def scaled(_: Products) -> Calibrated:
        amplitudes = {
            component: {name: _amplitude(factor * seen.bound("max")) for name, seen in by_name.items()}
            for component, by_name in calibration.amplitudes.items()
        }
        return dataclasses.replace(calibration, amplitudes=amplitudes)

    return quantize_bundle(source, folder, order or QuantizationOrder(), calibrate=scaled)


def _amplitude(bound: float) -> Amplitude:
    amplitude = Amplitude()
    amplitude.add(np.asarray([bound], np.float32))
    return amplitude


@pytest.fixture(scope="module")
def tdt_calibration(tdt_bundle: Bundle, clips: tuple[Clip, ...], products: Products) -> Calibrated:
    return calibrate(tdt_bundle, products, clips, threads=1, on_progress=lambda *_: None)


@pytest.fixture(scope="module")
def products(tdt_bundle: Bundle) -> Products:
    return select_from_bundle(tdt_bundle, ())


@pytest.mark.parametrize("factor", [0.1, 50.0])
def test_wrong_scales_change_what_is_heard(
    factor: float,
    tdt_bundle: Bundle,
    tdt_calibration: Calibrated,
    utterances: tuple[Utterance, ...],
    tmp_path: Path,
) -> None:
    right = compared(tdt_bundle, recalibrated(tdt_bundle, tmp_path / "right", tdt_calibration), utterances, "tdt")
    assert right.verdict == "pass"
    bundle = recalibrated(tdt_bundle, tmp_path / "wrong", tdt_calibration, factor=factor)
    wrong = compared(tdt_bundle, bundle, utterances, "tdt")
    assert {check.name for check in wrong.checks if check.state == "fail"} >= {"tokens", "text"}


def test_calibrated_on_noise_frames_are_further_off(
    tdt_bundle: Bundle,
    quantized: Quantize,
    utterances: tuple[Utterance, ...],
    noise: Path,
    products: Products,
    tmp_path: Path,
    figure: Figure,
) -> None:
    # The demo model hears words in white noise: a model that does not refuses it by itself, see test_quantize.
    seen = calibrate(tdt_bundle, products, [Clip(name="noise", path=noise)], threads=1, on_progress=lambda *_: None)
    made = quantize_bundle(tdt_bundle, tmp_path / "noise", QuantizationOrder(), calibrate=lambda _: seen)
    on_noise, on_speech = (compared(tdt_bundle, b, utterances, "tdt") for b in (made, quantized(tdt_bundle)))
    distances = [1 - lowest_cosine(one) for one in (on_speech, on_noise)]
    figure(f"int8 demo TDT, 1 - lowest frame cosine: calibrated on speech {distances[0]:.4f}, noise {distances[1]:.4f}")
    assert distances[1] > 2 * distances[0]


def test_an_activation_that_was_not_calibrated_is_refused_and_nothing_stays(
    tdt_bundle: Bundle, tdt_calibration: Calibrated, tmp_path: Path
) -> None:
    without: Mapping[str, Mapping[str, Amplitude]] = {"encoder": tdt_calibration.amplitudes["encoder"]}
    seen = dataclasses.replace(tdt_calibration, amplitudes=without)
    with pytest.raises(GraphError, match="no amplitude") as caught:
        quantize_bundle(tdt_bundle, tmp_path / "out", QuantizationOrder(), calibrate=lambda _: seen)
    assert "joint.onnx" in str(caught.value.where)
    assert list(tmp_path.iterdir()) == []


def test_a_kept_scope_stays_float32_and_says_so(tdt_bundle: Bundle, quantized: Quantize) -> None:
    made = quantized(tdt_bundle, keep=("joint", "encoder:layers.0"))
    assert made.meta.quantized is not None
    assert made.meta.quantized.kept_float == ("joint", "encoder:layers.0")
    assert audit_dtypes(made.graph_path("joint")).products == {"float32": 3}
    assert audit_dtypes(made.graph_path("encoder")).products == {"int8": 25, "float32": 9}
    assert made.meta.files["joint.onnx"] == tdt_bundle.meta.files["joint.onnx"]


def test_latency_of_int8_on_a_cpu_is_told(
    tdt_bundle: Bundle, quantized: Quantize, utterances: tuple[Utterance, ...], figure: Figure
) -> None:
    bundles = {
        "fp32": tdt_bundle,
        "int8": quantized(tdt_bundle),
        "int8 weights": quantized(tdt_bundle, weight_only=True),
    }
    runners = {
        name: OnnxRuntimeRunner(bundle.graph_path("encoder"), spec=bundle.component("encoder"), threads=1)
        for name, bundle in bundles.items()
    }
    with Transcriber(tdt_bundle, threads=1) as transcriber:
        signal, length = transcriber.features([max((u.waveform for u in utterances), key=lambda w: w.seconds)])
    ratios: dict[str, list[float]] = {name: [] for name in runners if name != "fp32"}
    for _ in range(12):
        seconds = {}
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.run({"audio_signal": signal, "length": length})
            seconds[name] = time.perf_counter() - start
        for name, values in ratios.items():
            values.append(seconds[name] / seconds["fp32"])
    for runner in runners.values():
        runner.close()
    told = ", ".join(f"{name} {statistics.median(values[2:]):.2f}" for name, values in ratios.items())
    figure(f"demo TDT encoder with masks, ONNX Runtime CPU, one thread, interleaved: seconds over float32: {told}")
    assert all(value > 0 for values in ratios.values() for value in values)


_FRAMES = AxisRange(1, 300, 1000)
_RANGES = {
    "batch": AxisRange(1, 1, 4),
    **dict.fromkeys(("frames", "encoder_frames", "joint_frames", "tokens"), _FRAMES),
}


@pytest.mark.parametrize("component", ["encoder", "joint"])
@pytest.mark.parametrize("order", ["int8", "int8 weights", "fp8", "fp8 weights"])
def test_tensorrt_rtx_builds_it(
    order: str, component: str, tdt_bundle: Bundle, quantized: Quantize, figure: Figure
) -> None:
    pytest.importorskip("tensorrt_rtx")
    made = quantized(tdt_bundle, **ORDERS[order])
    plans = [
        build_engine(
            BuildRequest(b.graph_path(component), b.component(component), (_RANGES,), "tensorrt-rtx", ("8.9",))
        )
        for b in (tdt_bundle, made)
    ]
    figure(
        f"TensorRT-RTX {plans[0].runtime_version}, 8.9, demo TDT {component}, {order}: {plans[1].layers} layers, "
        f"{plans[1].size_bytes:,} bytes; float32 {plans[0].layers} layers, {plans[0].size_bytes:,} bytes"
    )
    if component == "encoder":  # the joint's weights are less than its code
        assert plans[1].size_bytes < plans[0].size_bytes


def test_tensorrt_rtx_names_the_type_that_older_gpus_lack(tdt_bundle: Bundle, quantized: Quantize) -> None:
    pytest.importorskip("tensorrt_rtx")
    made = quantized(tdt_bundle, to="fp8")
    request = BuildRequest(made.graph_path("encoder"), made.component("encoder"), (_RANGES,), "tensorrt-rtx", ("8.6",))
    with pytest.raises(GraphError, match="fp8_e4m3") as caught:
        build_engine(request)
    assert "compute capability" in str(caught.value.fix)

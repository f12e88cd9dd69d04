"""Every component of both demo checkpoints in half precision. Oracles: the float32 graphs in ONNX Runtime; the lengths
of the contract, which ``tests/export/test_lengths.py`` holds against NeMo.

ONNX Runtime's CPU runs float16 graphs mostly in float32 and bfloat16 graphs not at all, so both are also asked of their
rounded twins (``trt.rounded_graph``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from nemotrt.bench.compare import compare
from nemotrt.bench.precision_search import open_rounded
from nemotrt.bench.system import System
from nemotrt.bench.tolerances import tolerance_for
from nemotrt.bench.utterance import read_utterances
from nemotrt.bundle import Bundle, CacheLayout, Decoder
from nemotrt.engines.audio import Waveform, read_clips, read_waveform
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Runner
from nemotrt.engines.streaming import StreamingEncoder
from nemotrt.engines.transcriber import Transcriber, components_of
from nemotrt.errors import MachineError
from nemotrt.export import ExportOptions, export_checkpoint
from nemotrt.profiles import axis_ranges, load_profile
from nemotrt.trt.build import BuildRequest, build_engine
from nemotrt.trt.precision import CastPlan, HalfPrecision, cast_bundle, typed_component

RELATIVE_ERROR = {"fp16": 2e-3, "bf16": 1.6e-2}
"""24 roundings of float16 stay below the first; bfloat16 has 3 bits fewer."""

OF_TRANSDUCERS = ("encoder", "predictor", "joint", "decoder_joint", "rnnt_step", "greedy_step")
COMPONENTS = [
    *(("tdt", name) for name in OF_TRANSDUCERS),
    *(("hybrid", name) for name in (*OF_TRANSDUCERS, "ctc", "ctc_head", "encoder_streaming")),
]
HOW = [("fp16", "as it is"), ("fp16", "rounded"), ("bf16", "rounded")]
CHUNKS = 100
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def bundles(
    tdt_checkpoint: Path, hybrid_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    """Both models with all of their components in every precision, by name: ``tdt``, ``tdt fp16``, ..."""
    folder, options = tmp_path_factory.mktemp("precision"), ExportOptions(components=("all",))
    made = {}
    for name, checkpoint in (("tdt", tdt_checkpoint), ("hybrid", hybrid_checkpoint)):
        made[name] = export_checkpoint(checkpoint, folder / name, options=options)
        for to in get_args(HalfPrecision):
            made[f"{name} {to}"] = cast_bundle(made[name], folder / f"{name}-{to}", CastPlan(to))
    return made


def runner_of(bundle: Bundle, name: str) -> Runner:
    return OnnxRuntimeRunner(bundle.graph_path(name), spec=bundle.component(name), threads=1)


def half_runner(
    bundles: dict[str, Bundle], model: str, name: str, how: tuple[HalfPrecision, str], folder: Path
) -> Runner:
    to, form = how
    if form == "as it is":
        return runner_of(bundles[f"{model} {to}"], name)
    typed, _ = typed_component(bundles[model], name, CastPlan(to))
    return open_rounded(typed, bundles[model].component(name), folder)


def ragged_feeds(bundle: Bundle, name: str) -> Arrays:
    """Four rows of random values: a full one, a half one, one of a single frame, and one of none."""
    rng = np.random.default_rng(0)
    frames = {"batch": 4, "frames": 301, "encoder_frames": 38, "joint_frames": 3, "tokens": 2}
    feeds: Arrays = {}
    for spec in bundle.component(name).inputs:
        shape = [frames[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        if spec.dtype == "float32":
            feeds[spec.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feeds[spec.name] = rng.integers(0, 5, shape).astype(spec.dtype)
    for lengths, of in (("length", "audio_signal"), ("encoded_lengths", "encoder_output")):
        if lengths in feeds:
            longest = feeds[of].shape[2]
            feeds[lengths] = np.array([longest, longest // 2, 1, 0])
    return feeds


def relative_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("how", HOW, ids=" ".join)
@pytest.mark.parametrize(("model", "name"), COMPONENTS)
def test_every_component_agrees_with_float32_and_padded_rows_stay_finite(
    bundles: dict[str, Bundle], tmp_path: Path, model: str, name: str, how: tuple[HalfPrecision, str]
) -> None:
    feeds = ragged_feeds(bundles[model], name)
    wanted = runner_of(bundles[model], name).run(feeds)
    found = half_runner(bundles, model, name, how, tmp_path).run(feeds)
    for output, value in wanted.items():
        if value.dtype == np.float32:
            assert found[output].dtype == np.float32
            assert np.isfinite(found[output]).all(), output
            assert relative_error(found[output], value) < RELATIVE_ERROR[how[0]], output
        else:
            assert (found[output] == value).all(), output


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("model", "name"), [("tdt", "encoder"), ("hybrid", "encoder"), ("hybrid", "ctc")])
def test_padded_rows_stay_finite_when_every_operator_rounds(
    bundles: dict[str, Bundle], figure: Callable[[str], None], model: str, name: str, precision: str
) -> None:
    bundle = bundles[f"{model} {precision}"]
    feeds = {key: value[..., :97] for key, value in ragged_feeds(bundle, name).items()}
    feeds["length"] = np.array([97, 40, 1, 0])
    wanted = list(runner_of(bundles[model], name).run(feeds).values())
    with np.errstate(over="ignore"):
        found, lengths = ReferenceEvaluator(str(bundle.graph_path(name))).run(None, feeds)
    error = relative_error(found, wanted[0])
    figure(f"{precision} graph of the demo {model} {name}, reference evaluator: relative L2 {error:.1e}")
    assert np.isfinite(found).all()
    assert lengths.tolist() == wanted[1].tolist()
    assert 0 < error < RELATIVE_ERROR[precision]  # type: ignore[index]  # pytest passes plain text


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("model", "name"), COMPONENTS)
def test_every_component_is_valid_and_builds_in_tensorrt(
    bundles: dict[str, Bundle], model: str, name: str, precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = bundles[f"{model} {precision}"]
    onnx.checker.check_model(str(bundle.graph_path(name)), full_check=True)
    ranges = {str(axis): limits for axis, limits in axis_ranges(load_profile("demo"), bundle.meta.geometry).items()}
    request = BuildRequest(bundle.graph_path(name), bundle.component(name), (ranges,), "tensorrt-rtx")
    assert build_engine(request).size_bytes > 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("model", "name"), [("tdt", "encoder"), ("hybrid", "encoder"), ("hybrid", "ctc")])
def test_lengths_are_exact_for_every_number_of_frames_up_to_the_longest(
    bundles: dict[str, Bundle], tmp_path: Path, model: str, name: str, precision: str
) -> None:
    bundle = bundles[f"{model} {precision}"]
    spec = bundle.meta.encoder
    whole = onnx.load(str(bundle.graph_path(name)), load_external_data=False)
    part = onnx.utils.Extractor(whole).extract_model(["audio_signal", "length"], ["encoded_lengths"])
    onnx.save(part, str(tmp_path / "lengths.onnx"))
    lengths = ort.InferenceSession(str(tmp_path / "lengths.onnx"), providers=["CPUExecutionProvider"])
    signal = np.zeros((1, spec.features, spec.max_feature_frames), np.float32)
    for rows in np.array_split(np.arange(1, spec.max_feature_frames + 1), 40):
        found = lengths.run(None, {"audio_signal": signal, "length": rows})[0]  # of the signal only its shape is seen
        assert found.tolist() == [spec.encoder_frames_from_feature_frames(int(frames)) for frames in rows]


@pytest.mark.parametrize("how", HOW, ids=" ".join)
@pytest.mark.parametrize(("model", "decoder"), [("tdt", "tdt"), ("hybrid", "rnnt"), ("hybrid", "ctc")])
def test_the_demo_clips_pass_the_gate_with_the_tokens_of_float32(
    bundles: dict[str, Bundle],
    demo_manifest: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
    model: str,
    decoder: Decoder,
    how: tuple[HalfPrecision, str],
) -> None:
    bundle = bundles[model]
    runners = {name: half_runner(bundles, model, name, how, tmp_path) for name in components_of(decoder)[1:]}
    utterances = read_utterances(read_clips(demo_manifest), sample_rate=16000)
    with (
        Transcriber(bundle, decoder=decoder, threads=1) as reference,
        Transcriber(bundle, decoder=decoder, runners=runners, threads=1) as candidate,
    ):
        judged = compare(
            System("float32", reference),
            System("half", candidate),
            utterances,
            tolerance=tolerance_for(bundle.meta.family, how[0], decoder=decoder),
        )
    frames = next(check for check in judged.checks if check.name == "frames")
    figure(f"{' '.join(how)}, demo {model} {decoder}: {frames.finding}")
    assert judged.verdict == "pass", judged.reasons
    assert not any(row.tokens.errors for row in judged.clips)


def stepped(bundle: Bundle, encoded: NDArray[Any], lengths: NDArray[Any], runner: Runner) -> list[tuple[int, ...]]:
    """The tokens of every call of ``greedy_step`` until all rows are at their ends."""
    transducer, rows = bundle.meta.transducer, len(lengths)
    assert transducer is not None
    state: Arrays = {name: np.zeros(rows, np.int64) for name in ("frame", "symbols")}
    state["y"] = np.full(rows, bundle.meta.blank_id)
    for name in ("h", "c"):
        state[name] = np.zeros((transducer.predictor_layers, rows, transducer.predictor_hidden), np.float32)
    tokens = []
    while (state["frame"] < lengths).any():
        outputs = runner.run({"encoder_output": encoded, "encoded_lengths": lengths, **state})
        tokens.append(tuple(outputs["token"].tolist()))
        state = {name: outputs[f"{name}_out"] for name in state}
    return tokens


@pytest.mark.parametrize("how", HOW, ids=" ".join)
@pytest.mark.parametrize("model", ["tdt", "hybrid"])
def test_greedy_steps_give_the_tokens_of_float32_on_the_demo_clips(
    bundles: dict[str, Bundle], demo_manifest: Path, tmp_path: Path, model: str, how: tuple[HalfPrecision, str]
) -> None:
    waveforms = [read_waveform(clip.path, sample_rate=16000) for clip in read_clips(demo_manifest)]
    with Transcriber(bundles[model], threads=1) as transcriber:
        encoded, lengths = transcriber.encode(*transcriber.features(waveforms))
    wanted = stepped(bundles[model], encoded, lengths, runner_of(bundles[model], "greedy_step"))
    found = stepped(bundles[model], encoded, lengths, half_runner(bundles, model, "greedy_step", how, tmp_path))
    assert found == wanted
    assert len(found) > 20


def streamed(bundle: Bundle, runner: Runner, features: NDArray[Any]) -> NDArray[np.float32]:
    stream = StreamingEncoder(bundle, runner)
    return np.concatenate([stream.push(features), stream.finish()], axis=2)


@pytest.mark.parametrize("how", HOW, ids=" ".join)
@pytest.mark.parametrize("cache", get_args(CacheLayout))
def test_a_hundred_chunks_do_not_drift_from_float32(
    hybrid_checkpoint: Path,
    demo_manifest: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
    cache: CacheLayout,
    how: tuple[HalfPrecision, str],
) -> None:
    """What half precision makes of the caches goes back into it, chunk after chunk."""
    components = ("preprocessor", "encoder", "predictor", "joint", "encoder_streaming")
    bundle = export_checkpoint(
        hybrid_checkpoint, tmp_path / "m", options=ExportOptions(components=components, cache=cache)
    )
    bundles = {"m": bundle, f"m {how[0]}": cast_bundle(bundle, tmp_path / "half", CastPlan(how[0]))}
    assert bundle.meta.streaming is not None
    speech = np.concatenate([read_waveform(c.path, sample_rate=16000).samples for c in read_clips(demo_manifest)])
    samples = CHUNKS * bundle.meta.streaming.chunk_feature_frames * 160
    with Transcriber(bundle, threads=1) as offline:
        features, _ = offline.features([Waveform(np.resize(speech, samples), 16000)])
    wanted = streamed(bundle, runner_of(bundle, "encoder_streaming"), features)
    found = streamed(bundle, half_runner(bundles, "m", "encoder_streaming", how, tmp_path), features)
    tenths = zip(np.array_split(found, 10, axis=2), np.array_split(wanted, 10, axis=2), strict=True)
    errors = [relative_error(a, b) for a, b in tenths]
    figure(
        f"{' '.join(how)}, {CHUNKS} streamed chunks, {cache} cache: relative L2 {errors[0]:.1e} in the first ten, "
        f"{errors[-1]:.1e} in the last ten, largest difference {np.abs(found - wanted).max():.1e}"
    )
    assert max(errors) < RELATIVE_ERROR[how[0]]
    assert errors[-1] < 2 * errors[0]


def test_variants_that_share_a_float32_data_file_are_left_out(bundles: dict[str, Bundle]) -> None:
    left_out = {"encoder_nomask", "ctc_nomask"}
    for to in get_args(HalfPrecision):
        assert bundles["hybrid"].meta.components.keys() - bundles[f"hybrid {to}"].meta.components.keys() == left_out


def test_a_bfloat16_bundle_says_that_it_needs_a_gpu(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["tdt bf16"]
    assert bundle.meta.precision == "bf16"
    assert any("needs a GPU" in note for note in bundle.meta.notes)
    with pytest.raises(MachineError, match=r"bfloat16 on a CPU(.|\n)*nemotrt build"):
        Transcriber(bundle)

"""Engines that are built, executed and compared with ONNX Runtime: ``pytest -m gpu`` on a GPU host.

Every test runs once for each TensorRT library that is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from engine_samples import sample_build

from nemotrt.bundle import Bundle, ComponentName, ComponentSpec, TensorSpec
from nemotrt.engines.audio import Waveform, read_clips, read_waveform
from nemotrt.engines.cuda_memory import call
from nemotrt.engines.manifest import EngineBuild, identity_from_bundle
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.runner import Array, Arrays, Runner
from nemotrt.engines.store import EngineStore, StoredEngine
from nemotrt.engines.tensorrt_runner import TensorRTRunner
from nemotrt.engines.transcriber import Decoder, Transcriber, components_of
from nemotrt.errors import EngineError, ProfileError
from nemotrt.profiles import AxisRange, axis_ranges, load_profile
from nemotrt.tensorrt_api import CURRENT_GPU, RuntimeName, available_runtimes, can_run, load_api
from nemotrt.trt.build import BuildRequest, BuildResult, build_engine
from nemotrt.trt.precision import cast_bundle

GPU = can_run()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (GPU and available_runtimes()), reason=f"no GPU with TensorRT: {GPU.reason}"),
]

Ranges = Mapping[str, AxisRange]
Open = Callable[..., Runner]

# Both sides compute in FP32 without TF32 but sum in another order, through up to 20 normalized layers: 1e-3 of the
# largest value is ten times what that order amounts to, and a hundredth of what one wrong mask or layer does.
FP32_RELATIVE = 1e-3
# Half precision keeps 11 bits; FP16 graphs on ONNX Runtime reach 0.999998 (LayerNorm and softmax in FP32).
FP16_MIN_COSINE = 0.999

SHORT: Ranges = {"batch": AxisRange(1, 2, 4), "frames": AxisRange(16, 150, 300)}
LONG: Ranges = {"batch": AxisRange(1, 1, 2), "frames": AxisRange(250, 600, 1000)}
ONE_STEP: Ranges = {
    "batch": AxisRange(1, 2, 4),
    "tokens": AxisRange(1, 1, 1),
    "joint_frames": AxisRange(1, 1, 1),
}

ENCODERS = [
    ("tdt_bundle", "encoder"),
    ("hybrid_bundle", "encoder"),
    ("hybrid_bundle", "ctc"),
]
STEPS = [(bundle, name) for bundle in ("tdt_bundle", "hybrid_bundle") for name in ("predictor", "joint")]
DECODERS: list[tuple[str, Decoder]] = [
    ("tdt_bundle", "tdt"),
    ("hybrid_bundle", "rnnt"),
    ("hybrid_bundle", "ctc"),
]
SHAPES = [(1, 16), (1, 137), (2, 250), (3, 299), (4, 300)]


@pytest.fixture(params=available_runtimes() or ["none installed"])
def runtime(request: pytest.FixtureRequest) -> RuntimeName:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> EngineStore:
    return EngineStore(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def open_engine(store: EngineStore, runtime: RuntimeName) -> Iterator[Open]:
    """Builds the engine of a bundle's component, unless an earlier test did, and opens it."""
    opened: list[Runner] = []

    def open_component(bundle: Bundle, component: ComponentName, *ranges: Ranges) -> Runner:
        opened.append(TensorRTRunner.open(engine_of(store, bundle, component, ranges, runtime)))
        return opened[-1]

    yield open_component
    for runner in opened:
        runner.close()


def test_a_small_graph_computes_what_onnx_runtime_computes(
    store: EngineStore, runtime: RuntimeName, tmp_path: Path
) -> None:
    engine, graph = small_engine(store, runtime, tmp_path)
    oracle = OnnxRuntimeRunner(graph)
    runner = TensorRTRunner.open(engine)
    for rows, frames in [(1, 16), (3, 77), (4, 300), (2, 16)]:
        feeds = {"audio": noise(rows, 8, frames), "length": np.arange(rows, dtype=np.int64) + 5}
        expected, found = oracle.run(feeds), runner.run(feeds)
        assert found["shifted"].dtype == np.int64
        np.testing.assert_array_equal(found["shifted"], expected["shifted"])
        np.testing.assert_allclose(found["mixed"], expected["mixed"], rtol=0, atol=1e-5)
    runner.close()
    runner.close()


def test_the_engines_interface_is_that_of_its_manifest(
    store: EngineStore, runtime: RuntimeName, tmp_path: Path
) -> None:
    engine, _ = small_engine(store, runtime, tmp_path)
    wider = ({**SHORT, "frames": AxisRange(16, 150, 301)},)
    lying = engine.manifest.model_copy(update={"ranges": wider})
    with pytest.raises(EngineError, match="another range"):
        TensorRTRunner(store.load_plan(engine), lying, api=load_api(runtime))


@pytest.mark.parametrize(("bundle_name", "component"), ENCODERS)
def test_encoders_agree_with_onnx_runtime_over_batch_and_time(
    request: pytest.FixtureRequest, open_engine: Open, bundle_name: str, component: ComponentName
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    oracle, runner = oracle_of(bundle, component), open_engine(bundle, component, SHORT)
    for rows, frames in SHAPES:
        feeds = ragged_features(bundle, rows, frames)
        assert_same_valid_frames(runner.run(feeds), oracle.run(feeds))


@pytest.mark.parametrize(("bundle_name", "component"), STEPS)
def test_decoding_steps_agree_with_onnx_runtime_over_the_batch(
    request: pytest.FixtureRequest, open_engine: Open, bundle_name: str, component: ComponentName
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    ranges = {**SHORT, **ONE_STEP}
    oracle, runner = oracle_of(bundle, component), open_engine(bundle, component, ranges)
    for rows in (1, 2, 3, 4):
        feeds = step_feeds(bundle, component, rows)
        expected, found = oracle.run(feeds), runner.run(feeds)
        assert found.keys() == expected.keys()
        for name in expected:
            assert_close(found[name], expected[name])


@pytest.mark.parametrize(("bundle_name", "component"), ENCODERS)
def test_an_utterance_gives_the_same_in_every_row_and_alone(
    request: pytest.FixtureRequest, open_engine: Open, bundle_name: str, component: ComponentName
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    runner = open_engine(bundle, component, SHORT)
    feeds = ragged_features(bundle, 4, 200)
    feeds["length"][:] = 200
    alone = runner.run({name: array[:1] for name, array in feeds.items()})
    for row in range(4):
        order = [(row_ - row) % 4 for row_ in range(4)]
        together = runner.run({name: array[order] for name, array in feeds.items()})
        assert_same_valid_frames({name: array[row : row + 1] for name, array in together.items()}, alone)


@pytest.mark.parametrize("padding", [0.01, 0.07, 0.5])
@pytest.mark.parametrize(("bundle_name", "component"), ENCODERS)
def test_padding_does_not_change_an_utterance(
    request: pytest.FixtureRequest,
    open_engine: Open,
    bundle_name: str,
    component: ComponentName,
    padding: float,
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    runner = open_engine(bundle, component, SHORT)
    alone = ragged_features(bundle, 1, 150)
    extra = round(150 * padding)
    loud = 100 * noise(1, bundle.meta.encoder.features, extra)
    padded = {**alone, "audio_signal": np.concatenate([alone["audio_signal"], loud], axis=2)}
    assert_same_valid_frames(runner.run(padded), runner.run(alone))


@pytest.mark.parametrize(("bundle_name", "component"), ENCODERS)
def test_two_profiles_give_the_same_whichever_the_router_takes(
    request: pytest.FixtureRequest, open_engine: Open, bundle_name: str, component: ComponentName
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    oracle, runner = oracle_of(bundle, component), open_engine(bundle, component, SHORT, LONG)
    for rows, frames in [(1, 100), (2, 900), (2, 270), (4, 300), (1, 1000), (1, 16)]:
        feeds = ragged_features(bundle, rows, frames)
        assert_same_valid_frames(runner.run(feeds), oracle.run(feeds))
    with pytest.raises(ProfileError, match=r"frames 16\.\.300\) or \(batch 1\.\.2, frames 250\.\.1000"):
        runner.run(ragged_features(bundle, 3, 900))


@pytest.mark.parametrize(("bundle_name", "component"), ENCODERS)
def test_half_precision_keeps_lengths_exact_and_frames_close(
    request: pytest.FixtureRequest,
    open_engine: Open,
    tmp_path_factory: pytest.TempPathFactory,
    bundle_name: str,
    component: ComponentName,
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    half = cast_bundle(bundle, tmp_path_factory.mktemp("half") / bundle_name)
    oracle, runner = oracle_of(bundle, component), open_engine(half, component, SHORT)
    for rows, frames in SHAPES:
        feeds = ragged_features(bundle, rows, frames)
        expected, found = valid_frames(oracle.run(feeds)), valid_frames(runner.run(feeds))
        for expected_row, found_row in zip(expected, found, strict=True):
            assert expected_row.shape == found_row.shape
            assert cosines(expected_row, found_row).min() >= FP16_MIN_COSINE


@pytest.mark.parametrize(("bundle_name", "decoder"), DECODERS)
def test_the_demo_clips_become_the_same_tokens_as_on_onnx_runtime(
    request: pytest.FixtureRequest,
    open_engine: Open,
    demo_manifest: Path,
    bundle_name: str,
    decoder: Decoder,
) -> None:
    bundle = request.getfixturevalue(bundle_name)
    ranges = demo_ranges(bundle)
    waveforms = demo_waveforms(demo_manifest, bundle)
    engines = {name: open_engine(bundle, name, ranges) for name in components_of(decoder)[1:]}
    with (
        Transcriber(bundle, decoder=decoder) as reference,
        Transcriber(bundle, decoder=decoder, runners=engines) as candidate,
    ):
        assert "TensorRT" in candidate.label
        alone = [[waveform] for waveform in waveforms]
        by_four = [waveforms[start : start + 4] for start in range(0, len(waveforms), 4)]
        for together in (*alone, *by_four):
            expected = [heard.hypothesis for heard in reference.transcribe(together)]
            assert [heard.hypothesis for heard in candidate.transcribe(together)] == expected


def test_closing_runners_gives_their_memory_back(store: EngineStore, runtime: RuntimeName, tmp_path: Path) -> None:
    engine, _ = small_engine(store, runtime, tmp_path)
    feeds = {"audio": noise(4, 8, 300), "length": np.ones(4, np.int64)}

    def free_bytes_after_a_run() -> int:
        runner = TensorRTRunner.open(engine)
        runner.run(feeds)
        runner.close()
        return int(call("cudaMemGetInfo"))

    free_bytes_after_a_run()  # the library loads its own kernels once
    before = free_bytes_after_a_run()
    for _ in range(5):
        after = free_bytes_after_a_run()
    assert before - after < 16 << 20


def engine_of(
    store: EngineStore,
    bundle: Bundle,
    component: ComponentName,
    ranges: tuple[Ranges, ...],
    runtime: RuntimeName,
) -> StoredEngine:
    api, spec = load_api(runtime), bundle.component(component)
    targets = (CURRENT_GPU,) if api.builds_without_gpu else ()
    identity = identity_from_bundle(
        bundle,
        component,
        ranges=ranges,
        runtime=runtime,
        runtime_version=api.version,
        compute_capabilities=targets,
        gpu=GPU.gpus[0],
    )
    found = store.find(identity.fingerprint())
    if found is not None:
        return found
    result = build_engine(BuildRequest(bundle.graph_path(component), spec, ranges, runtime, targets))
    return store.put(EngineBuild(**dict(identity), **built_facts(result, spec)), result.plan)


def built_facts(result: BuildResult, spec: ComponentSpec) -> dict[str, Any]:
    return {
        "profile": "test",
        "inputs": spec.inputs,
        "outputs": spec.outputs,
        "layers": result.layers,
        "build_seconds": result.seconds,
        "created": datetime.now(tz=UTC),
        "warnings": result.warnings,
        "tools": {},
    }


SMALL_GRAPH = """
    <ir_version: 10, opset_import: ["" : 20]>
    small (float[batch, 8, frames] audio, int64[batch] length)
        => (float[batch, frames, 8] mixed, int64[batch] shifted) {
        across = Transpose <perm = [0, 2, 1]> (audio)
        gates = Sigmoid (across)
        mixed = Mul (across, gates)
        one = Constant <value_ints = [1]> ()
        shifted = Add (length, one)
    }
"""


def small_engine(store: EngineStore, runtime: RuntimeName, folder: Path) -> tuple[StoredEngine, Path]:
    """An engine of :data:`SMALL_GRAPH` for :data:`SHORT`, and the graph."""
    graph = folder / "small.onnx"
    onnx.save(onnx.parser.parse_model(SMALL_GRAPH), graph)
    spec = ComponentSpec(
        graph=graph.name,
        data=None,
        inputs=(
            TensorSpec(name="audio", dtype="float32", shape=("batch", 8, "frames")),
            TensorSpec(name="length", dtype="int64", shape=("batch",)),
        ),
        outputs=(
            TensorSpec(name="mixed", dtype="float32", shape=("batch", "frames", 8)),
            TensorSpec(name="shifted", dtype="int64", shape=("batch",)),
        ),
        parameters=0,
    )
    api, gpu = load_api(runtime), GPU.gpus[0]
    targets = (CURRENT_GPU,) if api.builds_without_gpu else ()
    result = build_engine(BuildRequest(graph, spec, (SHORT,), runtime, targets))
    build = sample_build(
        runtime=runtime,
        runtime_version=api.version,
        precision="fp32",
        ranges=(dict(SHORT),),
        compute_capabilities=(gpu.compute_capability,),
        **built_facts(result, spec),
    )
    return store.put(build, result.plan), graph


def oracle_of(bundle: Bundle, component: ComponentName) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(bundle.graph_path(component), spec=bundle.component(component), threads=2)


def noise(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def ragged_features(bundle: Bundle, rows: int, frames: int) -> dict[str, Array]:
    """Noise in the place of features; the first row has ``frames`` valid ones, each further row 5 % less."""
    lengths = [max(1, frames - row * frames // 20) for row in range(rows)]
    return {
        "audio_signal": noise(rows, bundle.meta.encoder.features, frames),
        "length": np.array(lengths, np.int64),
    }


def step_feeds(bundle: Bundle, component: ComponentName, rows: int) -> dict[str, Array]:
    sizes = {"batch": rows, "tokens": 1, "joint_frames": 1}
    generator = np.random.default_rng(rows)
    feeds: dict[str, Array] = {}
    for spec in bundle.component(component).inputs:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
        tokens = generator.integers(0, bundle.meta.vocabulary_size, shape)
        feeds[spec.name] = tokens if spec.dtype == "int64" else noise(*shape)
    return feeds


def valid_frames(outputs: Arrays) -> list[Array]:
    """For each row the frames up to its length, ``[frames, channels]``."""
    frames = outputs["logprobs"] if "logprobs" in outputs else outputs["encoder_output"].transpose(0, 2, 1)
    return [row[:length] for row, length in zip(frames, outputs["encoded_lengths"], strict=True)]


def assert_same_valid_frames(found: Arrays, expected: Arrays) -> None:
    np.testing.assert_array_equal(found["encoded_lengths"], expected["encoded_lengths"])
    for found_row, expected_row in zip(valid_frames(found), valid_frames(expected), strict=True):
        assert_close(found_row, expected_row)


def assert_close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=FP32_RELATIVE * np.abs(expected).max())


def cosines(left: Array, right: Array) -> Array:
    """Of each frame."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / norms  # type: ignore[no-any-return]


def demo_ranges(bundle: Bundle) -> Ranges:
    return dict(axis_ranges(load_profile("demo"), bundle.meta.geometry))


def demo_waveforms(manifest: Path, bundle: Bundle) -> list[Waveform]:
    rate = bundle.meta.mel.sample_rate
    return [read_waveform(clip.path, sample_rate=rate) for clip in read_clips(manifest)]

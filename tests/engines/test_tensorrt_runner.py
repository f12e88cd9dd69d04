from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx.parser
import pytest
from engine_samples import LONG, SHORT, sample_build, sample_manifest
from hypothesis import given
from hypothesis import strategies as st
from simulated_gpu import SimulatedCuda, SimulatedTensorRT

from nemotrt.bundle import TensorSpec
from nemotrt.engines import cuda_memory, tensorrt_runner
from nemotrt.engines.cuda_memory import ALIGNMENT_BYTES, capacity_for
from nemotrt.engines.manifest import EngineManifest, manifest_from_build
from nemotrt.engines.plan_check import Host, PlanInterface, PlanTensor, check_host, check_interface
from nemotrt.engines.profile_router import ProfileRouter
from nemotrt.engines.runner import Runner
from nemotrt.engines.store import EngineStore
from nemotrt.engines.tensorrt_runner import TensorRTRunner
from nemotrt.errors import EngineError, InputError, MachineError, ProfileError
from nemotrt.profiles import AxisRange
from nemotrt.tensorrt_api import Gpu, GpuReport, available_runtimes, can_run, load_api

AUDIO, LENGTH = sample_manifest().inputs
AN_L4 = Gpu("NVIDIA L4", "8.9", 24 << 30)
A_HOST = Host(runtime="tensorrt-rtx", runtime_version="1.7.1.116", gpu=AN_L4)

without_gpu = pytest.mark.skipif(bool(can_run()), reason="says what happens where there is no GPU")


# --- the router


def shapes(batch: int, frames: int) -> dict[str, tuple[int, ...]]:
    return {"audio_signal": (batch, 80, frames), "length": (batch,)}


@pytest.mark.parametrize(
    ("batch", "frames", "profile"), [(1, 10, 0), (4, 200, 0), (1, 175, 0), (1, 201, 1), (2, 1000, 1)]
)
def test_a_batch_goes_to_the_profile_that_contains_it(batch: int, frames: int, profile: int) -> None:
    assert ProfileRouter((AUDIO, LENGTH), (SHORT, LONG)).route(shapes(batch, frames)) == profile


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_of_several_profiles_the_narrowest_is_taken(order: tuple[int, ...]) -> None:
    batch = AxisRange(1, 1, 1)
    nested = [{"batch": batch, "frames": AxisRange(1, 50, longest)} for longest in (100, 200, 400)]
    router = ProfileRouter((AUDIO, LENGTH), tuple(nested[index] for index in order))

    assert order[router.route(shapes(1, 60))] == 0
    assert order[router.route(shapes(1, 160))] == 1
    assert order[router.route(shapes(1, 300))] == 2


def test_of_equally_wide_profiles_the_one_with_the_smaller_maximum_is_taken() -> None:
    batch = AxisRange(1, 1, 1)
    late, early = ({"batch": batch, "frames": AxisRange(low, low, low + 99)} for low in (51, 1))
    assert ProfileRouter((AUDIO, LENGTH), (late, early)).route(shapes(1, 60)) == 1


def test_shapes_outside_of_every_profile_are_named_with_the_ranges() -> None:
    with pytest.raises(ProfileError) as caught:
        ProfileRouter((AUDIO, LENGTH), (SHORT, LONG)).route(shapes(4, 201))

    message = str(caught.value)
    assert "audio_signal [4, 80, 201]" in message
    assert "(batch 1..4, frames 10..200) or (batch 1..2, frames 150..1000)" in message


RANGES = st.lists(st.integers(1, 30), min_size=3, max_size=3).map(lambda three: AxisRange(*sorted(three)))
PROFILES = st.lists(st.fixed_dictionaries({"batch": RANGES, "frames": RANGES}), min_size=1, max_size=5)


@given(profiles=PROFILES, batch=st.integers(1, 30), frames=st.integers(1, 30))
def test_the_router_agrees_with_looking_at_every_profile(
    profiles: list[dict[str, AxisRange]], batch: int, frames: int
) -> None:
    def admitted(profile: dict[str, AxisRange]) -> int:
        return math.prod(axis.max - axis.min + 1 for axis in profile.values())

    fitting = [
        profile
        for profile in profiles
        if profile["batch"].min <= batch <= profile["batch"].max
        and profile["frames"].min <= frames <= profile["frames"].max
    ]
    router = ProfileRouter((AUDIO, LENGTH), tuple(profiles))
    if fitting:
        chosen = profiles[router.route(shapes(batch, frames))]
        assert chosen in fitting
        assert admitted(chosen) == min(map(admitted, fitting))
    else:
        with pytest.raises(ProfileError):
            router.route(shapes(batch, frames))


# --- buffers


@given(needed=st.integers(0, 1 << 40), current=st.integers(0, 1 << 32).map(lambda n: n * ALIGNMENT_BYTES))
def test_a_capacity_is_enough_aligned_and_never_zero(needed: int, current: int) -> None:
    capacity = capacity_for(needed, current_bytes=current)

    assert capacity >= max(needed, ALIGNMENT_BYTES)
    assert capacity % ALIGNMENT_BYTES == 0
    assert capacity == current or capacity >= 1.5 * current
    assert capacity == current or capacity <= max(needed, 1.5 * current) + ALIGNMENT_BYTES


def test_batches_that_grow_by_a_frame_cause_few_allocations() -> None:
    capacities, current = set(), 0
    for frames in range(1, 5001):
        current = capacity_for(frames * 80 * 4, current_bytes=current)
        capacities.add(current)
    assert len(capacities) < 25


# --- what is refused before and after a plan is deserialized


def test_a_plan_built_for_this_host_is_accepted() -> None:
    check_host(sample_manifest(), A_HOST)
    check_host(sample_manifest(compute_capabilities=()), A_HOST)
    check_host(sample_manifest(gpu="NVIDIA L4"), A_HOST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "tensorrt"}, "another library"),
        ({"runtime_version": "1.7.1.117"}, "another version"),
        ({"compute_capabilities": ("8.6", "9.0")}, r"8\.6, 9\.0; NVIDIA L4 has 8\.9"),
        ({"gpu": "NVIDIA L40S"}, "another GPU model"),
    ],
)
def test_a_plan_built_for_something_else_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        check_host(sample_manifest(**change), A_HOST)
    assert "encoder engine" in str(caught.value.where)
    assert caught.value.fix


AUDIO_SHAPES = (((1, 80, 10), (2, 80, 100), (4, 80, 200)), ((1, 80, 150), (1, 80, 500), (2, 80, 1000)))
LENGTH_SHAPES = (((1,), (2,), (4,)), ((1,), (1,), (2,)))
INTERFACE = PlanInterface(
    profiles=2,
    tensors=(
        PlanTensor("audio_signal", True, "FLOAT", True, AUDIO_SHAPES),
        PlanTensor("length", True, "INT64", True, LENGTH_SHAPES),
        PlanTensor("encoder_output", False, "FLOAT", True, ()),
        PlanTensor("encoded_lengths", False, "INT64", True, ()),
    ),
)


def test_a_plan_with_the_tensors_of_its_manifest_is_accepted() -> None:
    check_interface(sample_manifest(), INTERFACE)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (replace(INTERFACE.tensors[0], name="audio"), "other inputs or outputs"),
        (replace(INTERFACE.tensors[0], is_input=False), "other inputs or outputs"),
        (replace(INTERFACE.tensors[0], dtype="HALF"), "another type"),
        (replace(INTERFACE.tensors[0], on_device=False), "shape tensor"),
        (replace(INTERFACE.tensors[0], profile_shapes=AUDIO_SHAPES[::-1]), "profile 0 .* another range"),
    ],
)
def test_a_plan_with_other_tensors_is_refused(tensor: PlanTensor, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_interface(sample_manifest(), replace(INTERFACE, tensors=(tensor, *INTERFACE.tensors[1:])))


def test_a_plan_with_another_number_of_profiles_is_refused() -> None:
    with pytest.raises(EngineError, match="number of optimization profiles"):
        check_interface(sample_manifest(), replace(INTERFACE, profiles=1))


# --- the whole runner, on a simulated GPU

GRAPH = """
    <ir_version: 10, opset_import: ["" : 20]>
    doubler (float[batch, 2, frames] audio_signal, int64[batch] length)
        => (float[batch, frames, 2] encoder_output, int64[batch] encoded_lengths) {
        doubled = Add (audio_signal, audio_signal)
        encoder_output = Transpose <perm = [0, 2, 1]> (doubled)
        one = Constant <value_ints = [1]> ()
        encoded_lengths = Add (length, one)
    }
"""
PLAN = onnx.parser.parse_model(GRAPH).SerializeToString()
INPUTS = (TensorSpec(name="audio_signal", dtype="float32", shape=("batch", 2, "frames")), LENGTH)


def doubler_manifest(plan: bytes = PLAN) -> EngineManifest:
    return manifest_from_build(sample_build(inputs=INPUTS), plan)


def batch_of(rows: int, frames: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rows * 1000 + frames)
    audio = generator.standard_normal((rows, 2, frames)).astype(np.float32)
    return {"audio_signal": audio, "length": np.full(rows, frames, np.int64)}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    simulation = SimulatedCuda()
    monkeypatch.setattr(cuda_memory, "cuda_runtime", lambda: simulation)
    monkeypatch.setattr(tensorrt_runner, "can_run", lambda: GpuReport((AN_L4,), "13.0", "1 GPU"))
    return simulation


@pytest.fixture(params=[True, False], ids=["runtime config", "strategy argument"])
def library(request: pytest.FixtureRequest) -> SimulatedTensorRT:
    return SimulatedTensorRT(INPUTS, (SHORT, LONG), runtime_config=request.param)


@pytest.fixture
def runner(cuda: SimulatedCuda, library: SimulatedTensorRT) -> Iterator[TensorRTRunner]:
    runner = TensorRTRunner(PLAN, doubler_manifest(), api=library.api)
    yield runner
    runner.close()
    assert cuda.live == 0


def test_the_runner_is_a_runner_and_says_where_it_runs(runner: TensorRTRunner) -> None:
    assert isinstance(runner, Runner)
    assert runner.label == "TensorRT-RTX 1.7.1.116, NVIDIA L4"
    assert (runner.inputs, runner.outputs) == (INPUTS, sample_manifest().outputs)


def test_every_batch_runs_in_its_profile_whatever_ran_before(
    runner: TensorRTRunner, library: SimulatedTensorRT
) -> None:
    for rows, frames in [(1, 30), (4, 200), (2, 900), (1, 10), (2, 201), (3, 77)]:
        feeds = batch_of(rows, frames)
        outputs = runner.run(feeds)
        np.testing.assert_array_equal(outputs["encoder_output"], 2 * feeds["audio_signal"].transpose(0, 2, 1))
        np.testing.assert_array_equal(outputs["encoded_lengths"], feeds["length"] + 1)
    assert library.profiles_run == [0, 0, 1, 0, 1, 0]


def test_outputs_are_the_callers_and_survive_the_next_run(runner: TensorRTRunner) -> None:
    feeds = batch_of(2, 50)
    first = runner.run(feeds)["encoder_output"]
    runner.run(batch_of(2, 51))
    np.testing.assert_array_equal(first, 2 * feeds["audio_signal"].transpose(0, 2, 1))


def test_views_and_foreign_byte_orders_are_read_right(runner: TensorRTRunner) -> None:
    audio = batch_of(2, 50)["audio_signal"]
    feeds = {
        "audio_signal": np.asfortranarray(audio).astype(">f4")[:, :, ::-1],
        "length": np.arange(4, dtype=np.int64)[::2],
    }
    outputs = runner.run(feeds)
    np.testing.assert_array_equal(outputs["encoder_output"], 2 * audio[:, :, ::-1].transpose(0, 2, 1))
    np.testing.assert_array_equal(outputs["encoded_lengths"], [1, 3])


def test_buffers_are_reused(runner: TensorRTRunner, cuda: SimulatedCuda) -> None:
    runner.run(batch_of(4, 200))
    before = cuda.allocations
    for frames in range(10, 200):
        runner.run(batch_of(2, frames))
    assert cuda.allocations == before


@pytest.mark.parametrize(
    ("feeds", "error", "message"),
    [
        (batch_of(3, 500), ProfileError, "no optimization profile"),
        ({**batch_of(1, 50), "length": np.zeros(2, np.int64)}, ProfileError, "length"),
        ({**batch_of(1, 50), "length": np.zeros(1, np.int32)}, InputError, "dtype"),
        ({"length": np.zeros(1, np.int64)}, InputError, "audio_signal"),
        ({**batch_of(1, 50), "speed": np.zeros(1)}, InputError, "speed"),
    ],
)
def test_feeds_the_engine_does_not_take_are_refused_and_the_next_run_works(
    runner: TensorRTRunner, feeds: dict[str, np.ndarray], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        runner.run(feeds)
    assert runner.run(batch_of(1, 50))["encoded_lengths"].tolist() == [51]


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ("infer_shapes", "infer the output shapes(.|\n)*a Reshape does not fit"),
        ("get_tensor_shape", "tell the shape of encoder_output"),
        ("execute_async_v3", "run the engine(.|\n)*an illegal memory access"),
    ],
)
def test_what_tensorrt_refuses_is_a_machine_error_with_its_own_words(
    runner: TensorRTRunner, library: SimulatedTensorRT, failing: str, message: str
) -> None:
    library.failing = failing
    with pytest.raises(MachineError, match=message):
        runner.run(batch_of(1, 50))


def test_running_out_of_memory_names_the_cuda_error_and_leaves_a_runner_that_works(
    runner: TensorRTRunner, cuda: SimulatedCuda
) -> None:
    cuda.limit_bytes = 4000
    with pytest.raises(MachineError, match="cudaErrorMemoryAllocation: out of memory"):
        runner.run(batch_of(2, 900))
    cuda.limit_bytes = 1 << 30
    assert runner.run(batch_of(2, 900))["encoded_lengths"].tolist() == [901, 901]


def test_closing_twice_is_fine_and_a_closed_runner_says_so(runner: TensorRTRunner, cuda: SimulatedCuda) -> None:
    runner.run(batch_of(1, 50))
    runner.close()
    runner.close()
    assert cuda.live == 0
    with pytest.raises(InputError, match="closed"):
        runner.run(batch_of(1, 50))


def test_a_plan_tensorrt_refuses_is_a_machine_error_and_releases_everything(
    cuda: SimulatedCuda, library: SimulatedTensorRT
) -> None:
    with pytest.raises(MachineError, match=r"cannot load the plan(.|\n)*magic tag"):
        TensorRTRunner(b"no plan", doubler_manifest(b"no plan"), api=library.api)
    assert cuda.live == 0


def test_a_plan_other_than_its_manifest_says_is_refused_and_releases_everything(
    cuda: SimulatedCuda, library: SimulatedTensorRT
) -> None:
    manifest = manifest_from_build(sample_build(inputs=INPUTS, ranges=(LONG, SHORT)), PLAN)
    with pytest.raises(EngineError, match="another range"):
        TensorRTRunner(PLAN, manifest, api=library.api)
    assert cuda.live == 0


def test_a_plan_for_another_gpu_never_reaches_tensorrt(cuda: SimulatedCuda) -> None:
    library = SimulatedTensorRT(INPUTS, (SHORT, LONG))
    library.api.module.Runtime = None  # calling it would be a TypeError
    manifest = manifest_from_build(sample_build(inputs=INPUTS, compute_capabilities=("12.0",)), PLAN)
    with pytest.raises(EngineError, match="other GPUs"):
        TensorRTRunner(PLAN, manifest, api=library.api)


def test_a_gpu_that_is_not_there_is_a_machine_error(cuda: SimulatedCuda) -> None:
    library = SimulatedTensorRT(INPUTS, (SHORT, LONG))
    with pytest.raises(MachineError, match="no GPU 1"):
        TensorRTRunner(PLAN, doubler_manifest(), api=library.api, device=1)


# --- the real libraries, as far as a machine without a GPU goes


@without_gpu
def test_without_a_gpu_opening_an_engine_says_so(tmp_path: Path) -> None:
    version = load_api("tensorrt-rtx").version
    engine = EngineStore(tmp_path).put(sample_build(runtime_version=version), PLAN)
    with pytest.raises(MachineError, match="needs an NVIDIA GPU") as caught:
        TensorRTRunner.open(engine)
    assert "ONNX Runtime" in str(caught.value.fix)


@without_gpu
def test_a_cuda_error_is_named_with_the_call_that_had_it() -> None:
    with pytest.raises(MachineError, match=r"cudaErrorInsufficientDriver|cudaErrorNoDevice") as caught:
        cuda_memory.call("cudaMalloc", 16)
    assert caught.value.where == "cudaMalloc"


# Owner, attribute, and the argument names of its signature: all that the runner uses.
TENSORRT_SURFACE = [
    ("Runtime", "deserialize_cuda_engine", "serialized_engine"),
    ("ICudaEngine", "num_optimization_profiles", ""),
    ("ICudaEngine", "num_io_tensors", ""),
    ("ICudaEngine", "get_tensor_name", "index"),
    ("ICudaEngine", "get_tensor_mode", "name"),
    ("ICudaEngine", "get_tensor_dtype", "name"),
    ("ICudaEngine", "get_tensor_location", "name"),
    ("ICudaEngine", "get_tensor_profile_shape", "name, profile_index"),
    ("ICudaEngine", "create_execution_context", "strategy"),
    ("IExecutionContext", "set_optimization_profile_async", "profile_index, stream_handle"),
    ("IExecutionContext", "set_input_shape", "name, shape"),
    ("IExecutionContext", "infer_shapes", ""),
    ("IExecutionContext", "get_tensor_shape", "name"),
    ("IExecutionContext", "set_tensor_address", "name, memory"),
    ("IExecutionContext", "execute_async_v3", "stream_handle"),
    ("TensorIOMode", "INPUT", ""),
    ("TensorLocation", "DEVICE", ""),
    ("ExecutionContextAllocationStrategy", "STATIC", ""),
    ("ExecutionContextAllocationStrategy", "ON_PROFILE_CHANGE", ""),
]
RTX_SURFACE = [
    ("ICudaEngine", "create_runtime_config", ""),
    ("ICudaEngine", "create_execution_context", "runtime_config"),
    ("IRuntimeConfig", "set_execution_context_allocation_strategy", "strategy"),
]


@pytest.mark.parametrize("name", available_runtimes())
@pytest.mark.parametrize(("owner", "attribute", "arguments"), TENSORRT_SURFACE)
def test_what_the_runner_calls_exists_in_the_library(name: str, owner: str, attribute: str, arguments: str) -> None:
    assert_offers(load_api(name).module, owner, attribute, arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("owner", "attribute", "arguments"), RTX_SURFACE)
def test_what_the_runner_probes_for_exists_in_tensorrt_rtx(owner: str, attribute: str, arguments: str) -> None:
    assert_offers(load_api("tensorrt-rtx").module, owner, attribute, arguments)


def test_the_types_of_the_contract_are_types_of_tensorrt() -> None:
    from nemotrt.engines.plan_check import TENSORRT_DTYPES

    assert set(TENSORRT_DTYPES.values()) <= set(load_api("tensorrt-rtx").module.DataType.__members__)


CUDA_SURFACE = [
    "cudaSetDevice",
    "cudaMalloc",
    "cudaFree",
    "cudaHostAlloc",
    "cudaFreeHost",
    "cudaMemcpyAsync",
    "cudaStreamCreateWithFlags",
    "cudaStreamSynchronize",
    "cudaStreamDestroy",
    "cudaGetErrorString",
    "cudaStreamNonBlocking",
    "cudaHostAllocDefault",
]


@pytest.mark.parametrize("name", CUDA_SURFACE)
def test_what_the_runner_calls_exists_in_cuda_bindings_and_in_its_simulation(name: str) -> None:
    assert hasattr(cuda_memory.cuda_runtime(), name)
    assert hasattr(SimulatedCuda, name)


def test_a_stream_has_an_integer_handle() -> None:
    assert int(cuda_memory.cuda_runtime().cudaStream_t()) == 0


def assert_offers(module: ModuleType, owner: str, attribute: str, arguments: str) -> None:
    found = getattr(getattr(module, owner), attribute)
    for argument in filter(None, arguments.split(", ")):
        assert f"{argument}: " in found.__doc__

"""The one module that knows TensorRT 10, 11 and TensorRT-RTX apart.

TensorRT-RTX is the real library. TensorRT 10 and 11 cannot be installed everywhere: for those two the probes are
tried on stand-ins that have, or lack, the features that the vendor's migration guide lists. They prove which branch
is taken, not that the libraries work.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nemotrt import tensorrt_api
from nemotrt.errors import MachineError, UsageError
from nemotrt.tensorrt_api import (
    TensorRTApi,
    available_runtimes,
    best_runtime,
    can_run,
    capability_from_digits,
    load_api,
)

uncached_load = load_api.__wrapped__  # the cache holds the one logger of each library: leave it alone


@pytest.fixture(scope="module")
def rtx() -> TensorRTApi:
    pytest.importorskip("tensorrt_rtx")
    return load_api("tensorrt-rtx")


class StandInConfig:
    def __init__(self) -> None:
        self.set: list[str] = []
        self.cleared: list[str] = []

    def set_flag(self, flag: str) -> None:
        self.set.append(flag)

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)


class StandInBuilder:
    def __init__(self, logger: object) -> None:
        self.logger = logger

    def create_network(self, flags: int = 0) -> int:
        return flags


def stand_in(*, creation_flags: type[IntEnum] | None) -> Any:
    module = SimpleNamespace(
        __version__="0",
        ILogger=object,
        Builder=StandInBuilder,
        BuilderFlag=SimpleNamespace(TF32="TF32"),
        IBuilderConfig=StandInConfig,
    )
    if creation_flags is not None:
        module.NetworkDefinitionCreationFlag = creation_flags
    return module


class FlagsOf10(IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class FlagsOf11(IntEnum):
    PREFER_JIT_PYTHON_PLUGINS = 3


@pytest.mark.parametrize(
    ("creation_flags", "expected"), [(FlagsOf10, 1 << 1), (FlagsOf11, 0), (None, 0)], ids=["10", "11", "no enum"]
)
def test_a_stand_in_gets_a_strongly_typed_network_by_flag_or_by_default(
    creation_flags: type[IntEnum] | None, expected: int
) -> None:
    api = TensorRTApi("tensorrt", stand_in(creation_flags=creation_flags))
    assert api.create_network(api.create_builder()) == expected


def test_a_stand_in_without_named_targets_builds_for_the_gpu_present_only() -> None:
    api = TensorRTApi("tensorrt", stand_in(creation_flags=FlagsOf11))
    assert not api.builds_without_gpu
    assert api.compute_capabilities == ()
    api.set_compute_capabilities(StandInConfig(), ())
    api.set_compute_capabilities(StandInConfig(), ("current",))
    with pytest.raises(UsageError, match=r"8\.9 was asked for"):
        api.set_compute_capabilities(StandInConfig(), ("8.9",))


@pytest.mark.parametrize(("enabled", "expected"), [(False, ([], ["TF32"])), (True, (["TF32"], []))])
def test_tf32_is_set_or_cleared_and_no_other_flag_is_touched(
    enabled: bool, expected: tuple[list[str], list[str]]
) -> None:
    config = StandInConfig()
    TensorRTApi("tensorrt", stand_in(creation_flags=FlagsOf10)).set_tf32(config, enabled=enabled)
    assert (config.set, config.cleared) == expected


def test_tensorrt_rtx_is_available_and_builds_without_a_gpu(rtx: TensorRTApi) -> None:
    assert "tensorrt-rtx" in available_runtimes()
    assert rtx.builds_without_gpu
    assert {"8.0", "8.6", "8.9", "12.0"} <= set(rtx.compute_capabilities)
    assert rtx.title == "TensorRT-RTX"
    assert rtx.version[0].isdigit()


def test_tensorrt_rtx_makes_a_strongly_typed_network(rtx: TensorRTApi) -> None:
    network = rtx.create_network(rtx.create_builder())
    assert network.get_flag(rtx.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_tensorrt_rtx_config_takes_targets_and_tf32(rtx: TensorRTApi) -> None:
    config = rtx.create_builder().create_builder_config()
    rtx.set_compute_capabilities(config, ("8.9", "12.0", "8.9"))
    targets = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert targets == [rtx.module.ComputeCapability.SM89, rtx.module.ComputeCapability.SM120]
    for enabled in (True, False):
        rtx.set_tf32(config, enabled=enabled)
        assert config.get_flag(rtx.module.BuilderFlag.TF32) is enabled


def test_an_unknown_compute_capability_lists_the_known_ones(rtx: TensorRTApi) -> None:
    with pytest.raises(UsageError, match=r"9\.9(.|\n)*8\.9, 12\.0"):
        rtx.set_compute_capabilities(rtx.create_builder().create_builder_config(), ("9.9",))


def test_errors_are_logged_to_the_block_they_happen_in_and_nothing_is_printed(
    rtx: TensorRTApi, capfd: pytest.CaptureFixture[str]
) -> None:
    builder = rtx.create_builder()
    with rtx.captured_log() as before:
        rtx.create_network(builder)
    with rtx.captured_log() as log, rtx.captured_log() as same_time:
        network = rtx.create_network(builder)  # without an output: cannot be built
        assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert before.errors == []
    assert "at least one output" in log.errors[0]
    assert log.errors == same_time.errors
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("available", "gpu", "best"),
    [
        (("tensorrt", "tensorrt-rtx"), True, "tensorrt"),
        (("tensorrt", "tensorrt-rtx"), False, "tensorrt-rtx"),
        (("tensorrt",), False, None),
        ((), True, None),
    ],
)
def test_the_best_runtime_is_tensorrt_only_where_a_gpu_is(
    monkeypatch: pytest.MonkeyPatch, available: tuple[str, ...], gpu: bool, best: str | None
) -> None:
    monkeypatch.setattr(tensorrt_api, "available_runtimes", lambda: available)
    monkeypatch.setattr(tensorrt_api, "can_run", lambda: gpu)
    assert best_runtime() == best


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MachineError, match=r"TensorRT is not installed(.|\n)*pip install 'nemotrt\[tensorrt\]'"):
        uncached_load("tensorrt")


def test_a_library_that_does_not_load_is_told_from_a_missing_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MachineError, match=r"installed but does not load(.|\n)*libnvinfer\.so\.11"):
        uncached_load("tensorrt")


def test_a_machine_without_a_driver_cannot_run_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleType:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(tensorrt_api.ctypes, "CDLL", absent)
    report = can_run()
    assert not report
    assert report.reason == "no NVIDIA driver is installed"


def test_can_run_answers_on_this_machine_either_way() -> None:
    report = can_run()
    assert bool(report) == bool(report.gpus)
    assert report.reason


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="no GPU in this machine")
def test_a_gpu_is_reported_with_its_capability_and_memory() -> None:
    report = can_run()
    assert report
    assert report.cuda_version is not None
    for gpu in report.gpus:
        assert gpu.name
        assert float(gpu.compute_capability) >= 7.5
        assert gpu.memory_bytes > 2**30


def test_capabilities_read_as_people_write_them() -> None:
    assert [capability_from_digits(digits) for digits in ("75", "120")] == ["7.5", "12.0"]

"""The encoder without masks: taken where it may be, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from nemotrt.bundle import Bundle, ComponentName
from nemotrt.engines.component_runners import ComponentRunners
from nemotrt.engines.onnxruntime_runner import OnnxRuntimeRunner
from nemotrt.engines.padding_aware_runner import PaddingAwareRunner
from nemotrt.engines.transcriber import Transcriber
from nemotrt.errors import ProfileError


@pytest.fixture(params=["encoder", "ctc"])
def component(request: pytest.FixtureRequest) -> ComponentName:
    name: ComponentName = request.param
    return name


@pytest.fixture
def runner(hybrid_bundle: Bundle, component: ComponentName) -> Iterator[PaddingAwareRunner]:
    runners = ComponentRunners(hybrid_bundle, (component,), given={}, threads=1)
    opened = runners[component]
    assert isinstance(opened, PaddingAwareRunner)
    yield opened
    runners.close()


@pytest.fixture
def masked(hybrid_bundle: Bundle, component: ComponentName) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(hybrid_bundle.graph_path(component), spec=hybrid_bundle.component(component), threads=1)


def feeds(rows: int, frames: int, lengths: list[int]) -> dict[str, Any]:
    signal = np.random.default_rng(frames).standard_normal((rows, 80, frames)).astype(np.float32)
    return {"audio_signal": signal, "length": np.array(lengths)}


@pytest.mark.parametrize(
    ("frames", "lengths"), [(1, [1]), (8, [8]), (333, [333]), (100, [100, 100, 100]), (100, [100, 99]), (64, [1, 64])]
)
def test_it_gives_what_the_graph_with_masks_gives(
    runner: PaddingAwareRunner, masked: OnnxRuntimeRunner, frames: int, lengths: list[int]
) -> None:
    batch = feeds(len(lengths), frames, lengths)
    wanted, found = masked.run(batch), runner.run(batch)
    assert found.keys() == wanted.keys()
    assert found["encoded_lengths"].tolist() == wanted["encoded_lengths"].tolist()
    assert found["encoded_lengths"].dtype == np.int64
    (output,) = found.keys() - {"encoded_lengths"}
    assert np.abs(found[output] - wanted[output]).max() <= 1e-5


def test_padding_is_masked(runner: PaddingAwareRunner) -> None:
    """A row that ends early does not hear what stands behind its end."""
    batch = feeds(2, 200, [200, 90])
    loud = {**batch, "audio_signal": batch["audio_signal"].copy()}
    loud["audio_signal"][1, :, 90:] = 100.0
    quiet, noisy = runner.run(batch), runner.run(loud)
    (output,) = quiet.keys() - {"encoded_lengths"}
    valid = int(quiet["encoded_lengths"][1])
    axis = 1 if output == "encoder_output" else 0
    rows = [one[output][1].take(range(valid), axis) for one in (quiet, noisy)]
    assert np.abs(rows[0] - rows[1]).max() <= 1e-5


def test_without_its_masks_the_padding_would_be_heard(hybrid_bundle: Bundle) -> None:
    """What the runner must not do: the same batch through the variant alone."""
    unmasked = OnnxRuntimeRunner(hybrid_bundle.graph_path("encoder_nomask"), threads=1)
    signal = feeds(1, 200, [90])["audio_signal"]
    loud = signal.copy()
    loud[:, :, 90:] = 100.0
    rows = [unmasked.run({"audio_signal": one})["encoder_output"][:, :, :9] for one in (signal, loud)]
    assert np.abs(rows[0] - rows[1]).max() > 0.01


def test_the_graph_with_masks_is_opened_when_a_row_is_padded(runner: PaddingAwareRunner) -> None:
    runner.run(feeds(2, 50, [50, 50]))
    assert runner._masked is None
    runner.run(feeds(2, 50, [50, 20]))
    assert runner._masked is not None


def test_feeds_are_checked_against_the_component(runner: PaddingAwareRunner) -> None:
    with pytest.raises(ProfileError, match="audio_signal"):
        runner.run({"audio_signal": np.zeros((1, 7, 50), np.float32), "length": np.array([50])})


def test_a_runner_that_is_given_is_not_passed_over(hybrid_bundle: Bundle) -> None:
    """An engine of the component runs it, also where the bundle has a variant for ONNX Runtime."""
    encoder = OnnxRuntimeRunner(hybrid_bundle.graph_path("encoder"), threads=1)
    with Transcriber(hybrid_bundle, runners={"encoder": encoder}, threads=1) as transcriber:
        encoder.close()
        with pytest.raises(Exception, match="closed"):
            transcriber.encode(*feeds(1, 50, [50]).values())


def test_a_clip_alone_is_faster_without_masks(tdt_bundle: Bundle, figure: Callable[[str], None]) -> None:
    with_masks = OnnxRuntimeRunner(tdt_bundle.graph_path("encoder"), threads=1)
    without = ComponentRunners(tdt_bundle, ("encoder",), given={}, threads=1)["encoder"]
    signal = np.random.default_rng(0).standard_normal((1, 128, 1000)).astype(np.float32)
    batch = {"audio_signal": signal, "length": np.array([1000])}
    ratios = []
    for _ in range(15):
        start = perf_counter()
        with_masks.run(batch)
        middle = perf_counter()
        without.run(batch)
        ratios.append((middle - start) / (perf_counter() - middle))
    figure(f"encoder of a 10 s clip without masks: {median(ratios):.2f} times as fast as with them")
    assert median(ratios) > 1

"""The one interface everything that runs a component implements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

from numpy.typing import NDArray

from nemotrt.bundle import TensorSpec

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]


@runtime_checkable
class Runner(Protocol):
    """Runs one component (encoder, predictor, joint, ...) on one backend.

    Implementations: ``onnxruntime_runner.OnnxRuntimeRunner`` (the oracle, and the default where there is no GPU) and
    ``tensorrt_runner.TensorRTRunner``. A runner is used from one thread at a time.
    """

    @property
    def label(self) -> str:
        """Backend and device in a few words, for reports: ``onnxruntime CPU``."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What :meth:`run` takes."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What :meth:`run` returns."""
        ...

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """One inference. ``feeds`` holds every input by name, with the dtype of its spec; returns every output.

        Raises:
            ProfileError: a shape lies outside of what the engine was built for.
        """
        ...

    def close(self) -> None:
        """Release the session, the engine and its memory. Safe to call twice."""
        ...

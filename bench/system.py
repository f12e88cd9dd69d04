"""What is compared and timed: a transcriber and the name it bears in every table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nemotrt.engines.transcriber import Transcriber

Progress = Callable[[str, float], None]
"""Called with what is at hand and the fraction done, 0 to 1."""


@dataclass(frozen=True, eq=False)
class System:
    """``name`` is unique among the systems of one run: ``FP16, ONNX Runtime CPU``."""

    name: str
    transcriber: Transcriber

    @classmethod
    def named_by_precision(cls, transcriber: Transcriber) -> System:
        """Named after the bundle's precision and the backend."""
        precision = transcriber.bundle.meta.precision.upper()
        return cls(f"{precision}, {transcriber.label}", transcriber)


def silent(_what: str, _fraction: float) -> None:
    """The progress of a caller that does not ask for any."""

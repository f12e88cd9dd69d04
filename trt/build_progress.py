"""How far a build is, as one fraction, from TensorRT's nested phases.

fraction(phase) = (steps completed + fraction of the phase inside the current step) / steps
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self


@dataclass
class _Phase:
    parent: str | None
    steps: int
    completed: int = 0


class PhaseTree:
    """The phases under way, and the fraction of the whole that is done. The fraction never falls."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self.fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Phase ``name`` of ``steps`` steps begins inside of the current step of ``parent``."""
        self._phases[name] = _Phase(parent, max(1, steps))

    def complete_step(self, name: str, step: int) -> None:
        """Step number ``step``, counted from zero, is done."""
        if name in self._phases:
            self._phases[name].completed = step + 1
            self.fraction = max(self.fraction, min(1.0, self._fraction_of_root()))

    def finish(self, name: str) -> None:
        """Phase ``name`` is over."""
        self._phases.pop(name, None)

    def _fraction_of_root(self) -> float:
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        return self._fraction(roots[0]) if roots else 0.0

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        inside = [child for child, other in self._phases.items() if other.parent == name]
        return (phase.completed + max(map(self._fraction, inside), default=0.0)) / phase.steps


class BuildProgress:
    """Context manager around one build: reports to ``on_fraction``, and lets it cancel by raising.

    TensorRT swallows exceptions of its callbacks, that of Ctrl-C too, which strikes in whichever of them runs next.
    Here the first one stops the build and is raised on exit. Ctrl-C is therefore handled here while a build runs.
    """

    def __init__(self, module: Any, on_fraction: Callable[[float], None]) -> None:
        self._on_fraction = on_fraction
        self._phases = PhaseTree()
        self._raised: BaseException | None = None
        self._on_interrupt: signal._HANDLER = None
        self.monitor = _monitor_of(module, self._phases, self._report)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other can have signal handlers
            self._on_interrupt = signal.getsignal(signal.SIGINT)
            if callable(self._on_interrupt):
                signal.signal(signal.SIGINT, self._interrupted)
        self._report()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if callable(self._on_interrupt):
            signal.signal(signal.SIGINT, self._on_interrupt)
        if error is not None:
            return
        if self._raised is None:
            self._phases.fraction = 1.0
            self._report()
        if self._raised is not None:
            raise self._raised

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """Do what the program does on Ctrl-C, and keep what it raises."""
        try:
            if callable(self._on_interrupt):
                self._on_interrupt(number, frame)
        except BaseException as exc:  # noqa: BLE001  # raised again in __exit__, out of the library's reach
            self._raised = exc

    def _report(self) -> bool:
        """Whether to go on."""
        if self._raised is None:
            try:
                self._on_fraction(self._phases.fraction)
            except BaseException as exc:  # noqa: BLE001  # raised again in __exit__, out of the library's reach
                self._raised = exc
        return self._raised is None


def _monitor_of(module: Any, phases: PhaseTree, report: Callable[[], bool]) -> Any:
    """The library's progress monitor. A subclass of a class that is imported on demand."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # the base is known once the library is loaded
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.complete_step(phase_name, step)
            return report()

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()

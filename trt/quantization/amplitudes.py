"""How large the values of an activation get, from a stream of arrays in constant memory.

|x| is counted in bins of equal width from 0 to a limit. Where a value lies beyond, the limit doubles and bins are
merged in pairs: an edge of the wider bins is one of the narrower ones, so nothing counted is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nemotrt.errors import GraphError

Calibration = Literal["max", "percentile"]

PERCENT = 99.99
"""Of the values of an activation this many stay within range with ``percentile``; the rest saturates."""

_BINS = 4096
_FIRST_LIMIT = 1e-30  # from here it doubles a hundred times once, and bins stay wide enough for float32


class Amplitude:
    """The magnitudes of one activation over all that was observed."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._limit = _FIRST_LIMIT
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count ``values``, of any shape and finite."""
        magnitudes = np.abs(values).ravel()
        largest = float(magnitudes.max(initial=0.0))
        self.largest = max(self.largest, largest)
        self._widen(largest)
        self._counts += np.histogram(magnitudes, bins=_BINS, range=(0.0, self._limit))[0]

    def percentile(self, percent: float) -> float:
        """A bound that ``percent`` of 100 values do not exceed: the upper edge of a bin, or the largest value."""
        counted = np.cumsum(self._counts)
        bin_index = int(np.searchsorted(counted, percent / 100 * counted[-1]))
        return min(self.largest, (bin_index + 1) * self._limit / _BINS)

    def bound(self, calibration: Calibration) -> float:
        """The magnitude that becomes the largest number of the format."""
        return self.largest if calibration == "max" else self.percentile(PERCENT)

    def _widen(self, largest: float) -> None:
        while self._limit < largest:
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.concatenate([merged, np.zeros(_BINS - merged.size, np.int64)])
            self._limit *= 2


def bounds_of(amplitudes: Mapping[str, Amplitude], calibration: Calibration) -> dict[str, float]:
    """The bound of each activation by name.

    Raises:
        GraphError: an activation that was never anything but zero: nothing says how large it gets.
    """
    silent = sorted(name for name, amplitude in amplitudes.items() if not amplitude.largest > 0)
    if silent:
        raise GraphError(
            "an activation was zero wherever it was observed",
            found=", ".join(silent),
            fix="calibrate on more audio, or keep this product in float32",
        )
    return {name: amplitude.bound(calibration) for name, amplitude in amplitudes.items()}

"""How far a tensor is from its reference, and where along time.

relative = max |r - c| / max |r|        in float64; a NaN or infinity that only one side has counts as beyond any limit

Integers and booleans have to be equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nemotrt.engines.runner import Array

HEAT_WIDTH = 48
_SHADES = "▁▂▃▄▅▆▇█"
_CLEAN, _NOT_FINITE = "·", "!"

State = Literal["same", "beyond", "not finite", "another shape"]


@dataclass(frozen=True)
class TensorDifference:
    """Two tensors that should be one.

    Attributes:
        state: ``same`` within the limit.
        relative: largest difference in units of the largest element; ``None`` where nothing finite can be compared.
        max_abs: largest difference.
        limit: what ``relative`` may be.
        allowed: what ``max_abs`` may be, therefore.
        elements: how many lie beyond, of ``size``.
        rows: the first and the last row of the batch that is concerned.
        frames: the first and the last frame, of ``frame_count``; ``None`` where the tensor has no time axis.
        heat: the tensor from first to last frame, a character for each stretch: ``·`` within the limit, a bar for how
            far beyond, ``!`` for NaN and infinity.
        not_finite: NaN and infinities of the candidate.
    """

    state: State
    relative: float | None
    max_abs: float | None
    limit: float
    allowed: float
    shape: tuple[int, ...]
    reference_shape: tuple[int, ...]
    elements: int = 0
    size: int = 0
    rows: tuple[int, int] | None = None
    frames: tuple[int, int] | None = None
    frame_count: int | None = None
    heat: str = ""
    not_finite: int = 0

    @property
    def differs(self) -> bool:
        """Whether this is another tensor than the reference."""
        return self.state != "same"


def tensor_difference(
    reference: Array, candidate: Array, *, limit: float, frame_axis: int | None = None
) -> TensorDifference:
    """Compare two tensors. ``limit`` is for floats; ``frame_axis`` counts frames, axis 0 rows."""
    exact = reference.dtype.kind != "f" and candidate.dtype.kind != "f"
    limit = 0.0 if exact else limit
    if reference.shape != candidate.shape:
        return TensorDifference("another shape", None, None, limit, 0.0, candidate.shape, reference.shape)
    left, right = reference.astype(np.float64), candidate.astype(np.float64)
    odd = _not_equally_finite(left, right)
    error = _absolute_error(left, right)
    largest = float(np.abs(left[np.isfinite(left)]).max(initial=0.0))
    worst = float(error.max(initial=0.0))
    relative = worst / largest if largest else (0.0 if worst == 0.0 else None)
    beyond = odd | (error > limit * largest)
    state: State = "not finite" if odd.any() else "beyond" if beyond.any() else "same"
    axis = frame_axis if frame_axis is not None and frame_axis < left.ndim else None
    return TensorDifference(
        state=state,
        relative=relative,
        max_abs=worst,
        limit=limit,
        allowed=limit * largest,
        shape=candidate.shape,
        reference_shape=reference.shape,
        elements=int(beyond.sum()),
        size=beyond.size,
        rows=_span(beyond, 0 if left.ndim and axis != 0 else None),
        frames=_span(beyond, axis),
        frame_count=None if axis is None else left.shape[axis],
        heat="" if axis is None or state == "same" else _heat(error, beyond, odd, axis=axis),
        not_finite=int((~np.isfinite(right)).sum()),
    )


def _not_equally_finite(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where one side is finite and the other is not, or both are infinite in other ways."""
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    odd: NDArray[np.bool_] = ~(np.isfinite(left) & np.isfinite(right)) & ~same
    return odd


def _absolute_error(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zero where something is not finite: that is counted apart."""
    with np.errstate(invalid="ignore"):
        error = np.asarray(np.abs(left - right))
    error[~np.isfinite(error)] = 0.0
    return error


def _along(values: NDArray[np.generic], axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(values.ndim) if other != axis)


def _span(beyond: NDArray[np.bool_], axis: int | None) -> tuple[int, int] | None:
    if axis is None:
        return None
    concerned = np.flatnonzero(beyond.any(axis=_along(beyond, axis)))
    return (int(concerned[0]), int(concerned[-1])) if concerned.size else None


def _heat(error: NDArray[np.float64], beyond: NDArray[np.bool_], odd: NDArray[np.bool_], *, axis: int) -> str:
    others, frames = _along(error, axis), error.shape[axis]
    worst: NDArray[np.float64] = error.max(axis=others, initial=0.0, where=beyond)
    is_odd, is_beyond = (frozenset(np.flatnonzero(where.any(axis=others)).tolist()) for where in (odd, beyond))
    scale = float(worst.max(initial=0.0)) or 1.0
    heat = ""
    for stretch in np.array_split(np.arange(frames), min(frames, HEAT_WIDTH)):
        if not is_odd.isdisjoint(stretch.tolist()):
            heat += _NOT_FINITE
        elif is_beyond.isdisjoint(stretch.tolist()):
            heat += _CLEAN
        else:
            heat += _SHADES[round(float(worst[stretch].max()) / scale * (len(_SHADES) - 1))]
    return heat

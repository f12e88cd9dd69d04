"""How close two sequences of frames are.

cosine[t] = <r[:, t], c[:, t]> / (|r[:, t]| |c[:, t]|)        in float64, over valid frames only
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nemotrt.bench.results import PROFILE_BINS, FrameAgreement
from nemotrt.engines.runner import Array
from nemotrt.errors import UsageError


def cosine_by_frame(reference: Array, candidate: Array) -> NDArray[np.float64]:
    """Cosine of each column of two ``[D, T]`` arrays, ``[T]``; NaN where a value is not finite.

    Two zero columns agree (1), a zero column and another one do not (0).
    """
    left, right = reference.astype(np.float64), candidate.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        dot = np.einsum("dt,dt->t", left, right)
        norms = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=0)
        equal = np.all(left == right, axis=0)
        cosine: NDArray[np.float64] = np.where(norms > 0, dot / np.where(norms > 0, norms, 1.0), equal)
        cosine[~(np.isfinite(left).all(axis=0) & np.isfinite(right).all(axis=0))] = np.nan
    return np.clip(cosine, -1.0, 1.0)


def frame_agreement(reference: Array, candidate: Array) -> FrameAgreement:
    """Agreement of two ``[D, T]`` arrays over the frames both have (lengths are checked elsewhere).

    Raises:
        UsageError: the frames have different widths: these are not two versions of one model.
    """
    if reference.shape[0] != candidate.shape[0]:
        raise UsageError(
            "the two outputs cannot be compared frame by frame",
            found=f"{reference.shape[0]} values a frame against {candidate.shape[0]}",
            fix="compare two builds of the same checkpoint, with the same decoder",
        )
    shared = min(reference.shape[1], candidate.shape[1])
    left, right = reference[:, :shared], candidate[:, :shared]
    cosine = cosine_by_frame(left, right)
    finite = cosine[np.isfinite(cosine)]
    with np.errstate(invalid="ignore"):
        difference = np.abs(left.astype(np.float64) - right.astype(np.float64))
    difference = difference[np.isfinite(difference)]
    return FrameAgreement(
        frames=shared,
        min_cosine=float(finite.min()) if finite.size else None,
        p1_cosine=float(np.percentile(finite, 1)) if finite.size else None,
        median_cosine=float(np.median(finite)) if finite.size else None,
        max_abs=float(difference.max()) if difference.size else None,
        profile=_worst_in_bins(cosine),
    )


def _worst_in_bins(cosine: NDArray[np.float64]) -> tuple[float | None, ...]:
    """At most ``PROFILE_BINS`` values along the clip: the lowest of each bin, ``None`` if one is not finite."""
    if not cosine.size:
        return ()
    bins = np.array_split(cosine, min(cosine.size, PROFILE_BINS))
    return tuple(float(worst) if np.isfinite(worst := values.min()) else None for values in bins)

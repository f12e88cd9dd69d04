"""Features from a file, for models that do not take audio: NumPy's ``.npy``, float32 ``[features, frames]``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nemotrt.engines.runner import Array
from nemotrt.errors import AudioError


def read_features(path: Path) -> Array:
    """The array at ``path``, finite float32 of two axes.

    Raises:
        AudioError: no such file, not an ``.npy`` file, or another kind of array.
    """
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise _not_features(path, str(exc)) from exc
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype != np.float32 or not features.size:
        raise _not_features(path, f"{getattr(features, 'dtype', 'no array')} {list(getattr(features, 'shape', []))}")
    if not np.isfinite(features).all():
        raise _not_features(path, "numbers that are not finite")
    return features


def _not_features(path: Path, found: str) -> AudioError:
    return AudioError(
        "not a file of features",
        where=path,
        found=found,
        fix="save float32 [features, frames] with numpy.save: this model takes features, not audio",
    )

"""The features that sherpa-onnx computes: kaldi's frames on NeMo's filter bank."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from nemotrt.bundle import Bundle


def mel_filters(bundle: Bundle) -> NDArray[np.float64]:
    """[F, n_fft / 2 + 1]; the graph holds them twice, for real and imaginary parts."""
    graph = onnx.load(str(bundle.graph_path("preprocessor"))).graph
    (tensor,) = (t for t in graph.initializer if t.name == "filter_bank")
    return numpy_helper.to_array(tensor)[:, : bundle.meta.mel.n_fft // 2 + 1].astype(np.float64)


def kaldi_features(waveform: NDArray[np.float32], bank: NDArray[np.float64]) -> NDArray[np.float32]:
    """Log-mel energies [F,T] as kaldi frames them (``snip_edges=false``): 25 ms around the middle of each 10 ms."""
    window, hop, samples = 400, 160, len(waveform)
    starts = np.arange((samples + hop // 2) // hop) * hop + hop // 2 - window // 2
    places = starts[:, None] + np.arange(window)
    places = np.where(places < 0, -places - 1, places)
    places = np.where(places >= samples, 2 * samples - 1 - places, places)
    frames = waveform[places].astype(np.float64)
    frames -= 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hanning(window), 512)) ** 2
    return np.log(np.maximum(power @ bank.T, np.finfo(np.float32).eps)).T.astype(np.float32)

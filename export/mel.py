"""The log-mel front end as one strided convolution with windowed DFT bases: no STFT operator, any runtime.

    waveform [B,N], waveform_length [B] -> audio_signal [B,F,T], length [B]        T = N // hop

    pre-emphasis   x[n] - p x[n-1], zero beyond each row's length
    spectrum       convolution with 2 (n_fft/2 + 1) filters  w[n] cos, w[n] sin  of stride hop, centred frames
    mel            filter bank applied to the squares of both halves at once (it sums them)
    log, then per-feature mean and variance over the valid frames (unbiased), zero beyond the length

Window and filter bank are the checkpoint's own buffers. NeMo emits one frame more, always beyond the length.
Source: NeMo ``FilterbankFeatures``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nemotrt.bundle import BATCH, FRAMES, SAMPLES, MelSpec
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.weights import FloatArray, Weights

_NORMALIZE_EPSILON = 1e-5  # NeMo adds it to the standard deviation


def mel_front_end(g: GraphBuilder, weights: Weights, spec: MelSpec, *, zero_guard: float) -> None:
    """Write the whole component."""
    waveform = g.input("waveform", "float32", (BATCH, SAMPLES))
    samples = g.input("waveform_length", "int64", (BATCH,))
    length = g.op("Div", samples, g.constant(spec.hop_samples))
    power = _power_spectrum(g, weights, spec, _pre_emphasis(g, spec, waveform, samples))
    bins = spec.n_fft // 2 + 1
    load = weights.expect("preprocessor.featurizer.fb", (1, spec.features, bins))
    bank = g.weight("filter_bank", (spec.features, 2 * bins), lambda: np.tile(load()[0], (1, 2)))
    log_mel = g.op("Log", g.op("Add", g.op("MatMul", bank, power), g.constant(zero_guard)))
    with g.scope("normalize"):
        valid = _valid(g, g.extent(log_mel, 2), length)
        features = _normalized(g, log_mel, valid, length) if spec.normalize == "per_feature" else log_mel
        audio_signal = g.op("Where", valid, features, g.constant(0.0))
    g.output(audio_signal, "audio_signal", "float32", (BATCH, spec.features, FRAMES))
    g.output(length, "length", "int64", (BATCH,))


def _pre_emphasis(g: GraphBuilder, spec: MelSpec, waveform: ir.Value, samples: ir.Value) -> ir.Value:
    """[B,N] -> [B,1,N], zero beyond each row's length."""
    x = g.op("Unsqueeze", waveform, g.constant([1]))
    if spec.preemphasis is not None:
        kernel = np.array([[[-spec.preemphasis, 1.0]]], np.float32)
        x = g.op("Conv", x, g.constant(kernel), pads=[1, 0])
    return g.op("Where", _valid(g, g.extent(waveform, 1), samples), x, g.constant(0.0))


def _valid(g: GraphBuilder, extent: ir.Value, lengths: ir.Value) -> ir.Value:
    """Positions before each row's length, bool [B,1,extent]."""
    positions = g.op("Range", g.constant(0), g.scalar(extent), g.constant(1))
    return g.op("Less", positions, g.op("Unsqueeze", lengths, g.constant([1, 2])))


def _power_spectrum(g: GraphBuilder, weights: Weights, spec: MelSpec, x: ir.Value) -> ir.Value:
    """[B,1,N] -> squares of real and imaginary parts, [B, 2 bins, N // hop].

    Frame t is centred on sample t * hop: ``window / 2`` zeros before the first; NeMo pads by ``n_fft / 2`` and centres
    the window in the transform, which is the same frame. Where the hop is longer than half a window, zeros make the
    filters reach as far as the hop: there are no negative pads.
    """
    bins, window = spec.n_fft // 2 + 1, spec.window_samples
    load = weights.expect("preprocessor.featurizer.window", (window,))
    left = window // 2
    span = max(window, left + spec.hop_samples)

    def filters() -> FloatArray:
        return np.pad(dft_bases(load(), spec.n_fft), ((0, 0), (0, span - window)))[:, None]

    basis = g.weight("dft", (2 * bins, 1, span), filters)
    spectrum = g.op("Conv", x, basis, strides=[spec.hop_samples], pads=[left, span - left - spec.hop_samples])
    return g.op("Mul", spectrum, spectrum)


def dft_bases(window: FloatArray, n_fft: int) -> FloatArray:
    """Windowed cosines then sines of the ``n_fft / 2 + 1`` frequencies, float32 [2 bins, len(window)]."""
    samples = np.arange(len(window), dtype=np.float64)
    angles = 2 * np.pi / n_fft * np.outer(np.arange(n_fft // 2 + 1), samples)
    return (np.concatenate([np.cos(angles), np.sin(angles)]) * window).astype(np.float32)


def _normalized(g: GraphBuilder, x: ir.Value, valid: ir.Value, length: ir.Value) -> ir.Value:
    """Zero mean and unit variance per row and feature over the valid frames; a single frame gives zeros."""
    zero, axis = g.constant(0.0), g.constant([2])
    count = g.op("Cast", g.op("Unsqueeze", length, g.constant([1, 2])), to=ir.DataType.FLOAT)
    at_least_one = g.op("Max", count, g.constant(1.0))
    mean = g.op("Div", g.op("ReduceSum", g.op("Where", valid, x, zero), axis), at_least_one)
    centred = g.op("Where", valid, g.op("Sub", x, mean), zero)
    free = g.op("Max", g.op("Sub", count, g.constant(1.0)), g.constant(1.0))
    variance = g.op("Div", g.op("ReduceSum", g.op("Mul", centred, centred), axis), free)
    deviation = g.op("Add", g.op("Sqrt", variance), g.constant(_NORMALIZE_EPSILON))
    return g.op("Div", centred, deviation)

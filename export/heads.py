"""What follows the encoder: CTC head, RNNT predictor and joint (TDT: the same joint with durations behind).

    ctc        logprobs [B,T',V+1]
    predictor  y [B,U], h, c [L,B,H] -> g [B,H,U], h_out, c_out
    joint      encoder_output [B,D,T], predictor_output [B,H,U] -> joint_output [B,T,U,W]   raw logits
    decoder_joint  both in one, as NeMo exports them

Source: NeMo ``ConvASRDecoder``, ``RNNTDecoder``, ``RNNTJoint``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nemotrt.bundle import BATCH, JOINT_FRAMES, TOKENS, TransducerSpec
from nemotrt.export.config import TransducerConfig
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.weights import FloatArray, Loader, Weights

_ACTIVATIONS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}


def ctc_head(g: GraphBuilder, weights: Weights, x: ir.Value, *, prefix: str, d_model: int, width: int) -> ir.Value:
    """[B,T,D] -> log probabilities [B,T,width]."""
    source = f"{prefix}.decoder_layers.0"
    load = weights.expect(f"{source}.weight", (width, d_model, 1))
    with g.scope("ctc"):
        matrix = g.weight("weight", (d_model, width), lambda: load()[:, :, 0].T)
        bias = g.weight("bias", (width,), weights.expect(f"{source}.bias", (width,)))
        return g.op("LogSoftmax", g.linear(x, matrix, bias), axis=-1)


def predictor(g: GraphBuilder, weights: Weights, spec: TransducerSpec, *, vocabulary_size: int) -> None:
    """Write the whole component."""
    y = g.input("y", "int64", (BATCH, TOKENS))
    states = _state_inputs(g, spec, ("h", "c"))
    predicted = _predict(g, weights, spec, y, states, vocabulary_size=vocabulary_size)
    channels_first = g.op("Transpose", predicted.output, perm=[1, 2, 0])
    g.output(channels_first, "g", "float32", (BATCH, spec.predictor_hidden, TOKENS))
    _state_outputs(g, spec, predicted, ("h_out", "c_out"))


def joint(g: GraphBuilder, weights: Weights, config: TransducerConfig, *, d_model: int, vocabulary_size: int) -> None:
    """Write the whole component. The logits stay raw: tokens and durations are two distributions, not one."""
    encoder_output = g.input("encoder_output", "float32", (BATCH, d_model, JOINT_FRAMES))
    predictor_output = g.input("predictor_output", "float32", (BATCH, config.spec.predictor_hidden, TOKENS))
    width = vocabulary_size + 1 + len(config.spec.durations)
    by_time = [g.op("Transpose", value, perm=[0, 2, 1]) for value in (encoder_output, predictor_output)]
    logits = _join(g, weights, config, *by_time, d_model=d_model, width=width)
    g.output(logits, "joint_output", "float32", (BATCH, JOINT_FRAMES, TOKENS, width))


def decoder_joint(
    g: GraphBuilder, weights: Weights, config: TransducerConfig, *, d_model: int, vocabulary_size: int
) -> None:
    """Write predictor and joint as one component, with the names and types of NeMo's own export of the two."""
    spec = config.spec
    width = vocabulary_size + 1 + len(spec.durations)
    encoder_outputs = g.input("encoder_outputs", "float32", (BATCH, d_model, JOINT_FRAMES))
    targets = g.input("targets", "int32", (BATCH, TOKENS))
    target_length = g.input("target_length", "int32", (BATCH,))
    states = _state_inputs(g, spec, ("input_states_1", "input_states_2"))
    predicted = _predict(g, weights, spec, targets, states, vocabulary_size=vocabulary_size)
    encoded = g.op("Transpose", encoder_outputs, perm=[0, 2, 1])
    by_row = g.op("Transpose", predicted.output, perm=[1, 0, 2])
    logits = _join(g, weights, config, encoded, by_row, d_model=d_model, width=width)
    g.output(logits, "outputs", "float32", (BATCH, JOINT_FRAMES, TOKENS, width))
    g.output(g.op("Identity", target_length), "prednet_lengths", "int32", (BATCH,))
    _state_outputs(g, spec, predicted, ("output_states_1", "output_states_2"))


@dataclass(frozen=True)
class _Predicted:
    """``output`` [U,B,H]; ``h`` and ``c`` by layer, each [1,B,H]."""

    output: ir.Value
    h: tuple[ir.Value, ...]
    c: tuple[ir.Value, ...]


def _predict(
    g: GraphBuilder,
    weights: Weights,
    spec: TransducerSpec,
    y: ir.Value,
    states: tuple[ir.Value, ir.Value],
    *,
    vocabulary_size: int,
) -> _Predicted:
    """Embedding and LSTM layers, one ONNX LSTM each; ``y`` [B,U], ``states`` [L,B,H]."""
    hidden, layers = spec.predictor_hidden, spec.predictor_layers
    rows = (vocabulary_size + 1, hidden)
    table = g.weight("embed.weight", rows, weights.expect("decoder.prediction.embed.weight", rows))
    x = g.op("Transpose", g.op("Gather", table, y, axis=0), perm=[1, 0, 2])
    h, c = (_per_layer(g, state, layers) for state in states)
    h_out, c_out = [], []
    for layer in range(layers):
        with g.scope(f"lstm.{layer}"):
            x, h_next, c_next = _lstm(g, weights, x, h[layer], c[layer], layer=layer, hidden=hidden)
        h_out.append(h_next)
        c_out.append(c_next)
    return _Predicted(x, tuple(h_out), tuple(c_out))


def _join(
    g: GraphBuilder,
    weights: Weights,
    config: TransducerConfig,
    encoded: ir.Value,
    predicted: ir.Value,
    *,
    d_model: int,
    width: int,
) -> ir.Value:
    """``encoded`` [B,T,D], ``predicted`` [B,U,H] -> logits [B,T,U,width]."""
    hidden, inner = config.spec.predictor_hidden, config.joint_hidden
    bias_parts = [weights.expect(f"joint.{part}.bias", (inner,)) for part in ("enc", "pred")]
    bias = g.weight("hidden.bias", (inner,), lambda: bias_parts[0]() + bias_parts[1]())
    from_encoder = g.linear(encoded, joint_matrix(g, weights, "enc", d_model, inner), bias)
    from_predictor = g.linear(predicted, joint_matrix(g, weights, "pred", hidden, inner), None)
    total = g.op(
        "Add",
        g.op("Unsqueeze", from_encoder, g.constant([2])),
        g.op("Unsqueeze", from_predictor, g.constant([1])),
    )
    active = joint_activation(g, config, total)
    out_bias = g.weight("out.bias", (width,), weights.expect(f"joint.{config.joint_out}.bias", (width,)))
    return g.linear(active, joint_matrix(g, weights, config.joint_out, inner, width), out_bias)


def _state_inputs(g: GraphBuilder, spec: TransducerSpec, names: tuple[str, str]) -> tuple[ir.Value, ir.Value]:
    h, c = (g.input(name, "float32", _state_shape(spec)) for name in names)
    return h, c


def _state_outputs(g: GraphBuilder, spec: TransducerSpec, predicted: _Predicted, names: tuple[str, str]) -> None:
    for name, layers in zip(names, (predicted.h, predicted.c), strict=True):
        stacked = layers[0] if len(layers) == 1 else g.op("Concat", *layers, axis=0)
        g.output(stacked, name, "float32", _state_shape(spec))


def _state_shape(spec: TransducerSpec) -> tuple[int | str, ...]:
    return spec.predictor_layers, BATCH, spec.predictor_hidden


def joint_activation(g: GraphBuilder, config: TransducerConfig, x: ir.Value) -> ir.Value:
    """The joint's own non-linearity."""
    return g.op(_ACTIVATIONS[config.joint_activation], x)


def joint_matrix(g: GraphBuilder, weights: Weights, part: str, d_in: int, d_out: int) -> ir.Value:
    """A matrix of the joint, [in,out]."""
    load = weights.expect(f"joint.{part}.weight", (d_out, d_in))
    return g.weight(f"{part}.weight", (d_in, d_out), lambda: load().T)


def _per_layer(g: GraphBuilder, state: ir.Value, layers: int) -> list[ir.Value]:
    return [state] if layers == 1 else list(g.multi("Split", state, outputs=layers, axis=0, num_outputs=layers))


def _lstm(
    g: GraphBuilder, weights: Weights, x: ir.Value, h: ir.Value, c: ir.Value, *, layer: int, hidden: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """``x`` [U,B,H], ``h``, ``c`` [1,B,H] -> output [U,B,H] and the next states."""
    source = "decoder.prediction.dec_rnn.lstm"
    matrices = {kind: weights.expect(f"{source}.weight_{kind}_l{layer}", (4 * hidden, hidden)) for kind in ("ih", "hh")}
    biases = {kind: weights.expect(f"{source}.bias_{kind}_l{layer}", (4 * hidden,)) for kind in ("ih", "hh")}
    w, r = (_gate_matrix(g, f"{kind}.weight", load, hidden) for kind, load in matrices.items())
    bias = g.weight(
        "bias",
        (1, 8 * hidden),
        lambda: np.concatenate([_onnx_gates(load()) for load in biases.values()])[None],
    )
    y, h_next, c_next = g.multi("LSTM", x, w, r, bias, None, h, c, outputs=3, hidden_size=hidden)
    return g.op("Squeeze", y, g.constant([1])), h_next, c_next


def _gate_matrix(g: GraphBuilder, name: str, load: Loader, hidden: int) -> ir.Value:
    return g.weight(name, (1, 4 * hidden, hidden), lambda: _onnx_gates(load())[None])


def _onnx_gates(stacked: FloatArray) -> FloatArray:
    """torch stacks the gates input, forget, cell, output; ONNX input, output, forget, cell."""
    i, f, cell, o = np.split(stacked, 4)
    return np.concatenate([i, o, f, cell])

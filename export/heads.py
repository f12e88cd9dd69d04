"""What follows the encoder: CTC head, RNNT predictor and joint (TDT: the same joint with durations behind).

    ctc        logprobs [B,T',V+1]
    predictor  y [B,U], h, c [L,B,H] -> g [B,H,U], h_out, c_out
    joint      encoder_output [B,D,T], predictor_output [B,H,U] -> joint_output [B,T,U,W]   raw logits

Source: NeMo ``ConvASRDecoder``, ``RNNTDecoder``, ``RNNTJoint``.
"""

from __future__ import annotations

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
    """Write the whole component: embedding and LSTM layers, one ONNX LSTM each."""
    hidden, layers = spec.predictor_hidden, spec.predictor_layers
    state_shape = (layers, BATCH, hidden)
    y = g.input("y", "int64", (BATCH, TOKENS))
    states = {name: g.input(name, "float32", state_shape) for name in ("h", "c")}
    rows = (vocabulary_size + 1, hidden)
    table = g.weight("embed.weight", rows, weights.expect("decoder.prediction.embed.weight", rows))
    x = g.op("Transpose", g.op("Gather", table, y, axis=0), perm=[1, 0, 2])
    h, c = (_per_layer(g, states[name], layers) for name in ("h", "c"))
    h_out, c_out = [], []
    for layer in range(layers):
        with g.scope(f"lstm.{layer}"):
            x, h_next, c_next = _lstm(g, weights, x, h[layer], c[layer], layer=layer, hidden=hidden)
        h_out.append(h_next)
        c_out.append(c_next)
    g.output(g.op("Transpose", x, perm=[1, 2, 0]), "g", "float32", (BATCH, hidden, TOKENS))
    for name, parts in (("h_out", h_out), ("c_out", c_out)):
        g.output(parts[0] if layers == 1 else g.op("Concat", *parts, axis=0), name, "float32", state_shape)


def joint(g: GraphBuilder, weights: Weights, config: TransducerConfig, *, d_model: int, vocabulary_size: int) -> None:
    """Write the whole component. The logits stay raw: tokens and durations are two distributions, not one."""
    hidden, inner = config.spec.predictor_hidden, config.joint_hidden
    width = vocabulary_size + 1 + len(config.spec.durations)
    encoder_output = g.input("encoder_output", "float32", (BATCH, d_model, JOINT_FRAMES))
    predictor_output = g.input("predictor_output", "float32", (BATCH, hidden, TOKENS))
    bias_parts = [weights.expect(f"joint.{part}.bias", (inner,)) for part in ("enc", "pred")]
    bias = g.weight("hidden.bias", (inner,), lambda: bias_parts[0]() + bias_parts[1]())
    from_encoder = g.linear(_time_major(g, encoder_output), _matrix(g, weights, "enc", d_model, inner), bias)
    from_predictor = g.linear(_time_major(g, predictor_output), _matrix(g, weights, "pred", hidden, inner), None)
    total = g.op(
        "Add",
        g.op("Unsqueeze", from_encoder, g.constant([2])),
        g.op("Unsqueeze", from_predictor, g.constant([1])),
    )
    active = g.op(_ACTIVATIONS[config.joint_activation], total)
    out_bias = g.weight("out.bias", (width,), weights.expect(f"joint.{config.joint_out}.bias", (width,)))
    logits = g.linear(active, _matrix(g, weights, config.joint_out, inner, width), out_bias)
    g.output(logits, "joint_output", "float32", (BATCH, JOINT_FRAMES, TOKENS, width))


def _time_major(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.op("Transpose", x, perm=[0, 2, 1])


def _matrix(g: GraphBuilder, weights: Weights, part: str, d_in: int, d_out: int) -> ir.Value:
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

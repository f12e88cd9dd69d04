"""Transducer decoding one step at a time: no loop and no LSTM operator, so that a step can be replayed as a CUDA graph.

    rnnt_step    y_prev [B], h, c [L,B,H], enc_t [B,D] -> logits [B,W], h_out, c_out
    greedy_step  encoder_output [B,D,T], encoded_lengths [B], and the state of a greedy search -> its next state

The state of a search, by row: ``frame`` it is at, ``symbols`` it emitted there, ``y`` its last token (blank at first),
``h`` and ``c`` before that token. A step predicts from ``y``, joins with the frame, takes the best token and duration,
and moves on; ``token`` is what it emitted, blank for nothing. A row that is past its length stays as it is.

    token is blank  -> frame += max(duration, 1)
    otherwise       -> frame += duration, or one frame after ``max_symbols`` tokens on a frame that it does not leave

The embedding and the first layer's input product are one table: ``embed @ W_ih^T + b``, looked up by token.
Source: NeMo's batched greedy decoders; the rules are those of ``nemotrt.engines.decoding_transducer``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nemotrt.bundle import BATCH, ENCODER_FRAMES, TransducerSpec
from nemotrt.export.config import TransducerConfig
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.heads import joint_activation, joint_matrix
from nemotrt.export.weights import FloatArray, Weights

_LSTM = "decoder.prediction.dec_rnn.lstm"


@dataclass(frozen=True)
class StepModel:
    """Predictor and joint of one checkpoint, for one step."""

    config: TransducerConfig
    d_model: int
    vocabulary_size: int

    @property
    def spec(self) -> TransducerSpec:
        """The contract's part of the config."""
        return self.config.spec

    @property
    def pieces(self) -> int:
        """Token logits: vocabulary and blank."""
        return self.vocabulary_size + 1

    @property
    def state_shape(self) -> tuple[int | str, ...]:
        """Of ``h`` and ``c``."""
        return self.spec.predictor_layers, BATCH, self.spec.predictor_hidden


@dataclass(frozen=True)
class _Stepped:
    """``logits`` [B,W], ``h``, ``c`` [L,B,H]."""

    logits: ir.Value
    h: ir.Value
    c: ir.Value


def rnnt_step(g: GraphBuilder, weights: Weights, model: StepModel) -> None:
    """Write the whole component. Which row keeps its state (blank) is for the caller to choose."""
    y = g.input("y_prev", "int64", (BATCH,))
    h, c = (g.input(name, "float32", model.state_shape) for name in ("h", "c"))
    frame = g.input("enc_t", "float32", (BATCH, model.d_model))
    stepped = _step(g, weights, model, frame=frame, y=y, h=h, c=c)
    width = model.pieces + len(model.spec.durations)
    g.output(stepped.logits, "logits", "float32", (BATCH, width))
    g.output(stepped.h, "h_out", "float32", model.state_shape)
    g.output(stepped.c, "c_out", "float32", model.state_shape)


def greedy_step(g: GraphBuilder, weights: Weights, model: StepModel) -> None:
    """Write the whole component."""
    encoder_output = g.input("encoder_output", "float32", (BATCH, model.d_model, ENCODER_FRAMES))
    lengths, frame, symbols, y = (
        g.input(name, "int64", (BATCH,)) for name in ("encoded_lengths", "frame", "symbols", "y")
    )
    h, c = (g.input(name, "float32", model.state_shape) for name in ("h", "c"))
    stepped = _step(g, weights, model, frame=_frame_of_row(g, model, encoder_output, frame), y=y, h=h, c=c)
    best, duration = _best(g, model, stepped.logits)
    is_active = g.op("Less", frame, lengths)
    blank = g.constant(model.vocabulary_size)
    emitted = g.op("And", is_active, g.op("Not", g.op("Equal", best, blank)))
    frame_out, symbols_out = _advanced(g, model, frame, symbols, duration, emitted=emitted, is_active=is_active)
    g.output(g.op("Where", emitted, best, blank), "token", "int64", (BATCH,))
    g.output(frame_out, "frame_out", "int64", (BATCH,))
    g.output(symbols_out, "symbols_out", "int64", (BATCH,))
    g.output(g.op("Where", emitted, best, y), "y_out", "int64", (BATCH,))
    by_row = g.op("Unsqueeze", emitted, g.constant([0, 2]))
    for name, new, old in (("h_out", stepped.h, h), ("c_out", stepped.c, c)):
        g.output(g.op("Where", by_row, new, old), name, "float32", model.state_shape)


def _frame_of_row(g: GraphBuilder, model: StepModel, encoder_output: ir.Value, frame: ir.Value) -> ir.Value:
    """Each row's frame, [B,D]; the last one for a row that is past it."""
    last = g.op("Sub", g.extent(encoder_output, 2), g.constant([1]))
    index = g.op("Unsqueeze", g.op("Min", frame, last), g.constant([1, 2]))
    by_channel = g.op("Expand", index, g.constant([1, model.d_model, 1]))
    return g.op("Squeeze", g.op("GatherElements", encoder_output, by_channel, axis=2), g.constant([2]))


def _best(g: GraphBuilder, model: StepModel, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Best token and its duration (RNNT: 0), int64 [B]; of equal logits the lowest index."""
    durations = model.spec.durations
    if not durations:
        token = g.op("ArgMax", logits, axis=1, keepdims=0)
        return token, g.op("Sub", token, token)
    end = g.constant([model.pieces])
    token = g.op("ArgMax", g.slice(logits, axis=1, end=end), axis=1, keepdims=0)
    index = g.op("ArgMax", g.slice(logits, axis=1, start=model.pieces), axis=1, keepdims=0)
    return token, g.op("Gather", g.constant(list(durations)), index, axis=0)


def _advanced(
    g: GraphBuilder,
    model: StepModel,
    frame: ir.Value,
    symbols: ir.Value,
    duration: ir.Value,
    *,
    emitted: ir.Value,
    is_active: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    zero, one = g.constant(0), g.constant(1)
    counted = g.op("Add", symbols, g.op("Cast", emitted, to=ir.DataType.INT64))
    is_full = g.op("GreaterOrEqual", counted, g.constant(model.spec.max_symbols_per_frame))
    must_move = g.op("Or", g.op("Not", emitted), is_full)
    wanted = g.op("Where", must_move, g.op("Max", duration, one), duration)
    steps = g.op("Where", is_active, wanted, zero)
    symbols_out = g.op("Where", g.op("Greater", steps, zero), zero, counted)
    return g.op("Add", frame, steps), symbols_out


def _step(
    g: GraphBuilder, weights: Weights, model: StepModel, *, frame: ir.Value, y: ir.Value, h: ir.Value, c: ir.Value
) -> _Stepped:
    layers = model.spec.predictor_layers
    inputs: ir.Value | None = None
    h_out, c_out = [], []
    for layer in range(layers):
        with g.scope(f"lstm.{layer}"):
            h_in, c_in = (g.op("Gather", state, g.constant(layer), axis=0) for state in (h, c))
            gates = _gates(g, weights, model, layer, y=y, x=inputs, h=h_in)
            inputs, cell = _cell(g, gates, c_in)
        h_out.append(g.op("Unsqueeze", inputs, g.constant([0])))
        c_out.append(g.op("Unsqueeze", cell, g.constant([0])))
    if inputs is None:
        raise ValueError("a predictor has at least one layer")
    logits = _joined(g, weights, model, frame=frame, predicted=inputs)
    stacked = [parts[0] if layers == 1 else g.op("Concat", *parts, axis=0) for parts in (h_out, c_out)]
    return _Stepped(logits, *stacked)


def _gates(
    g: GraphBuilder, weights: Weights, model: StepModel, layer: int, *, y: ir.Value, x: ir.Value | None, h: ir.Value
) -> ir.Value:
    """[B,4H], in torch's order. ``x`` [B,H] is the layer below, ``None`` for the first one."""
    hidden, rows = model.spec.predictor_hidden, model.pieces
    w, r = (weights.expect(f"{_LSTM}.weight_{kind}_l{layer}", (4 * hidden, hidden)) for kind in ("ih", "hh"))
    biases = [weights.expect(f"{_LSTM}.bias_{kind}_l{layer}", (4 * hidden,)) for kind in ("ih", "hh")]
    recurrent = g.op("MatMul", h, g.weight("hh.weight", (hidden, 4 * hidden), lambda: r().T))
    if x is not None:
        product = g.op("MatMul", x, g.weight("ih.weight", (hidden, 4 * hidden), lambda: w().T))
        bias = g.weight("bias", (4 * hidden,), lambda: biases[0]() + biases[1]())
        return g.op("Add", g.op("Add", product, recurrent), bias)
    embedding = weights.expect("decoder.prediction.embed.weight", (rows, hidden))

    def table() -> FloatArray:
        return np.asarray(embedding() @ w().T + (biases[0]() + biases[1]()), np.float32)

    return g.op("Add", g.op("Gather", g.weight("embedded", (rows, 4 * hidden), table), y, axis=0), recurrent)


def _cell(g: GraphBuilder, gates: ir.Value, c: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``h`` and ``c`` [B,H] of an LSTM whose gates are stacked input, forget, cell, output."""
    into, forget, new, out = g.multi("Split", gates, outputs=4, axis=1, num_outputs=4)
    kept = g.op("Mul", g.op("Sigmoid", forget), c)
    cell = g.op("Add", kept, g.op("Mul", g.op("Sigmoid", into), g.op("Tanh", new)))
    return g.op("Mul", g.op("Sigmoid", out), g.op("Tanh", cell)), cell


def _joined(g: GraphBuilder, weights: Weights, model: StepModel, *, frame: ir.Value, predicted: ir.Value) -> ir.Value:
    """``frame`` [B,D], ``predicted`` [B,H] -> logits [B,W]."""
    inner, width = model.config.joint_hidden, model.pieces + len(model.spec.durations)
    parts = [weights.expect(f"joint.{part}.bias", (inner,)) for part in ("enc", "pred")]
    bias = g.weight("hidden.bias", (inner,), lambda: parts[0]() + parts[1]())
    from_encoder = g.op("MatMul", frame, joint_matrix(g, weights, "enc", model.d_model, inner))
    from_predictor = g.op("MatMul", predicted, joint_matrix(g, weights, "pred", model.spec.predictor_hidden, inner))
    total = g.op("Add", g.op("Add", from_encoder, from_predictor), bias)
    active = joint_activation(g, model.config, total)
    out_bias = g.weight("out.bias", (width,), weights.expect(f"joint.{model.config.joint_out}.bias", (width,)))
    return g.linear(active, joint_matrix(g, weights, model.config.joint_out, inner, width), out_bias)

"""The components of a model, as graphs: which ones it can have, and what each is called at its edges.

preprocessor                               every model that takes audio
encoder, predictor, joint                  a transducer: what nemotrt decodes with
ctc                                        a CTC head: the whole model, encoder and head
rnnt_step, greedy_step                     one step of decoding: predictor and joint; with the search's state and choice
encoder_streaming                          a cache-aware encoder, chunk by chunk
encoder_nomask, ctc_nomask                 the same for rows of one length, without masks: the weights are shared
ctc_head                                   the CTC head alone, for the frames that encoder_streaming gives
decoder_joint                              predictor and joint in one, as NeMo exports them, for other clients
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from nemotrt.bundle import (
    BATCH,
    ENCODER_FRAMES,
    FRAMES,
    JOINT_FRAMES,
    SAMPLES,
    TOKENS,
    ComponentName,
    StreamingSpec,
    frame_seconds_of,
)
from nemotrt.errors import UsageError
from nemotrt.export.config import ModelConfig
from nemotrt.export.encoder import Encoded, encoder
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.heads import ctc_head, decoder_joint, joint, predictor
from nemotrt.export.mel import mel_front_end
from nemotrt.export.steps import StepModel, greedy_step, rnnt_step
from nemotrt.export.streaming import streaming_encoder
from nemotrt.export.weights import Weights

VARIANT_OF: Mapping[ComponentName, ComponentName] = MappingProxyType({"encoder_nomask": "encoder", "ctc_nomask": "ctc"})
"""Components that are another graph over the weights of a component, and need that component beside them."""

_Writer = Callable[[GraphBuilder, Weights], None]


def fixed_axes(config: ModelConfig, seconds: float) -> dict[str, int]:
    """The size of every axis for one clip of ``seconds``, decoded a frame and a token at a time.

    Raises:
        UsageError: the model takes no clip of that length.
    """
    spec = config.encoder.spec
    frames = round(seconds / frame_seconds_of(config.mel))
    if not 1 <= frames <= spec.max_feature_frames:
        longest = spec.max_feature_frames * frame_seconds_of(config.mel)
        raise UsageError(
            "a clip of this length does not fit the model",
            found=f"{seconds:g} s",
            fix=f"choose from {frame_seconds_of(config.mel):g} to {longest:g} s",
        )
    return {
        BATCH: 1,
        SAMPLES: frames * (1 if config.mel is None else config.mel.hop_samples),
        FRAMES: frames,
        ENCODER_FRAMES: spec.encoder_frames_from_feature_frames(frames),
        JOINT_FRAMES: 1,
        TOKENS: 1,
    }


def component_writers(config: ModelConfig, streaming: StreamingSpec | None) -> Mapping[ComponentName, _Writer]:
    """What a model of this config can be exported as: functions that write a component into an empty graph.

    They check the weights they name (``WeightsError``), and read them when the graph is saved.
    ``streaming`` is ``None`` for an encoder that cannot be streamed.
    """
    writers: dict[ComponentName, _Writer] = {}
    front_end, transducer, ctc_prefix = config.front_end, config.transducer, config.ctc_prefix
    if front_end is not None:
        mel, zero_guard = front_end.mel, front_end.zero_guard
        writers["preprocessor"] = lambda g, weights: mel_front_end(g, weights, mel, zero_guard=zero_guard)
    if transducer is not None:
        d_model, pieces = config.encoder.spec.d_model, config.blank_id
        writers["encoder"] = lambda g, weights: _encoder(g, weights, config, masked=True)
        writers["encoder_nomask"] = lambda g, weights: _encoder(g, weights, config, masked=False)
        writers["predictor"] = lambda g, weights: predictor(g, weights, transducer.spec, vocabulary_size=pieces)
        writers["joint"] = lambda g, weights: joint(g, weights, transducer, d_model=d_model, vocabulary_size=pieces)
        writers["decoder_joint"] = lambda g, weights: decoder_joint(
            g, weights, transducer, d_model=d_model, vocabulary_size=pieces
        )
        step = StepModel(transducer, d_model=d_model, vocabulary_size=pieces)
        writers["rnnt_step"] = lambda g, weights: rnnt_step(g, weights, step)
        writers["greedy_step"] = lambda g, weights: greedy_step(g, weights, step)
    if ctc_prefix is not None:
        writers["ctc"] = lambda g, weights: _ctc(g, weights, config, prefix=ctc_prefix, masked=True)
        writers["ctc_nomask"] = lambda g, weights: _ctc(g, weights, config, prefix=ctc_prefix, masked=False)
        writers["ctc_head"] = lambda g, weights: _ctc_head(g, weights, config, prefix=ctc_prefix)
    if streaming is not None:
        writers["encoder_streaming"] = lambda g, weights: streaming_encoder(g, weights, config.encoder, streaming)
    return writers


def _encoder(g: GraphBuilder, weights: Weights, config: ModelConfig, *, masked: bool) -> None:
    encoded = encoder(g, weights, config.encoder, masked=masked)
    channels_first = g.op("Transpose", encoded.x, perm=[0, 2, 1])
    g.output(channels_first, "encoder_output", "float32", (BATCH, config.encoder.spec.d_model, ENCODER_FRAMES))
    _lengths(g, encoded)


def _ctc(g: GraphBuilder, weights: Weights, config: ModelConfig, *, prefix: str, masked: bool) -> None:
    encoded = encoder(g, weights, config.encoder, masked=masked)
    _log_probabilities(g, weights, config, encoded.x, prefix=prefix)
    _lengths(g, encoded)


def _lengths(g: GraphBuilder, encoded: Encoded) -> None:
    if encoded.lengths is not None:
        g.output(encoded.lengths, "encoded_lengths", "int64", (BATCH,))


def _ctc_head(g: GraphBuilder, weights: Weights, config: ModelConfig, *, prefix: str) -> None:
    shape = (BATCH, config.encoder.spec.d_model, ENCODER_FRAMES)
    by_time = g.op("Transpose", g.input("encoder_output", "float32", shape), perm=[0, 2, 1])
    _log_probabilities(g, weights, config, by_time, prefix=prefix)


def _log_probabilities(g: GraphBuilder, weights: Weights, config: ModelConfig, x: ir.Value, *, prefix: str) -> None:
    """``x`` [B,T,D]."""
    width = config.blank_id + 1
    logprobs = ctc_head(g, weights, x, prefix=prefix, d_model=config.encoder.spec.d_model, width=width)
    g.output(logprobs, "logprobs", "float32", (BATCH, ENCODER_FRAMES, width))

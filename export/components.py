"""The components of a model, as graphs: which ones it has, and what each is called at its edges.

preprocessor, encoder, predictor, joint    a transducer
preprocessor, ctc                          a CTC model (``ctc`` is the whole model: encoder and head)
all five                                   a hybrid
"""

from __future__ import annotations

from nemotrt.bundle import BATCH, ENCODER_FRAMES, ComponentName
from nemotrt.export.config import ModelConfig
from nemotrt.export.encoder import encoder
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.heads import ctc_head, joint, predictor
from nemotrt.export.mel import mel_front_end
from nemotrt.export.streaming import streaming_encoder
from nemotrt.export.weights import Weights


def component_graphs(weights: Weights, config: ModelConfig) -> dict[ComponentName, GraphBuilder]:
    """Every component of the model; weights are checked now and read when a graph is saved.

    Raises:
        WeightsError: the weights do not fit the config.
    """
    graphs: dict[ComponentName, GraphBuilder] = {"preprocessor": _preprocessor(weights, config)}
    if config.transducer is not None:
        d_model, vocabulary_size = config.encoder.spec.d_model, config.blank_id
        graphs["encoder"] = _encoder(weights, config)
        graphs["predictor"] = GraphBuilder("predictor")
        predictor(graphs["predictor"], weights, config.transducer.spec, vocabulary_size=vocabulary_size)
        graphs["joint"] = GraphBuilder("joint")
        joint(graphs["joint"], weights, config.transducer, d_model=d_model, vocabulary_size=vocabulary_size)
    if config.streaming is not None:
        graphs["encoder_streaming"] = GraphBuilder("encoder_streaming")
        streaming_encoder(graphs["encoder_streaming"], weights, config.encoder, config.streaming)
    if config.ctc_prefix is not None:
        graphs["ctc"] = _ctc(weights, config, prefix=config.ctc_prefix)
    return graphs


def _preprocessor(weights: Weights, config: ModelConfig) -> GraphBuilder:
    g = GraphBuilder("preprocessor")
    mel_front_end(g, weights, config.mel, zero_guard=config.mel_zero_guard)
    return g


def _encoder(weights: Weights, config: ModelConfig) -> GraphBuilder:
    g = GraphBuilder("encoder")
    encoded = encoder(g, weights, config.encoder)
    channels_first = g.op("Transpose", encoded.x, perm=[0, 2, 1])
    g.output(channels_first, "encoder_output", "float32", (BATCH, config.encoder.spec.d_model, ENCODER_FRAMES))
    g.output(encoded.lengths, "encoded_lengths", "int64", (BATCH,))
    return g


def _ctc(weights: Weights, config: ModelConfig, *, prefix: str) -> GraphBuilder:
    g = GraphBuilder("ctc")
    encoded = encoder(g, weights, config.encoder)
    width = config.blank_id + 1
    d_model = config.encoder.spec.d_model
    logprobs = ctc_head(g, weights, encoded.x, prefix=prefix, d_model=d_model, width=width)
    g.output(logprobs, "logprobs", "float32", (BATCH, ENCODER_FRAMES, width))
    g.output(encoded.lengths, "encoded_lengths", "int64", (BATCH,))
    return g

"""The streaming encoder as sherpa-onnx's online recognizers run it, with the CTC head behind it for CTC.

    audio_signal [B,F,W], length [B]
    cache_last_channel [B,L,C,D], cache_last_time [B,1,1,N], cache_last_channel_len [B]
        -> outputs [B,D,T] or logprobs [B,T,V+1], encoded_lengths [B], the next caches

sherpa-onnx's k-th window begins at feature frame ``factor T k``, the first one with the audio. Ours begin two encoder
frames earlier, the first one before the audio. NeMo's export drops two encoder frames of every window, so that in
sherpa-onnx it never hears the first two of a stream. Here the earlier feature frames are kept from one window to the
next, in the cache of the convolutions, whose sizes sherpa-onnx takes from the metadata:

    cache_last_time    L D (K-1) numbers of the convolutions, then F * 2 factor of the feature frames

So the graph is the bundle's own, with its start mask, and what sherpa-onnx streams equals the offline encoder. The
price: every encoder frame comes two frames later, 160 ms for a factor of 8.

Source: sherpa-onnx 2.0 (``online-transducer-nemo-model.cc``, ``online-nemo-ctc-model.cc``) and its NeMo export scripts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nemotrt.bundle import BATCH, Bundle, Decoder
from nemotrt.errors import UsageError
from nemotrt.export.graph import GraphBuilder

_COMPONENT, _CTC_HEAD = "encoder_streaming", "ctc_head"


@dataclass(frozen=True)
class SherpaStream:
    """How sherpa-onnx feeds a streaming encoder.

    Attributes:
        window, chunk: feature frames of a window, and from one window to the next.
        lead: feature frames that the encoder's own windows begin earlier.
        features: mel bins.
        channel, convolution: the shapes of a row's caches in the component, layers first.
    """

    window: int
    chunk: int
    lead: int
    features: int
    channel: tuple[int, int, int]
    convolution: tuple[int, int, int]

    @staticmethod
    def of(bundle: Bundle, decoder: Decoder) -> SherpaStream:
        """Raises :class:`UsageError` if sherpa-onnx cannot carry the model's caches, or not decode its stream."""
        encoder, streaming = bundle.meta.encoder, bundle.meta.streaming
        if decoder == "tdt":
            raise UsageError("sherpa-onnx decodes no TDT from a stream", where=bundle.path, fix="leave --streaming out")
        if streaming is None or streaming.cache != "inputs":
            raise UsageError(
                "sherpa-onnx carries the attention's inputs from chunk to chunk",
                where=bundle.path,
                found="keys and values",
                fix="export the checkpoint with --cache inputs",
            )
        return SherpaStream(
            window=streaming.window_feature_frames,
            chunk=streaming.chunk_feature_frames,
            lead=streaming.window_feature_frames - streaming.first_chunk_feature_frames,
            features=encoder.features,
            channel=(encoder.layers, streaming.left_context_frames, encoder.d_model),
            convolution=(encoder.layers, encoder.d_model, streaming.conv_cache_frames),
        )

    @property
    def time(self) -> tuple[int, int, int]:
        """The shape of ``cache_last_time``."""
        return 1, 1, int(np.prod(self.convolution)) + self.features * self.lead

    @property
    def silence_seconds(self) -> float:
        """What must follow the audio so that its last frames are in a whole window."""
        frames_per_second = 100
        return (self.chunk + self.lead + 1) / frames_per_second

    def metadata(self) -> dict[str, str]:
        """What sherpa-onnx reads, besides what every graph of a bundle has."""
        sizes = {"window_size": self.window, "chunk_shift": self.chunk}
        for cache, shape in (("cache_last_channel", self.channel), ("cache_last_time", self.time)):
            sizes |= {f"{cache}_dim{axis}": size for axis, size in enumerate(shape, start=1)}
        return {key: str(size) for key, size in sizes.items()}


def streaming_model(bundle: Bundle, decoder: Decoder, stream: SherpaStream) -> ir.Model:
    """The whole graph, with the metadata that sherpa-onnx reads."""
    component = ir.load(bundle.graph_path(_COMPONENT))
    g = GraphBuilder("encoder")
    with g.scope("client"):
        window = g.input("audio_signal", "float32", (BATCH, stream.features, stream.window))
        length = g.input("length", "int64", (BATCH,))
        channel = g.input("cache_last_channel", "float32", (BATCH, *stream.channel))
        packed = g.input("cache_last_time", "float32", (BATCH, *stream.time))
        cached = g.input("cache_last_channel_len", "int64", (BATCH,))
        convolution, lead = _unpacked(g, stream, packed)
        frames = g.op("Concat", lead, window, axis=2)
        inputs = {
            "audio_signal": g.slice(frames, axis=2, end=g.constant([stream.window])),
            "length": length,
            "cache_last_channel": _batch_swapped(g, channel),
            "cache_last_time": convolution,
            "cache_last_channel_len": cached,
        }
        outputs = g.inline(component.graph, inputs)
        _output_frames(g, bundle, decoder, outputs)
        g.output(
            _batch_swapped(g, outputs["cache_last_channel_out"]),
            "cache_last_channel_next",
            "float32",
            (BATCH, *stream.channel),
        )
        next_lead = g.slice(frames, axis=2, start=stream.chunk, end=g.constant([stream.chunk + stream.lead]))
        next_time = _packed(g, stream, outputs["cache_last_time_out"], next_lead)
        g.output(next_time, "cache_last_time_next", "float32", (BATCH, *stream.time))
        g.output(outputs["cache_last_channel_len_out"], "cache_last_channel_len_next", "int64", (BATCH,))
    model = g.model()
    model.metadata_props.update({**component.metadata_props, **stream.metadata()})
    return model


def _batch_swapped(g: GraphBuilder, cache: ir.Value) -> ir.Value:
    """[B,L,...] -> [L,B,...] and back."""
    return g.op("Transpose", cache, perm=[1, 0, 2, 3])


def _unpacked(g: GraphBuilder, stream: SherpaStream, packed: ir.Value) -> tuple[ir.Value, ir.Value]:
    """[B,1,1,N] -> the convolutions' caches [L,B,D,K-1] and the feature frames [B,F,lead]."""
    sizes = g.constant([int(np.prod(stream.convolution)), stream.features * stream.lead])
    convolution, lead = g.multi("Split", packed, sizes, outputs=2, axis=3)
    by_layer = g.op("Reshape", convolution, g.constant([-1, *stream.convolution]))
    return _batch_swapped(g, by_layer), g.op("Reshape", lead, g.constant([-1, stream.features, stream.lead]))


def _packed(g: GraphBuilder, stream: SherpaStream, convolution: ir.Value, lead: ir.Value) -> ir.Value:
    """The reverse."""
    row = g.constant([-1, 1, 1, int(np.prod(stream.convolution))])
    lead_row = g.constant([-1, 1, 1, stream.features * stream.lead])
    flat = g.op("Reshape", _batch_swapped(g, convolution), row)
    return g.op("Concat", flat, g.op("Reshape", lead, lead_row), axis=3)


def _output_frames(g: GraphBuilder, bundle: Bundle, decoder: Decoder, outputs: dict[str, ir.Value]) -> None:
    encoded, lengths, *_ = bundle.component(_COMPONENT).outputs
    if decoder == "ctc":
        batch, _, frames = encoded.shape
        (logprobs,) = bundle.component(_CTC_HEAD).outputs
        head = g.inline(ir.load(bundle.graph_path(_CTC_HEAD)).graph, {"encoder_output": outputs[encoded.name]})
        g.output(head[logprobs.name], logprobs.name, logprobs.dtype, (batch, frames, logprobs.shape[2]))
    else:
        g.output(outputs[encoded.name], "outputs", encoded.dtype, encoded.shape)
    g.output(outputs[lengths.name], lengths.name, lengths.dtype, lengths.shape)

"""One Conformer layer (NeMo ``ConformerLayer``), written for engines.

    x += 1/2 FF1(LN x);  x += MHSA(LN x);  x += Conv(LN x);  x += 1/2 FF2(LN x);  x = LN x

What is folded into weights when they are read, so that it costs nothing at run time:

    1/2 of the feed-forwards        into their second matrix
    1/sqrt(d_k)                     into W_q, its bias and the position biases u, v
    W_q, W_k, W_v                   one matrix [D, 3D]
    b_q + u                         one vector; (q + v) = (q + u) + (v - u)
    b_k                             dropped: it adds the same number to all scores of a row, and softmax ignores that
    b_v                             into the output bias: the attention weights of a row sum to one
    batch norm                      into the depthwise convolution
    position projections            one matrix for all layers (see ``positions.py``)

Source: Conformer (arXiv 2005.08100), Transformer-XL (arXiv 1901.02860) B, NeMo ``ConformerLayer``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from nemotrt.export.convolution_norm import ChannelAffine, norm_over_frames
from nemotrt.export.encoder_config import EncoderConfig
from nemotrt.export.graph import GraphBuilder
from nemotrt.export.relative_shift import RelativeShift
from nemotrt.export.weights import FloatArray, Loader, Weights

_LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class LayerContext:
    """What all layers share, computed once.

    ``score_bias`` float [B,1,1|T,S]: 0 where attention is allowed, a large negative finite number elsewhere, ``None``
    where it is allowed everywhere; ``valid`` bool [B,T,1], ``None`` without padding; ``shift`` turns scores by position
    into scores by key.
    """

    score_bias: ir.Value | None
    valid: ir.Value | None
    shift: RelativeShift


@dataclass(frozen=True)
class LayerCache:
    """What a streaming layer keeps of the frames before its chunk.

    ``attention`` is either the attention's inputs, one value [B,C,D], or its keys and values, two of [B,H,C,d_k];
    ``convolution`` [B,D,K-1] the depthwise convolution's last inputs.
    """

    attention: tuple[ir.Value, ...]
    convolution: ir.Value


class ConformerLayer:
    """Writes layer ``index`` of the encoder into a graph."""

    def __init__(self, g: GraphBuilder, weights: Weights, config: EncoderConfig, *, index: int) -> None:
        self._g, self._weights, self._config = g, weights, config
        self._source = f"encoder.layers.{index}"
        self._d = config.spec.d_model

    def __call__(self, x: ir.Value, positions: ir.Value | None, context: LayerContext) -> ir.Value:
        """``x`` [B,T,D], ``positions`` [1,H,d_k,2T+1] (``None``: absolute, in ``x``) -> [B,T,D]."""
        return self._layer(x, positions, context, None)[0]

    def stream(
        self, x: ir.Value, positions: ir.Value, context: LayerContext, cache: LayerCache
    ) -> tuple[ir.Value, LayerCache]:
        """``x`` [B,T,D] after C cached frames, ``positions`` [1,H,d_k,C+2T] -> [B,T,D] and the next cache."""
        x, attention, convolution = self._layer(x, positions, context, cache)
        return x, LayerCache(attention, convolution)

    def _layer(
        self, x: ir.Value, positions: ir.Value | None, context: LayerContext, cache: LayerCache | None
    ) -> tuple[ir.Value, tuple[ir.Value, ...], ir.Value]:
        g = self._g
        x = g.op("Add", x, self._feed_forward(self._norm(x, "norm_feed_forward1"), "feed_forward1"))
        attended, seen = self._attention(self._norm(x, "norm_self_att"), positions, context, cache)
        x = g.op("Add", x, attended)
        convolved, convolution_inputs = self._convolution(self._norm(x, "norm_conv"), context, cache)
        x = g.op("Add", x, convolved)
        x = g.op("Add", x, self._feed_forward(self._norm(x, "norm_feed_forward2"), "feed_forward2"))
        return self._norm(x, "norm_out"), seen, convolution_inputs

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        with self._g.scope(name):
            scale, bias = self._vector(f"{name}.weight", "weight"), self._vector(f"{name}.bias", "bias")
            return self._g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=_LAYER_NORM_EPSILON)

    def _feed_forward(self, x: ir.Value, name: str) -> ir.Value:
        g, d, d_ff = self._g, self._d, self._config.spec.feed_forward
        with g.scope(name):
            hidden = g.swish(self._linear(x, f"{name}.linear1", "linear1", d, d_ff))
            return self._linear(hidden, f"{name}.linear2", "linear2", d_ff, d, scale=0.5)

    def _attention(
        self, x: ir.Value, positions: ir.Value | None, context: LayerContext, cache: LayerCache | None
    ) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """[B,T,D] -> [B,T,D], and what of this chunk and the cache the next chunk may see."""
        g = self._g
        with g.scope("self_attn"):
            q, k, v, seen = self._queries_keys_values(x, () if cache is None else cache.attention)
            scores = self._scores(q, k, positions, context)
            if context.score_bias is not None:
                scores = g.op("Add", scores, context.score_bias)
            mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
            joined = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), g.constant([0, 0, self._d]))
            matrix = self._matrix("self_attn.linear_out", "linear_out", self._d, self._d)
            return g.linear(joined, matrix, self._out_bias()), seen

    def _scores(self, q: ir.Value, k: ir.Value, positions: ir.Value | None, context: LayerContext) -> ir.Value:
        """[B,H,T,S]; ``positions`` is ``None`` where they are absolute, a part of the input."""
        g = self._g
        keys = g.op("Transpose", k, perm=[0, 1, 3, 2])
        if positions is None:
            return g.op("MatMul", self._biased_query(q), keys)
        q_u, q_v = self._biased_queries(q)
        position = context.shift(g, g.op("MatMul", q_v, positions))
        return g.op("Add", g.op("MatMul", q_u, keys), position)

    def _biased_query(self, q: ir.Value) -> ir.Value:
        load, scale, shape = self._bias_loader("self_attn.linear_q", self._d), self._score_scale(), self._by_head
        if load is None:
            return q
        return self._g.op("Add", q, self._g.weight("bias_q", shape, lambda: load().reshape(shape) * scale))

    def _queries_keys_values(
        self, x: ir.Value, cached: tuple[ir.Value, ...]
    ) -> tuple[ir.Value, ir.Value, ir.Value, tuple[ir.Value, ...]]:
        """Queries [B,H,T,d_k], keys and values [B,H,C+T,d_k], and all that may be cached, oldest frame first.

        Cached inputs are projected again with every chunk; cached keys and values are not.
        """
        g = self._g
        if len(cached) == 1:
            inputs = g.op("Concat", cached[0], x, axis=1)
            (q,) = self._projected(x, "q")
            k, v = self._projected(inputs, "kv")
            return q, k, v, (inputs,)
        q, k, v = self._projected(x, "qkv")
        if cached:
            k, v = (g.op("Concat", old, new, axis=2) for old, new in zip(cached, (k, v), strict=True))
        return q, k, v, (k, v)

    def _projected(self, x: ir.Value, parts: str) -> tuple[ir.Value, ...]:
        """One product for all of ``parts`` ("qkv", "kv", "q"), each [B,H,T,d_k]."""
        g, heads, count = self._g, self._config.spec.heads, len(parts)
        product = g.op("MatMul", x, self._projection(parts))
        split = g.op("Reshape", product, g.constant([0, 0, count * heads, self._d // heads]))
        by_head = g.op("Transpose", split, perm=[0, 2, 1, 3])
        return (by_head,) if count == 1 else tuple(g.multi("Split", by_head, outputs=count, axis=1, num_outputs=count))

    def _biased_queries(self, q: ir.Value) -> tuple[ir.Value, ir.Value]:
        g, scale = self._g, self._score_scale()
        _, heads, _, d_k = self._by_head
        load_u = self._weights.expect(f"{self._source}.self_attn.pos_bias_u", (heads, d_k))
        load_v = self._weights.expect(f"{self._source}.self_attn.pos_bias_v", (heads, d_k))
        load_bias = self._bias_loader("self_attn.linear_q", self._d)

        def bias_u() -> FloatArray:
            bias = load_u() if load_bias is None else load_u() + load_bias().reshape(heads, d_k)
            return np.asarray(bias[None, :, None] * scale)

        q_u = g.op("Add", q, g.weight("bias_u", self._by_head, bias_u))
        step = g.weight("bias_v_minus_u", self._by_head, lambda: (load_v() - load_u())[None, :, None] * scale)
        return q_u, g.op("Add", q_u, step)

    def _projection(self, parts: str) -> ir.Value:
        """[D, D * len(parts)]; the queries' part is scaled."""
        d = self._d
        loads = [self._weights.expect(f"{self._source}.self_attn.linear_{part}.weight", (d, d)) for part in parts]
        scales = [self._score_scale() if part == "q" else np.float32(1) for part in parts]
        return self._g.weight(
            f"{parts}.weight",
            (d, len(parts) * d),
            lambda: np.concatenate([load() * scale for load, scale in zip(loads, scales, strict=True)]).T,
        )

    def _out_bias(self) -> ir.Value | None:
        bias, value_bias = (
            self._bias_loader("self_attn.linear_out", self._d),
            self._bias_loader("self_attn.linear_v", self._d),
        )
        self._bias_loader("self_attn.linear_k", self._d)  # must exist; has no effect on the result
        if bias is None or value_bias is None:
            return None
        weight = self._weights.expect(f"{self._source}.self_attn.linear_out.weight", (self._d, self._d))
        return self._g.weight("linear_out.bias", (self._d,), lambda: bias() + weight() @ value_bias())

    def _convolution(self, x: ir.Value, context: LayerContext, cache: LayerCache | None) -> tuple[ir.Value, ir.Value]:
        """[B,T,D] -> [B,T,D], and the inputs of the depthwise convolution, [B,D,K-1+T] with a cache."""
        g, d = self._g, self._d
        with g.scope("conv"):
            value, gate = g.multi(
                "Split", self._linear(x, "conv.pointwise_conv1", "pointwise_conv1", d, 2 * d, pointwise=True),
                outputs=2, axis=-1, num_outputs=2,
            )  # fmt: skip
            x = g.op("Mul", value, g.op("Sigmoid", gate))
            if context.valid is not None:
                x = g.op("Where", context.valid, x, g.constant(0.0))
            inputs = g.op("Transpose", x, perm=[0, 2, 1])
            if cache is not None:
                inputs = g.op("Concat", cache.convolution, inputs, axis=2)
            pads = self._config.conv_context if cache is None else (0, 0)
            x = self._depthwise(inputs, pads)
            if self._config.conv_norm in ("group_norm", "instance_norm"):
                source = f"{self._source}.conv.batch_norm"
                x = norm_over_frames(g, self._weights, self._config, x, source=source, valid=context.valid)
            x = g.op("Transpose", x, perm=[0, 2, 1])
            if self._config.conv_norm == "layer_norm":
                x = self._norm(x, "conv.batch_norm")
            return self._linear(g.swish(x), "conv.pointwise_conv2", "pointwise_conv2", d, d, pointwise=True), inputs

    def _depthwise(self, x: ir.Value, pads: tuple[int, int]) -> ir.Value:
        """[B,D,T] -> [B,D,T], batch norm folded in: ``(conv(x) - mean) * gamma / sqrt(variance + epsilon) + beta``."""
        g, d, kernel = self._g, self._d, self._config.spec.conv_kernel
        load = self._weights.expect(f"{self._source}.conv.depthwise_conv.weight", (d, 1, kernel))
        load_bias = self._bias_loader("conv.depthwise_conv", d)
        weight, bias = load, load_bias
        if self._config.conv_norm in ("batch_norm", "fused_batch_norm"):
            is_fused = self._config.conv_norm == "fused_batch_norm"
            norm = ChannelAffine(self._weights, f"{self._source}.conv.batch_norm", d, fused=is_fused)
            weight = lambda: load() * norm.scale()[:, None, None]  # noqa: E731
            bias = lambda: norm.shift(None if load_bias is None else load_bias())  # noqa: E731
        return g.op(
            "Conv", x, g.weight("depthwise_conv.weight", (d, 1, kernel), weight),
            None if bias is None else g.weight("depthwise_conv.bias", (d,), bias),
            group=d, pads=list(pads),
        )  # fmt: skip

    def _linear(
        self,
        x: ir.Value,
        source: str,
        name: str,
        d_in: int,
        d_out: int,
        *,
        scale: float = 1.0,
        pointwise: bool = False,
    ) -> ir.Value:
        g = self._g
        matrix = self._matrix(source, name, d_in, d_out, scale=scale, pointwise=pointwise)
        load = self._bias_loader(source, d_out)
        bias = None if load is None else g.weight(f"{name}.bias", (d_out,), lambda: load() * np.float32(scale))
        return g.linear(x, matrix, bias)

    def _matrix(
        self, source: str, name: str, d_in: int, d_out: int, *, scale: float = 1.0, pointwise: bool = False
    ) -> ir.Value:
        """A torch matrix [out,in] (or 1x1 convolution [out,in,1]) as [in,out]."""
        shape = (d_out, d_in, 1) if pointwise else (d_out, d_in)
        load = self._weights.expect(f"{self._source}.{source}.weight", shape)
        return self._g.weight(
            f"{name}.weight", (d_in, d_out), lambda: load().reshape(d_out, d_in).T * np.float32(scale)
        )

    def _vector(self, source: str, name: str) -> ir.Value:
        return self._g.weight(name, (self._d,), self._weights.expect(f"{self._source}.{source}", (self._d,)))

    def _bias_loader(self, source: str, width: int) -> Loader | None:
        return self._weights.expect(f"{self._source}.{source}.bias", (width,)) if self._config.use_bias else None

    @property
    def _by_head(self) -> tuple[int, int, int, int]:
        """The shape of a vector of the queries, to be added to [B,H,T,d_k]."""
        heads = self._config.spec.heads
        return 1, heads, 1, self._d // heads

    def _score_scale(self) -> np.float32:
        return np.float32(1.0 / np.sqrt(self._d // self._config.spec.heads))

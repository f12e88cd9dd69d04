"""Which type the weights of products really have, whatever the graph is called.

MatMul, Gemm, Conv, LSTM, ... <-- Cast, Transpose, DequantizeLinear, ... <-- initializer: its type counts
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from nemotrt.trt.tensor_graph import dtype_name

PRODUCTS = frozenset(
    {
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"),
        *("MatMulInteger", "QLinearMatMul", "ConvInteger", "QLinearConv", "MatMulNBits"),
    }
)
_LEADS_TO_A_WEIGHT = frozenset(
    {
        "Cast",
        "DequantizeLinear",
        "Flatten",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_LONGEST_WAY = 8


@dataclass(frozen=True)
class ProductCount:
    """Nodes of one operator whose largest weight has one type; ``None``: both sides are computed."""

    op: str
    weight_dtype: str | None
    nodes: int
    weight_bytes: int


def count_products(nodes: Iterable[ir.Node]) -> tuple[ProductCount, ...]:
    """The products by operator and weight type. A weight that several nodes share is weighed with each of them."""
    counts: dict[tuple[str, str | None], tuple[int, int]] = {}
    for node in nodes:
        if node.op_type not in PRODUCTS:
            continue
        largest = max(_weights(node), key=_size_bytes, default=None)
        key = (node.op_type, None if largest is None else dtype_name(largest))
        number, weighed = counts.get(key, (0, 0))
        counts[key] = (number + 1, weighed + (0 if largest is None else _size_bytes(largest)))
    rows = (ProductCount(op, dtype, *count) for (op, dtype), count in counts.items())
    return tuple(sorted(rows, key=lambda row: (-row.weight_bytes, row.op, row.weight_dtype or "")))


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    """The initializers behind the inputs."""
    for value in node.inputs:
        current = value
        for _ in range(_LONGEST_WAY):
            if current is None or current.is_initializer():
                break
            producer = current.producer()
            if producer is None or producer.op_type not in _LEADS_TO_A_WEIGHT:
                break
            current = producer.inputs[0]
        if current is not None and current.is_initializer():
            yield current


def _size_bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes

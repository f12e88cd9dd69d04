"""How much of a graph is really in eight bits: what its weights are stored as, and what its products multiply.

A quantized graph can hold float32 weights behind QuantizeLinear: it computes the same numbers, and saves nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from nemotrt.bundle import Bundle
from nemotrt.errors import GraphError
from nemotrt.trt.component_model import load_component
from nemotrt.trt.quantization.number_formats import FORMATS
from nemotrt.trt.quantization.selection import QUANTIZED


@dataclass(frozen=True)
class DtypeAudit:
    """Counted from what is stored, not from what was asked for.

    ``weight_bytes`` is by the dtype of all initializers and constants. ``products`` counts the MatMuls that multiply a
    stored weight, by its dtype; ``quantized_activations`` those of them whose other input is quantized too.
    """

    weight_bytes: dict[str, int] = field(default_factory=dict)
    products: dict[str, int] = field(default_factory=dict)
    quantized_activations: int = 0

    def share(self, dtype: str) -> float:
        """The fraction of the bytes of all weights that are stored as ``dtype``, 0 to 1."""
        total = sum(self.weight_bytes.values())
        return self.weight_bytes.get(dtype, 0) / total if total else 0.0

    def __add__(self, other: DtypeAudit) -> DtypeAudit:
        return DtypeAudit(
            dict(Counter(self.weight_bytes) + Counter(other.weight_bytes)),
            dict(Counter(self.products) + Counter(other.products)),
            self.quantized_activations + other.quantized_activations,
        )


def audit_dtypes(graph: Path) -> DtypeAudit:
    """Count the weights and products of an ONNX file. Weights are not read.

    Raises:
        GraphError: the file cannot be read.
    """
    model = load_component(graph)
    weight_bytes: Counter[str] = Counter()
    constants = (node.outputs[0] for node in model.graph if node.op_type == "Constant")
    for value in (*model.graph.initializers.values(), *constants):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            weight_bytes[_name(tensor.dtype)] += tensor.nbytes
    pairs = [(_stored(node.inputs[1]), node.inputs[0]) for node in model.graph if node.op_type == "MatMul"]
    by_weight = [(_name(stored.dtype), activation) for stored, activation in pairs if stored is not None]
    return DtypeAudit(
        dict(weight_bytes),
        dict(Counter(dtype for dtype, _ in by_weight)),
        sum(_is_quantized(activation) for _, activation in by_weight),
    )


def check_quantized(bundle: Bundle) -> DtypeAudit:
    """The audit of the components that a quantized ``bundle`` has in eight bits, all together.

    Raises:
        GraphError: its metadata says that it is quantized, and its graphs hold no such weight.
    """
    audits = [audit_dtypes(bundle.graph_path(name)) for name in bundle.meta.components if name in QUANTIZED]
    audit = sum(audits, start=DtypeAudit())
    wanted = [_name(known.dtype) for name, known in FORMATS.items() if name == bundle.meta.precision]
    if any(not audit.products.get(dtype) for dtype in wanted):
        raise GraphError(
            f"the bundle is called {bundle.meta.precision} and no product has such a weight",
            where=bundle.path,
            found=", ".join(f"{dtype} {size} bytes" for dtype, size in sorted(audit.weight_bytes.items())),
            fix="make it again with nemotrt quantize",
        )
    return audit


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a value, through nodes that only change its type; ``None``: it is computed."""
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast"):
            return None
        value = producer.inputs[0]
    return value


def _is_quantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return False
    inner = producer.inputs[0]
    before = None if inner is None else inner.producer()
    return before is not None and before.op_type == "QuantizeLinear"


def _name(dtype: ir.DataType | None) -> str:
    return "unknown" if dtype is None else str(dtype.numpy().name)

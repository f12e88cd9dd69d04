"""The eight-bit numbers that weights and activations are stored as.

x ~ scale * q        int8   q in -127..127, rounded to the nearest, ties to even
                     fp8    q in +-448, 4 bits of exponent and 3 of mantissa (E4M3)

Symmetric: zero is zero, -128 is not used. That is the only kind that TensorRT takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

FormatName = Literal["int8", "fp8"]


@dataclass(frozen=True)
class NumberFormat:
    """``largest`` is the largest magnitude it holds; ``opset`` the first whose QuantizeLinear knows it."""

    name: FormatName
    dtype: ir.DataType
    largest: float
    opset: int

    def scale_of(self, amplitude: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scale at which ``amplitude`` is the largest number; 1 for nothing but zeros."""
        return np.where(amplitude > 0, amplitude / np.float32(self.largest), np.float32(1)).astype(np.float32)

    def stored(self, scaled: NDArray[np.float32]) -> NDArray[np.generic]:
        """``scaled`` (x / scale) as it is stored, saturated."""
        whole = np.rint(scaled) if self.name == "int8" else scaled
        return np.clip(whole, -self.largest, self.largest).astype(self.dtype.numpy())


FORMATS: dict[FormatName, NumberFormat] = {
    "int8": NumberFormat("int8", ir.DataType.INT8, 127.0, opset=13),
    "fp8": NumberFormat("fp8", ir.DataType.FLOAT8E4M3FN, 448.0, opset=19),
}

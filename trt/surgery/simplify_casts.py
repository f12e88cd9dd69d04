"""``Cast(Cast(x))`` is one Cast, or none, where the first one loses nothing: bool to float to bool, int32 to int64."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.graph_edit import GraphEdit, producer_of
from nemotrt.trt.surgery.surgery_pass import SurgeryPass


class SimplifyCasts(SurgeryPass):
    """Reads round a Cast that the next one takes back."""

    name: ClassVar[str] = "simplify-casts"
    does: ClassVar[str] = "removes a Cast before another one, where it loses nothing"

    def rewrite(self, edit: GraphEdit) -> None:
        """Chains become shorter from the front."""
        for node in edit.nodes("Cast"):
            previous = producer_of(node.inputs[0], "Cast")
            source = None if previous is None else previous.inputs[0]
            if previous is None or source is None:
                continue
            if not _loses_nothing(source.dtype, previous.outputs[0].dtype):
                edit.refuse(node, f"{source.dtype} does not fit into {previous.outputs[0].dtype}")
            elif source.dtype == node.outputs[0].dtype:
                edit.replace(node.outputs[0], source)
            else:
                edit.set_input(node, 0, source)


def _loses_nothing(source: ir.DataType | None, target: ir.DataType | None) -> bool:
    if source is None or target is None or ir.DataType.BFLOAT16 in (source, target):
        return False
    return bool(np.can_cast(source.numpy(), target.numpy(), "safe"))

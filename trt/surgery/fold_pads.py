"""A Pad with zeros in front of a convolution becomes the padding of the convolution."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from nemotrt.trt.surgery.facts import integers
from nemotrt.trt.surgery.graph_edit import GraphEdit, producer_of, small_constant
from nemotrt.trt.surgery.surgery_pass import SurgeryPass


class FoldPads(SurgeryPass):
    """Writes the widths of a Pad into the convolutions that read it."""

    name: ClassVar[str] = "fold-pads"
    does: ClassVar[str] = "makes a Pad with zeros the padding of the convolution behind it"

    def rewrite(self, edit: GraphEdit) -> None:
        """The Pad stays for those who are not convolutions."""
        for node in edit.nodes("Conv"):
            pad = producer_of(node.inputs[0], "Pad")
            if pad is None or pad.inputs[0] is None:
                continue
            widths = edit.facts.numbers(pad.inputs[1])
            reason = "its widths are computed" if widths is None else _why_not(node, pad, widths)
            if reason is not None or widths is None:
                edit.refuse(pad, str(reason))
                continue
            axes = len(widths) // 2
            added = (*widths[2:axes], *widths[axes + 2 :])
            pads = integers(node, "pads", [0] * len(added))
            node.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(pads, added, strict=True)])
            edit.set_input(node, 0, pad.inputs[0])


def _why_not(conv: ir.Node, pad: ir.Node, widths: tuple[int, ...]) -> str | None:
    axes = len(widths) // 2
    obstacles = {
        "it does not pad with zeros": not pads_with_zeros(pad),
        "it names its axes": len(pad.inputs) > 3 and pad.inputs[3] is not None,
        "it pads rows or channels, or cuts": min(widths) < 0 or any((*widths[:2], *widths[axes : axes + 2])),
        "the convolution pads by itself": "auto_pad" in conv.attributes,
    }
    return next((words for words, is_so in obstacles.items() if is_so), None)


def pads_with_zeros(pad: ir.Node) -> bool:
    """Whether what a Pad adds is zeros, whatever the values are."""
    mode = pad.attributes.get("mode")
    filler = pad.inputs[2] if len(pad.inputs) > 2 else None
    number = small_constant(filler)
    return (mode is None or mode.as_string() == "constant") and (
        filler is None or (number is not None and not number.any())
    )

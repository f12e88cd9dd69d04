"""The relative shift without Pad: one reshape and one strided slice.

    scores [B,H,T,2T-1] -> Pad -> Reshape -> Slice -> Reshape -> Slice      rows of positions T-1, ..., -(T-1)
    scores [B,H,T,2T+1] -> Reshape [B,H,2T+1,T] -> Slice every other row    rows of positions T, ..., -T

Query i of T wants position i-j of key j. In rows of 2T+1 columns, read as one, it stands at i(2T+1) + T-(i-j) =
(2i+1)T + j: cut into rows of T, that is every other one. The two columns more come from the position table, which gets
a row at either end; nobody reads their scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.axis_size import Shape, Size
from nemotrt.trt.surgery.facts import integers
from nemotrt.trt.surgery.graph_edit import Array, GraphEdit, is_weight, only_reader, producer_of, small_constant
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_OF_SIZES = frozenset({"Add", "Cast", "Concat", "Gather", "Shape", "Slice", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class _Shift:
    """``nodes`` from Pad to the last Slice, which gives the scores by key; they come from ``product``, and its columns
    by ``positions``, the last of which projects ``rows`` of the table."""

    nodes: tuple[ir.Node, ...]
    product: ir.Node
    positions: tuple[ir.Node, ...]
    rows: ir.Node

    @property
    def end(self) -> ir.Node:
        """The Slice that gives the scores by key."""
        return self.nodes[-1]


class RelativeShift(SurgeryPass):
    """All layers that read one slice of the table change together, or none does."""

    name: ClassVar[str] = "relative-shift"
    does: ClassVar[str] = "turns scores by position into scores by key without Pad: a reshape and a slice"
    opset: ClassVar[int] = 15

    def rewrite(self, edit: GraphEdit) -> None:
        """Find the shifts by their Pad, and group them by their slice."""
        by_rows: dict[ir.Node, list[_Shift]] = {}
        for node in edit.nodes("Pad"):
            if _is_column_in_front(edit, node):
                shift = _shift(edit, node)
                if isinstance(shift, str):
                    edit.refuse(node, shift)
                else:
                    by_rows.setdefault(shift.rows, []).append(shift)
        for rows, shifts in by_rows.items():
            elsewhere = _read_elsewhere(rows, shifts)
            if elsewhere is not None:
                edit.refuse(rows, f"{elsewhere} is read by something else than a shift")
                continue
            _widen(edit, rows)
            folded = _folded_shape(edit, shifts[0])
            for shift in shifts:
                _rewrite(edit, shift, folded)


def _is_column_in_front(edit: GraphEdit, pad: ir.Node) -> bool:
    return edit.facts.numbers(pad.inputs[1]) == (0, 0, 0, 1, 0, 0, 0, 0)


def _shift(edit: GraphEdit, pad: ir.Node) -> _Shift | str:
    """The nodes behind and before a Pad, or what is wrong with them."""
    scores, facts = edit.facts.shape(pad.inputs[0]), edit.facts
    if scores is None or len(scores) != 4 or scores[3] != scores[2] * 2 - 1:
        return "not T rows of 2T-1 columns"
    b, h, t, p = scores
    wanted: list[tuple[str, Shape]] = [
        ("Reshape", (b, h, p + 1, t)),
        ("Slice", (b, h, p, t)),
        ("Reshape", (b, h, t, p)),
        ("Slice", (b, h, t, t)),
    ]
    nodes = [pad]
    for op_type, shape in wanted:
        node = only_reader(nodes[-1].outputs[0])
        if node is None or node.op_type != op_type or facts.shape(node.outputs[0]) != shape:
            return f"no {op_type} to [{', '.join(map(str, shape))}] follows"
        if op_type == "Slice" and not _starts_at(edit, node, 1 if len(nodes) == 2 else 0):
            return f"{node.name} keeps other rows"
        nodes.append(node)
    product = producer_of(pad.inputs[0], "MatMul")
    if product is None:
        return "the scores are no product"
    found = _table_rows(edit, product, p)
    return found if isinstance(found, str) else _Shift(tuple(nodes), product, found[0], found[1])


def _read_elsewhere(rows: ir.Node, shifts: list[_Shift]) -> str | None:
    """What becomes wider and is read by others. Those who read its size for a node that goes do not count."""
    gone = {node for shift in shifts for node in shift.nodes}
    wider = {rows, *(node for shift in shifts for node in (*shift.positions, shift.product))}
    for node in wider:
        for user, _ in node.outputs[0].uses():
            if user not in wider | gone and not _is_for(user, gone):
                return node.outputs[0].name
        if node.outputs[0].is_graph_output():
            return node.outputs[0].name
    return None


def _is_for(node: ir.Node, readers: set[ir.Node]) -> bool:
    """Whether the node is a size, and only ``readers`` need it."""
    of_sizes = node.op_type in _OF_SIZES and not any(value.is_graph_output() for value in node.outputs)
    users = [user for value in node.outputs for user, _ in value.uses()]
    return of_sizes and all(user in readers or (user.op_type != "Shape" and _is_for(user, readers)) for user in users)


def _starts_at(edit: GraphEdit, node: ir.Node, start: int) -> bool:
    axis = 2 if start else 3
    on_axis = len(node.inputs) > 3 and edit.facts.numbers(node.inputs[3]) in ((axis,), (axis - 4,))
    return on_axis and edit.facts.numbers(node.inputs[1]) == (start,) and _is_step_one(edit, node)


def _is_step_one(edit: GraphEdit, node: ir.Node) -> bool:
    return len(node.inputs) < 5 or edit.facts.numbers(node.inputs[4]) == (1,)


def _table_rows(edit: GraphEdit, product: ir.Node, columns: Size) -> tuple[tuple[ir.Node, ...], ir.Node] | str:
    """The nodes that project positions, and the slice of the table behind the columns of ``product``."""
    transpose = producer_of(product.inputs[1], "Transpose")
    reshape = None if transpose is None else producer_of(transpose.inputs[0], "Reshape")
    projection = None if reshape is None else producer_of(reshape.inputs[0], "MatMul")
    rows = None if projection is None else producer_of(projection.inputs[0], "Slice")
    if transpose is None or reshape is None or projection is None or rows is None:
        return "its columns are no projected rows of a table"
    if integers(transpose, "perm", ()) != (0, 2, 3, 1) or not is_weight(projection.inputs[1]):
        return "its columns are no projected rows of a table"
    written, shape = small_constant(reshape.inputs[1]), edit.facts.shape(rows.outputs[0])
    if written is None or len(written) != 4 or int(written[1]) not in (0, -1):
        return "the length of the table is written into a reshape"
    table = edit.facts.shape(rows.inputs[0])
    if not is_weight(rows.inputs[0]) or table is None or len(table) != 3 or shape is None or shape[1] != columns:
        return "its columns are no projected rows of a table"
    if edit.facts.numbers(rows.inputs[3]) not in ((1,), (-2,)) or not _is_step_one(edit, rows):
        return "the table is sliced along another axis"
    return (transpose, reshape, projection), rows


def _widen(edit: GraphEdit, rows: ir.Node) -> None:
    """One row more at either end of the table, and two more of them in the slice."""
    table, end = rows.inputs[0], rows.inputs[2]
    shape = edit.facts.shape(table)
    if table is None or end is None or shape is None:
        return
    numbers = [size.number or 0 for size in shape]

    def widened(array: Array) -> Array:
        return np.pad(array, ((0, 0), (1, 1), (0, 0)))

    wide = edit.computed_weight([table], widened, shape=(numbers[0], numbers[1] + 2, numbers[2]))
    edit.set_input(rows, 0, wide)
    edit.set_input(rows, 2, edit.op("Add", [end, edit.constant([2])], before=rows, like=end))


def _folded_shape(edit: GraphEdit, shift: _Shift) -> ir.Value:
    """[0, 0, 2T+1, T]; the third is left to Reshape."""
    query = shift.product.inputs[0]
    if query is None:
        raise ValueError("a product without an input")
    frames = edit.op("Shape", [query], before=shift.product, like=ir.DataType.INT64, start=2, end=3)
    parts = [edit.constant([0, 0, -1]), frames]
    return edit.op("Concat", parts, before=shift.product, like=frames, axis=0)


def _rewrite(edit: GraphEdit, shift: _Shift, folded: ir.Value) -> None:
    scores = shift.product.outputs[0]
    rows = edit.op("Reshape", [scores, folded], before=shift.end, like=scores)
    bounds = [edit.constant([number]) for number in (1, np.iinfo(np.int64).max, 2, 2)]
    edit.replace(shift.end.outputs[0], edit.op("Slice", [rows, *bounds], before=shift.end, like=scores))

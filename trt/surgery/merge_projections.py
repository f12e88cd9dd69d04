"""Projections of one input to heads become one product: queries, keys and values; the positions of all layers.

    x @ W_q, x @ W_k, x @ W_v  (+ biases), each -> Reshape [B,T,H,d_k] -> Transpose
    x @ [W_q W_k W_v] (+ bias) -> Reshape [B,T,3H,d_k] -> Transpose -> Split

A vector of each head that is added before the transposition (the biases u and v of the positions) is added after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from nemotrt.trt.surgery.facts import integers
from nemotrt.trt.surgery.graph_edit import Array, GraphEdit, is_weight, only_reader
from nemotrt.trt.surgery.surgery_pass import SurgeryPass

_BY_HEAD, _BY_HEAD_TRANSPOSED = (0, 2, 1, 3), (0, 2, 3, 1)


@dataclass(frozen=True)
class _Projection:
    """``x @ weight (+ bias)`` [.., heads * width], reshaped by ``reshape``; ``tails`` are what reads that."""

    product: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    reshape: ir.Node
    heads: int
    width: int
    tails: tuple[_Tail, ...]

    @property
    def is_transposed(self) -> bool:
        """Whether all of it is read as [B,H,d_k,T]."""
        return all(tail.perm == _BY_HEAD_TRANSPOSED for tail in self.tails)


@dataclass(frozen=True)
class _Tail:
    """``transpose`` of the heads, or of the heads plus a ``vector`` [H,d_k]."""

    transpose: ir.Node
    perm: tuple[int, ...]
    vector: ir.Value | None


class MergeProjections(SurgeryPass):
    """Of activations: the queries, keys and values of an attention."""

    name: ClassVar[str] = "merge-qkv"
    does: ClassVar[str] = "projects queries, keys and values with one product"

    def rewrite(self, edit: GraphEdit) -> None:
        """Products are grouped by what they project; two that fit are merged."""
        groups: dict[ir.Value, list[ir.Node]] = {}
        for node in edit.nodes("MatMul"):
            x = node.inputs[0]
            if x is not None and is_weight(node.inputs[1]) and not is_weight(x) and self._takes(x):
                groups.setdefault(x, []).append(node)
        for x, products in groups.items():
            if len(products) < 2:
                continue
            found = [_projection(edit, product) for product in products]
            for product, one in zip(products, found, strict=True):
                if isinstance(one, str):
                    edit.refuse(product, one)
            for same in _same_heads([one for one in found if isinstance(one, _Projection)]):
                _merge(edit, x, same)

    def _takes(self, x: ir.Value) -> bool:
        return not _is_table(x)


class SharePositions(MergeProjections):
    """Of rows of a table: the positions, projected for each layer."""

    name: ClassVar[str] = "share-positions"
    does: ClassVar[str] = "projects the positions for all layers with one product"

    def _takes(self, x: ir.Value) -> bool:
        return _is_table(x)


def _is_table(x: ir.Value) -> bool:
    """Whether it depends on no activation: rows of a weight."""
    node = x.producer()
    return node is not None and node.op_type in ("Slice", "Gather") and is_weight(node.inputs[0])


def _same_heads(found: Sequence[_Projection]) -> list[list[_Projection]]:
    """Those that can be merged: of the same heads, with a bias or without."""
    groups: dict[tuple[int, int, bool], list[_Projection]] = {}
    for one in found:
        groups.setdefault((one.heads, one.width, one.bias is None), []).append(one)
    return [group for group in groups.values() if len(group) > 1]


def _projection(edit: GraphEdit, product: ir.Node) -> _Projection | str:
    weight, reader, bias = product.inputs[1], only_reader(product.outputs[0]), None
    columns = edit.facts.shape(weight)
    if weight is None or columns is None or len(columns) != 2:
        return "its weight is no matrix"
    if reader is not None and reader.op_type == "Add":
        bias = reader.inputs[1] if reader.inputs[0] is product.outputs[0] else reader.inputs[0]
        if bias is None or not is_weight(bias) or edit.facts.shape(bias) != columns[1:]:
            return "what is added to it is no bias"
        reader = only_reader(reader.outputs[0])
    if reader is None or reader.op_type != "Reshape":
        return "no reshape into heads follows"
    before, after = edit.facts.shape(reader.inputs[0]), edit.facts.shape(reader.outputs[0])
    if before is None or after is None or len(before) != 3 or len(after) != 4 or after[:2] != before[:2]:
        return "no reshape into heads follows"
    heads, width = after[2].number, after[3].number
    tails = [_tail(edit, user, reader.outputs[0], heads, width) for user, _ in reader.outputs[0].uses()]
    known = tuple(tail for tail in tails if tail is not None)
    if heads is None or width is None or not known or len(known) < len(tails) or reader.outputs[0].is_graph_output():
        return "the heads are not transposed as those of an attention"
    return _Projection(product, weight, bias, reader, heads, width, known)


def _tail(edit: GraphEdit, node: ir.Node, heads_of: ir.Value, heads: int | None, width: int | None) -> _Tail | None:
    vector, reader = None, node
    if node.op_type == "Add":
        vector = node.inputs[1] if node.inputs[0] is heads_of else node.inputs[0]
        following = only_reader(node.outputs[0])
        shape = edit.facts.shape(vector)
        sizes = None if shape is None else tuple(size.number for size in shape)
        if vector is None or not is_weight(vector) or following is None or sizes != (heads, width):
            return None
        reader = following
    perm = integers(reader, "perm", ()) if reader.op_type == "Transpose" else ()
    fits = perm == _BY_HEAD or (perm == _BY_HEAD_TRANSPOSED and vector is None)
    return _Tail(reader, perm, vector) if fits else None


def _merge(edit: GraphEdit, x: ir.Value, parts: Sequence[_Projection]) -> None:
    before, like = parts[0].product, parts[0].product.outputs[0]
    perm = _BY_HEAD_TRANSPOSED if all(part.is_transposed for part in parts) else _BY_HEAD
    rows, heads, width = parts[0].weight.const_value, sum(part.heads for part in parts), parts[0].width
    depth = 0 if rows is None else int(rows.shape.numpy()[0])
    weight = edit.computed_weight([part.weight for part in parts], _side_by_side, shape=(depth, heads * width))
    value = edit.op("MatMul", [x, weight], before=before, like=like)
    biases = [part.bias for part in parts if part.bias is not None]
    if biases:
        bias = edit.computed_weight(biases, _side_by_side, shape=(heads * width,))
        value = edit.op("Add", [value, bias], before=before, like=like)
    value = edit.op("Reshape", [value, edit.constant([0, 0, heads, width])], before=before, like=like)
    value = edit.op("Transpose", [value], before=before, like=like, perm=perm)
    sizes = edit.constant([part.heads for part in parts])
    split = edit.op("Split", [value, sizes], before=before, like=like, outputs=len(parts), axis=1).producer()
    for part, by_head in zip(parts, () if split is None else split.outputs, strict=True):
        for tail in part.tails:
            _connect(edit, tail, by_head, perm)


def _connect(edit: GraphEdit, tail: _Tail, by_head: ir.Value, perm: tuple[int, ...]) -> None:
    old = tail.transpose.outputs[0]
    if tail.vector is not None:
        vector = edit.computed_weight([tail.vector], lambda array: array[None, :, None], shape=_spread(tail.vector))
        edit.replace(old, edit.op("Add", [by_head, vector], before=tail.transpose, like=old))
    elif tail.perm == perm:
        edit.replace(old, by_head)
    else:
        edit.replace(old, edit.op("Transpose", [by_head], before=tail.transpose, like=old, perm=(0, 1, 3, 2)))


def _spread(vector: ir.Value) -> tuple[int, ...]:
    heads, width = (0, 0) if vector.const_value is None else vector.const_value.shape.numpy()
    return 1, heads, 1, width


def _side_by_side(*arrays: Array) -> Array:
    return np.concatenate(arrays, axis=-1)

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from nemotrt.errors import UsageError
from nemotrt.trt.keep_list import is_named, read_keep_list, refuse_unknown_names, write_keep_list

NODES = ("layers.3.conv.MatMul", "layers.3.conv.Conv", "layers.30.conv.MatMul", "MatMul_2")


def graph() -> ir.Graph:
    return ir.Graph([], [], nodes=[ir.node("Relu", [None], name=name) for name in NODES])


def kept(*names: str) -> list[str | None]:
    return [node.name for node in graph() if is_named(node, names)]


def test_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_keep_list(tmp_path / "keep.yaml", ["layers.3.conv", "MatMul_2"])
    assert read_keep_list(tmp_path / "keep.yaml") == ("layers.3.conv", "MatMul_2")
    write_keep_list(tmp_path / "keep.yaml", [])
    assert read_keep_list(tmp_path / "keep.yaml") == ()


def test_a_scope_names_what_is_in_it_and_not_what_begins_alike() -> None:
    assert kept("layers.3") == kept("layers.3.conv") == ["layers.3.conv.MatMul", "layers.3.conv.Conv"]
    assert kept("layers.3.conv.MatMul", "MatMul_2") == ["layers.3.conv.MatMul", "MatMul_2"]
    assert kept("layers.3.con", "MatMul", "conv") == []


@pytest.mark.parametrize("name", ["layers.3", "layers.3.conv", "MatMul_2"])
def test_nodes_and_scopes_that_exist_are_accepted(name: str) -> None:
    refuse_unknown_names([name], [graph()])


@pytest.mark.parametrize(
    ("name", "similar"), [("layers.3.convolution", r"layers\.3\.conv"), ("layer.3", r"layers\.3"), ("MatMul_4", "_2")]
)
def test_a_name_that_does_not_exist_is_refused_with_those_that_do(name: str, similar: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}(.|\n)*similar: .*{similar}"):
        refuse_unknown_names([name], [graph()])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version: 1\n", "keep"),
        ("version: 2\nkeep: []\n", "version"),
        ("version: 1\nkeep: layers.3\n", "keep"),
        ("version: 1\nkeep: [3]\n", r"keep\.0"),
        ("version: 1\nkeep: ['']\n", r"keep\.0"),
        ("version: 1\nkeep: []\nkept: []\n", "kept"),
        ("- layers.3\n", "mapping"),
        ("keep: [", "line"),
    ],
)
def test_a_file_that_is_no_keep_list_is_refused_by_its_key(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "keep.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=rf"keep list(.|\n)*keep\.yaml(.|\n)*{message}"):
        read_keep_list(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_keep_list(tmp_path / "keep.yaml")

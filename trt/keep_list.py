"""The nodes of a model that stay in float32, in a YAML file. ``nemotrt precision-search`` writes it, and so can you.

version: 1
keep:
- layers.3.conv             # a scope: every node whose name begins so
- layers.2.self_attn.MatMul # a node

A name holds for every component that has it, so that ``encoder`` and ``encoder_streaming`` stay alike.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Literal

import onnx_ir as ir
import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from nemotrt.errors import UsageError
from nemotrt.profiles.strict_yaml import StrictYamlError, read_mapping

_SHOWN = 3
_FIX = "a keep list is made by: nemotrt precision-search BUNDLE --audio CLIPS -o keep.yaml"


class _KeepList(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1]
    keep: list[Annotated[str, StringConstraints(min_length=1)]]


def read_keep_list(path: Path) -> tuple[str, ...]:
    """The names in the file at ``path``, in order.

    Raises:
        UsageError: there is no such file, or it is not a keep list; names the key.
    """
    try:
        return tuple(_KeepList.model_validate(read_mapping(path)).keep)
    except StrictYamlError as exc:
        raise UsageError("the keep list cannot be read", where=path, found=exc, fix=_FIX) from exc
    except ValidationError as exc:
        problem = exc.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"])) or "document"
        raise UsageError("the keep list is not valid", where=f"{path}: {key}", found=problem["msg"], fix=_FIX) from exc


def write_keep_list(path: Path, names: Iterable[str]) -> None:
    """Write ``names`` so that :func:`read_keep_list` gives them back."""
    document = _KeepList(version=1, keep=list(names)).model_dump()
    path.write_text(
        f"# What stays float32: nemotrt cast BUNDLE --to mixed --keep {path.name}\n"
        + yaml.safe_dump(document, sort_keys=False),
        encoding="utf-8",
    )


def is_named(node: ir.Node, names: Collection[str]) -> bool:
    """Whether ``names`` holds the node's name or that of a scope around it."""
    parts = (node.name or "").split(".")
    return any(".".join(parts[:count]) in names for count in range(len(parts), 0, -1))


def refuse_unknown_names(names: Iterable[str], graphs: Iterable[ir.Graph]) -> None:
    """A name that no node has keeps nothing, and would not be noticed.

    Raises:
        UsageError: such a name, with those that resemble it.
    """
    known: set[str] = set()
    for graph in graphs:
        for node in graph:
            parts = (node.name or "").split(".")
            known.update(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    for name in names:
        if name not in known:
            similar = difflib.get_close_matches(name, sorted(known), n=_SHOWN, cutoff=0.5)
            raise UsageError(
                f"no component has a node or scope called {name!r}",
                found=f"similar: {', '.join(similar)}" if similar else f"{len(known)} names, none like it",
                fix="correct the keep list: names are those of the graphs' nodes, such as layers.3.conv",
            )

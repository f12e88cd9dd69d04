"""YAML as data only: small files, one mapping, no tags, no aliases, no key twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent, NodeEvent
from yaml.nodes import MappingNode, Node

MAX_BYTES = 64 * 1024


class StrictYamlError(ValueError):
    """What is wrong with the file, in one line, with its position where there is one."""


class _StrictLoader(yaml.SafeLoader):
    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # absent from types-PyYAML
        if isinstance(event, AliasEvent) or (
            isinstance(event, NodeEvent) and (event.anchor or getattr(event, "tag", None))
        ):
            mark: Any = event.start_mark
            raise ConstructorError(problem="anchors, aliases and tags are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise ConstructorError(problem="a key is given twice", problem_mark=node.start_mark)
        return mapping


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file at ``path``.

    Raises:
        StrictYamlError: the file is missing, too large, not YAML, not a mapping, or uses what is not allowed.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as exc:
        raise StrictYamlError(getattr(exc, "strerror", None) or str(exc)) from exc
    if len(content) > MAX_BYTES:
        raise StrictYamlError(f"larger than {MAX_BYTES} bytes")
    document = _parsed(content)
    if not isinstance(document, dict):
        raise StrictYamlError(f"a mapping is expected, this is a {type(document).__name__}")
    odd = next((key for key in document if not isinstance(key, str)), None)
    if odd is not None:
        raise StrictYamlError(f"key {odd!r} is not text")
    return document


def _parsed(content: bytes) -> object:
    try:
        # A subclass of SafeLoader: builds plain values only.
        return yaml.load(content.decode("utf-8"), Loader=_StrictLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise StrictYamlError(f"{position}{exc.problem}") from exc
    except RecursionError as exc:
        raise StrictYamlError("nested too deeply") from exc
    except (yaml.YAMLError, ValueError) as exc:
        raise StrictYamlError(" ".join(str(exc).split())) from exc

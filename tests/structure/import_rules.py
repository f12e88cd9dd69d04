"""The import rule of the layout, checked on source text: nothing is imported to find out.

cli -> bench -> engines, trt -> profiles        cli -> export -> profiles
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

CONTRACT = frozenset({"errors", "bundle", "bundle_writer", "graph_contract", "journal", "processes"})
"""Modules of the package root that every folder but ``profiles`` may use."""

NEMO = frozenset({"child_process", "nemo_interpreter"})
"""What runs NeMo in a process of its own."""

ALLOWED: dict[str, frozenset[str]] = {
    "profiles": frozenset({"errors"}),
    "export": CONTRACT | {"profiles"} | NEMO,
    "trt": CONTRACT | {"profiles", "tensorrt_api", "child_process"},
    "engines": CONTRACT | {"profiles", "tensorrt_api"},
    "bench": CONTRACT | {"profiles", "tensorrt_api", "engines", "trt"} | NEMO,
    # The shared modules themselves lie below the folders.
    "errors": frozenset(),
    "bundle": frozenset({"errors", "profiles"}),
    "bundle_writer": frozenset({"errors", "bundle", "journal", "processes"}),
    "graph_contract": frozenset({"errors", "bundle"}),
    "journal": frozenset({"bundle"}),
    "processes": frozenset(),
    "tensorrt_api": frozenset({"errors"}),
    "child_process": frozenset({"errors", "processes"}),
    "nemo_conflicts": frozenset(),
    "nemo_interpreter": frozenset({"errors", "child_process", "nemo_conflicts"}),
}
FOLDERS = ("bench", "engines", "export", "profiles", "trt")


def violations(package: Path) -> list[str]:
    """``file:line: what imports what`` for every import below ``package`` that the rule does not allow."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).with_suffix("").parts
        part = module[0]
        if part not in ALLOWED:
            continue
        for line, imported in imports_of(path.read_text(encoding="utf-8"), package=("nemotrt", *module[:-1])):
            if imported not in ALLOWED[part] | {part, "__version__"}:
                found.append(f"{'/'.join(module)}.py:{line}: {part} imports {imported}")
    return found


def imports_of(source: str, *, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and first name below ``nemotrt`` of every import of it in a module of ``package``, in whatever form."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*parents, *(node.module or "").split(".")) if node.module else parents)
            targets = [f"{origin}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            targets = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        else:
            continue
        for target in targets:
            root, _, rest = target.partition(".")
            if root == "nemotrt" and rest:
                yield node.lineno, rest.split(".")[0]

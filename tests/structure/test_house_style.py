"""Rules of the code that no linter of ours knows: functions fit a screen; the library neither prints nor exits."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    [
        *(ROOT / "src" / "nemotrt").glob("*.py"),
        *(path for name in ("bench", "engines", "export", "profiles", "trt") for path in (ROOT / name).rglob("*.py")),
    ]
)
SCREEN_LINES = 60
ENDS_THE_PROCESS = {"exit", "quit", "sys.exit", "os._exit", "os.abort", "SystemExit"}


def long_functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > SCREEN_LINES:
                yield node.name, lines


def what_a_library_does_not_do(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The function around it, and the offence."""
    for owner in ast.walk(tree):
        body = owner.body if isinstance(owner, ast.FunctionDef | ast.Module | ast.ClassDef) else []
        name = owner.name if isinstance(owner, ast.FunctionDef) else "module"
        for statement in body:
            for node in _own_nodes(statement):
                if isinstance(node, ast.Assert):
                    yield name, "assert"
                elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", *ENDS_THE_PROCESS}:
                    yield name, ast.unparse(node.func)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and what is below it, without functions and classes of their own."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _own_nodes(child)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_a_screen_and_only_main_ends_the_process(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(long_functions(tree)) == []
    allowed = [("main", "SystemExit")] if path.name == "cli.py" else []
    assert list(what_a_library_does_not_do(tree)) == allowed


def test_the_rules_catch_what_they_are_for() -> None:
    offences = "def f(x):\n    assert x\n    def g():\n        print(x)\n    if x:\n        raise SystemExit(2)\n"
    assert sorted(what_a_library_does_not_do(ast.parse(offences))) == [
        ("f", "SystemExit"),
        ("f", "assert"),
        ("g", "print"),
    ]
    long = "def f():\n" + "    x = 1\n" * SCREEN_LINES
    assert list(long_functions(ast.parse(long))) == [("f", SCREEN_LINES + 1)]

"""The tree of errors: as drawn, with its exit codes, and with messages that teach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotrt import errors
from nemotrt.errors import ComparisonFailed, InputError, MachineError, NemotrtError

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, NemotrtError)]


def drawn_tree(text: str) -> Iterator[tuple[str, str | None]]:
    """Class and parent of every line of the drawing."""
    above: list[str] = []
    for line in text.splitlines():
        match = re.match(r"    ([|` -]*)(\w+)", line)
        if match:
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            yield match[2], above[depth - 1] if depth else None


def test_the_tree_is_the_one_that_is_drawn() -> None:
    bases = {cls.__name__: None if cls is NemotrtError else cls.__bases__[0].__name__ for cls in CLASSES}
    assert dict(drawn_tree(errors.__doc__ or "")) == bases


@pytest.mark.parametrize("cls", CLASSES)
def test_the_exit_code_says_whose_fault_it_is(cls: type[NemotrtError]) -> None:
    expected = 1 if issubclass(cls, ComparisonFailed) else 3 if issubclass(cls, MachineError) else 2
    assert cls.exit_code == expected


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(MachineError, RuntimeError)


def test_a_message_has_a_line_for_everything_that_is_known() -> None:
    error = InputError("it is wrong", where=Path("a/b.txt"), found=3, fix="make it 4")
    assert str(error) == "it is wrong\n  where: a/b.txt\n  found: 3\n  to fix: make it 4"
    assert str(InputError("it is wrong")) == "it is wrong"


@given(
    what=st.text(min_size=1), where=st.none() | st.text(), found=st.none() | st.integers(), fix=st.none() | st.text()
)
def test_the_parts_of_a_message_are_what_it_was_made_of(
    what: str, where: str | None, found: int | None, fix: str | None
) -> None:
    error = MachineError(what, where=where, found=found, fix=fix)
    assert error.as_dict() == {
        "error": "MachineError",
        "what": what,
        "where": where,
        "found": None if found is None else str(found),
        "fix": fix,
    }
    assert str(error).startswith(what)

"""Runs a stage as a command: arguments in, exit code out."""

from __future__ import annotations

from collections.abc import Callable

import typer

from nemotrt.errors import NemotrtError


def run(main: Callable[..., None]) -> None:
    """Call ``main`` with the command line's arguments. An error raised on purpose becomes its message on
    stderr and its exit code; any other one keeps its traceback."""
    try:
        typer.run(main)
    except NemotrtError as exc:
        typer.echo(str(exc), err=True)
        raise SystemExit(exc.exit_code) from exc

"""What a user can type is explained: in ``--help``, and in the README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from nemotrt.cli import app
from nemotrt.profiles import load_profile
from nemotrt.profiles.profile import preset_names

ROOT = Path(__file__).parents[2]
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = dict(GROUP.commands)


def unexplained(command: Any) -> list[str]:
    """Parameters of ``command`` that say nothing of themselves."""
    return [parameter.name for parameter in command.params if not (getattr(parameter, "help", None) or "").strip()]


def test_there_is_a_command_for_every_stage() -> None:
    stages = {
        "run",
        "export",
        "layout",
        "check",
        "cast",
        "precision-search",
        "quantize",
        "fix",
        "build",
        "transcribe",
        "compare",
        "debug",
        "inspect",
        "bench",
        "bench-export",
        "report",
        "doctor",
    }
    assert set(COMMANDS) == stages


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_each_of_its_options_is_explained(name: str) -> None:
    assert len(COMMANDS[name].help or "") > 20
    assert unexplained(COMMANDS[name]) == []


def test_an_option_without_help_would_be_found() -> None:
    forgetful = typer.Typer()

    @forgetful.command()
    def hello(name: str, loudly: bool = False) -> None: ...

    assert unexplained(typer.main.get_command(forgetful)) == ["name", "loudly"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_answer_in_json(name: str) -> None:
    assert "--json" in [flag for parameter in COMMANDS[name].params for flag in parameter.opts]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"nemotrt {name}\b", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_readme_names_no_command_or_option_that_does_not_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0] for line in readme.splitlines() if line.startswith("nemotrt ")]
    assert lines
    for line in lines:
        _, name, *words = line.split()
        flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= flags


def test_the_help_of_profile_names_every_preset() -> None:
    (option,) = (parameter for parameter in COMMANDS["run"].params if "--profile" in parameter.opts)
    for name in preset_names():
        assert name in option.help
        assert load_profile(name).description

"""The documentation of the commands is the commands' own."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from hfq.cli import COMMANDS, cli
from hfq.reference import reference

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_reference_page_is_what_help_says() -> None:
    assert DOCS.read_text(encoding="utf-8") == reference(), "run: python -m hfq.reference > docs/cli.md"


def walk(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += walk(child, f"{path} {name}")
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help_and_json(name: str) -> None:
    top = cli.get_command(click.Context(cli), name)
    assert top is not None
    for path, command in walk(top, name):
        assert command.help, path
        if isinstance(command, click.Group):
            continue
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        assert [option.name for option in options if not option.help] == [], path
        assert any("--json" in option.opts for option in options), path

"""The command reference: `python -m hfq.reference` prints docs/cli.md from the commands' own help."""

from __future__ import annotations

import click

from hfq.cli import COMMANDS, cli

__all__ = ["reference"]

_WIDTH = 110


def _sections(command: click.Command, name: str, parent: click.Context) -> list[str]:
    context = click.Context(command, parent=parent, info_name=name)
    lines = [f"## {context.command_path}", "", "```", command.get_help(context), "```", ""]
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            assert child is not None
            lines += _sections(child, child_name, context)
    return lines


def reference() -> str:
    """The whole page, Markdown."""
    lines = [
        "# Commands",
        "",
        "Made from `--help` by `python -m hfq.reference`; a test keeps it so. Every command takes `--json`.",
        "",
    ]
    root = click.Context(cli, info_name="hfq", terminal_width=_WIDTH, **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(root, name)
        assert command is not None
        lines += _sections(command, name, root)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(reference(), end="")

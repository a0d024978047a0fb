"""The `hfq` command. Nouns live in `hfq.commands`, one file each; this file gathers them.

Here, and nowhere else, a failure becomes one line and an exit code.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import re
import sys
import traceback
from typing import Any

import click

import hfq
from hfq.console import json_text
from hfq.schema.errors import HfqError, InterruptedRunError, OutOfMemoryError, UsageError, is_out_of_memory

__all__ = ["COMMANDS", "cli", "main"]

# name -> module of hfq.commands; imported when used, because torch alone takes a second.
COMMANDS: dict[str, str] = {
    "demo": "demo",
    "inspect": "inspect",
    "recipes": "recipes",
    "calibrate": "calibrate",
    "analyze": "analyze",
    "convert": "convert",
    "verify": "verify",
    "report": "report",
    "export": "export",
    "generate": "generate",
    "stamp": "clips",
    "audit": "clips",
    "keys": "keys",
    "register": "registry",
    "list": "registry",
    "show": "registry",
    "lineage": "registry",
    "alias": "registry",
    "score": "scores",
    "leaderboard": "leaderboard",
    "compare": "gates",
    "gate": "gates",
    "route": "gates",
    "push": "hub",
    "pull": "hub",
    "db": "db",
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command object `<name>_command` of its module."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"hfq.commands.{COMMANDS[cmd_name]}")
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(hfq.__version__, prog_name="hfq")
def cli() -> None:
    """Quantize Wan video models to HiFloat4 / HiFloat8 deltas, and know what every variant is.

    MODEL is a folder, a file, or high_noise=FILE,low_noise=FILE. DELTA is a folder, an id or an alias.
    Exit codes: 0 done, 1 malformed input, 2 bad arguments, 3 wrong base or digest, 4 gate failed,
    5 unknown or ambiguous, 130 interrupted.
    """


def _fail(code: str, exit_code: int, message: str, as_json: bool, **details: Any) -> int:
    if as_json:
        click.echo(json_text({"error": {"code": code, "exit_code": exit_code, "message": message, **details}}))
    click.echo(f"hfq: {message} [{code}]", err=True)
    return exit_code


def _out_of_memory(error: Exception) -> OutOfMemoryError:
    refused = re.search(r"(?:unable|tried) to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return OutOfMemoryError(
        f"this process gets no more memory{f', and asked for {refused[1]}' if refused else ''}",
        todo="close other programs or raise the limit (`ulimit -d`, the container's memory), then run the same command "
        "again, with --resume if it has one",
    )


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code; no traceback unless HFQ_DEBUG=1."""
    as_json = "--json" in arguments
    try:
        result = cli.main(args=arguments, prog_name="hfq", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        # The reader of our stdout went away (`hfq list | head`): not an error, and nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (click.Abort, KeyboardInterrupt):
        return _fail(InterruptedRunError.code, InterruptedRunError.exit_code, "interrupted", as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see `{error.ctx.command_path} --help`)"
        return _fail(UsageError.code, UsageError.exit_code, error.format_message() + hint, as_json)
    except Exception as error:
        if os.environ.get("HFQ_DEBUG") == "1":
            traceback.print_exc()
        if isinstance(error, HfqError):
            return _fail(as_json=as_json, **error.to_json())
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            full = "; free some space, then run the same command again, with --resume if it has one"
            todo = full if error.errno == errno.ENOSPC else ""
            return _fail("os-error", 1, f"{where}{error.strerror or error}{todo}", as_json)
        if is_out_of_memory(error):
            return _fail(as_json=as_json, **_out_of_memory(error).to_json())
        message = f"internal error, please report it: {type(error).__name__}: {error} (HFQ_DEBUG=1 shows where)"
        return _fail("internal", 1, message, as_json)


def main() -> None:
    """Entry point of the `hfq` command."""
    # Imports make objects that all stay: looking through them again and again would slow every start.
    gc.set_threshold(50_000)
    code = run(sys.argv[1:])
    gc.freeze()  # nor are they looked through once more at the end
    sys.exit(code)

"""One step of the demo: a command as a user would type it, run, and its result in a line."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

from hfq.schema.errors import HfqError, InterruptedRunError

__all__ = ["DemoStepError", "Steps"]


class DemoStepError(HfqError):
    """A step of the demo failed; the message is the step's own."""

    code = "demo-step"


class Steps:
    """Runs commands one after the other. `seconds`: command name -> what its steps took."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._number = 0
        self.seconds: dict[str, float] = {}

    def title(self, text: str) -> None:
        """Begin the next step."""
        self._number += 1
        self._say(f"\n{self._number:<2} {text}")

    def command(self, *arguments: str, expected: int = 0) -> dict[str, Any]:
        """Print a command, run it, and return its `--json` document. What a step that is to fail says on stderr is
        not shown: its result says so in its place.

        Raises:
            DemoStepError: it ended with another exit code than the expected one.
            InterruptedRunError, click.Abort: Ctrl-C.
        """
        from hfq.cli import cli

        command = f"hfq {shlex.join(arguments)}"
        self._say(f"  $ {command}")
        started = time.perf_counter()
        said = io.StringIO() if expected else sys.stderr
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(said):
            try:
                returned = cli.main(args=[*arguments, "--json"], prog_name="hfq", standalone_mode=False)
            except InterruptedRunError:
                raise
            except HfqError as error:
                raise DemoStepError(f"a step failed: {error} [{error.code}]", where=command) from error
        exit_code = returned if isinstance(returned, int) else 0
        if exit_code != expected:
            raise DemoStepError("a step went otherwise", where=command, expected=f"exit code {expected}",
                                found=exit_code)  # fmt: skip
        self.seconds[arguments[0]] = self.seconds.get(arguments[0], 0.0) + time.perf_counter() - started
        found: dict[str, Any] = json.loads(output.getvalue())
        return found

    def step(self, title: str, *arguments: str) -> dict[str, Any]:
        """`title` and `command` in one."""
        self.title(title)
        return self.command(*arguments)

    def beside(self, command: str) -> None:
        """Print a command of another program, whose work the demo does itself, with PyAV."""
        self._say(f"  # as: {command}")

    def result(self, text: str) -> None:
        """Print what came of it."""
        self._say(f"  → {text}")

"""One step of the demo: a command as a user would type it, run, and its result in a line."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import time
from collections.abc import Callable
from typing import Any

from hfq.schema.errors import HfqError

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
        """Print a command, run it, and return its `--json` document.

        Raises:
            DemoStepError: it ended with another exit code than the expected one.
        """
        from hfq.cli import run

        command = f"hfq {shlex.join(arguments)}"
        self._say(f"  $ {command}")
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exit_code = run([*arguments, "--json"])
        if exit_code != expected:
            raise DemoStepError("a step failed, see above", where=command, expected=f"exit code {expected}",
                                found=exit_code)  # fmt: skip
        self.seconds[arguments[0]] = self.seconds.get(arguments[0], 0.0) + time.perf_counter() - started
        found: dict[str, Any] = json.loads(output.getvalue())
        return found

    def step(self, title: str, *arguments: str) -> dict[str, Any]:
        """`title` and `command` in one."""
        self.title(title)
        return self.command(*arguments)

    def beside(self, command: str) -> None:
        """Print a command of another program, whose work the demo does itself."""
        self._say(f"  $ {command}")

    def result(self, text: str) -> None:
        """Print what came of it."""
        self._say(f"  → {text}")

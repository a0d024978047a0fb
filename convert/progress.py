"""How long work tells its caller where it is. The rooms never print; the front door draws the bar."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """One task after another: `start`, any number of `advance` and `note`, `finish`."""

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a task of `total` units (`"B"` for bytes, else a noun such as `"steps"`)."""

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""

    def note(self, text: str) -> None:
        """Say something that the user should know, without breaking the bar."""

    def finish(self) -> None:
        """End the current task."""


class Silent:
    """A progress that shows nothing."""

    def start(self, label: str, total: int, unit: str) -> None:
        """Do nothing."""

    def advance(self, amount: int = 1) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

"""What the command prints: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
from tqdm import tqdm

__all__ = [
    "BarProgress",
    "allow_non_finite_option",
    "emit",
    "format_bytes",
    "format_seconds",
    "json_option",
    "json_text",
    "note",
]

allow_non_finite_option = click.option(
    "--allow-non-finite",
    is_flag=True,
    help="Take NaN and infinity in the base's tensors as they are, and say so; else they are refused. A weight that is "
    "quantized must be finite all the same.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


def emit(document: Any, text: str, as_json: bool) -> None:
    """Print the result: `document` as JSON, or `text` for a person."""
    if as_json:
        click.echo(json_text(document))
    else:
        click.echo(_plain(text))


def _plain(text: str) -> str:
    # Reasons, names and paths may come from somebody else's document.
    return "".join(ch if ch.isprintable() or ch == "\n" else "\ufffd" for ch in text)


def json_text(document: Any) -> str:
    """JSON for people and programs: non-ASCII text as it is, but nothing that a terminal would obey."""
    text = json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True)
    # What is unprintable here stands inside a string (control characters below U+0020 are escaped already).
    return "".join(ch if ch.isprintable() or ch == "\n" else _escapes(ch) for ch in text)


def _escapes(ch: str) -> str:
    return json.dumps(ch)[1:-1]


def note(text: str) -> None:
    """Say something beside the data."""
    click.echo(_plain(text), err=True)


def format_bytes(size_bytes: float) -> str:
    """`28.58 GB`: decimal units, as file sizes are quoted on model pages."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.2f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} TB"


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class BarProgress:
    """A tqdm bar on a terminal, a line every ten seconds otherwise. Always on stderr."""

    LINE_EVERY_S = 10.0

    def __init__(self) -> None:
        self._bar: Any = None
        self._label, self._unit, self._total, self._done = "", "", 0, 0
        self._started = self._last_line = 0.0
        self._terminal = sys.stderr.isatty()

    def start(self, label: str, total: int, unit: str) -> None:
        """Begin a task of `total` units."""
        self.finish()
        self._label, self._unit, self._total, self._done = label, unit, total, 0
        self._started = self._last_line = time.monotonic()
        if self._terminal:
            is_bytes = unit == "B"
            self._bar = tqdm(
                total=total,
                desc=label,
                unit="B" if is_bytes else f" {unit}",
                unit_scale=is_bytes,
                file=sys.stderr,
                leave=False,
                dynamic_ncols=True,
            )

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units as done."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
            return
        now = time.monotonic()
        if now - self._last_line >= self.LINE_EVERY_S and self._total:
            self._last_line = now
            elapsed = now - self._started
            left = elapsed / max(self._done, 1) * (self._total - self._done)
            shown = (
                f"{format_bytes(self._done)} of {format_bytes(self._total)}"
                if self._unit == "B"
                else f"{self._done} of {self._total} {self._unit}"
            )
            note(f"{self._label}: {shown}, about {format_seconds(left)} left")

    def note(self, text: str) -> None:
        """Say something without breaking the bar."""
        if self._bar is not None:
            self._bar.clear()
        note(text)

    def finish(self) -> None:
        """End the current task."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

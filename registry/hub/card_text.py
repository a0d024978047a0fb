"""Text for model cards: what Markdown, HTML and the Hub read as words, numbers and tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["plain", "size_text", "table"]

# What Markdown or HTML could take for markup; a reason or a description is somebody's free text.
_MARKUP: Final = re.compile(r"([\\`*_{}\[\]<>()#|!~&@])")


def size_text(size_bytes: float) -> str:
    """Decimal units."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are written as they are."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(text: str) -> str:
    """Free text as one line of words: no markup, no line that begins a block, nothing that does not print."""
    line = " ".join("".join(ch if ch.isprintable() else " " for ch in text).split())
    # GitHub's dialect, which the Hub speaks, makes bare addresses links.
    return _MARKUP.sub(r"\\\1", line).replace("://", ":\\/\\/").replace("www.", "www\\.")

"""Words from documents on their way to a terminal or a diagram."""

from __future__ import annotations

from typing import Final

__all__ = ["DISPLAY_DIGITS", "display_id", "mermaid_label", "printable"]

DISPLAY_DIGITS: Final = 12


def display_id(content_id: str, kind: str = "delta") -> str:
    """`delta:` and 12 digits: for people and for look-up. Documents carry all 64."""
    return f"{kind}:{content_id[:DISPLAY_DIGITS]}"


def printable(text: object, limit: int = 200) -> str:
    """One line without control characters, bidirectional overrides or megabytes."""
    line = "".join(character if character.isprintable() else "\ufffd" for character in str(text)[: limit + 1])
    return line if len(line) <= limit else f"{line[: limit - 1]}\u2026"


def mermaid_label(text: object) -> str:
    """A quoted label. Whatever could end it, or mean markup, becomes Mermaid's `#code;`."""
    plain = " .,:/_+=@-"
    return "".join(letter if letter.isalnum() or letter in plain else f"#{ord(letter)};" for letter in printable(text))

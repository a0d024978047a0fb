"""Prompt files: plain lines, or JSON lines `{"id", "prompt", "image", "last_image", "category"}`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import MalformedFileError, UsageError

__all__ = ["Prompt", "check_prompts", "check_text", "read_prompts"]

_MAX_CHARACTERS: Final = 20_000
_MAX_PROMPTS: Final = 100_000
_FIELDS: Final = {"id", "prompt", "image", "last_image", "category"}


@dataclass(frozen=True)
class Prompt:
    """One prompt; `image` and `last_image` are "blank" or paths, in a prompt file relative to it."""

    text: str
    id: str | None = None
    image: str | None = None
    last_image: str | None = None
    category: str | None = None

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"prompt {self.id or repr(self.text[:40])}"

    def seed(self, seed: int) -> int:
        """Noise seed of this prompt, below 2**53: independent of its place in the file, so that parts merge."""
        return int.from_bytes(hashlib.sha256(f"{seed}|{self.sha256}".encode()).digest()[:8], "big") >> 11


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Read a prompt file; blank lines are skipped.

    Raises:
        MissingPathError, UnreadableFileError: no file that can be read.
        MalformedFileError: a line that is no prompt; the message gives its number.
        UsageError: no prompt at all, or one prompt twice.
    """
    location = Path(path)
    try:
        text = read_bytes(location).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedFileError("not UTF-8", where=location, found=f"byte {error.start}") from None
    prompts = []
    # Not splitlines(): a prompt may hold a form feed or a line separator of another script.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            prompts.append(_parse(line.strip(), f"{location}, line {number}", location.parent))
    check_prompts(prompts, str(location))
    return prompts


def check_prompts(prompts: Sequence[Prompt], where: str) -> None:
    """Check that there are prompts, that each can be stored, and that none occurs twice.

    Raises:
        UsageError, MalformedFileError
    """
    if not prompts:
        raise UsageError("no prompts", where=where, expected="one per line")
    if len(prompts) > _MAX_PROMPTS:
        raise UsageError("too many prompts", where=where, expected=f"at most {_MAX_PROMPTS}", found=len(prompts))
    seen: dict[tuple[str, str | None, str | None], int] = {}
    for number, prompt in enumerate(prompts, 1):
        _checked(prompt, f"{where}: prompt {number}")
        key = (prompt.text, prompt.image, prompt.last_image)
        if key in seen:
            raise UsageError(
                "a prompt occurs twice", where=where, found=f"{prompt.label} as number {seen[key]} and {number}"
            )
        seen[key] = number


def _parse(line: str, where: str, folder: Path) -> Prompt:
    if not line.startswith("{"):
        return _checked(Prompt(line), where)
    entry = parse_json(line.encode(), where)
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise MalformedFileError("a JSON line without a `prompt`", where=where)
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise MalformedFileError("an unknown field", where=where, expected=", ".join(sorted(_FIELDS)), found=unknown[0])
    for name in sorted(_FIELDS):
        if name in entry and (not isinstance(entry[name], str) or not entry[name].strip()):
            raise MalformedFileError(f"`{name}` is no text", where=where, found=json.dumps(entry[name])[:80])
    images = {
        name: entry[name] if entry[name] == "blank" else str(folder / entry[name])
        for name in ("image", "last_image")
        if name in entry
    }
    return _checked(Prompt(entry["prompt"], entry.get("id"), category=entry.get("category"), **images), where)


def _checked(prompt: Prompt, where: str) -> Prompt:
    if not prompt.text.strip():
        raise MalformedFileError("an empty prompt", where=where)
    for name, text in (("prompt", prompt.text), ("id", prompt.id), ("category", prompt.category)):
        check_text(text or "", f"{where}: {name}")
    return prompt


def check_text(text: str, where: str) -> None:
    """Check that a text can be stored in a document.

    Raises:
        MalformedFileError
    """
    if len(text) > _MAX_CHARACTERS:
        raise MalformedFileError(
            "a text that is too long", where=where, expected=f"at most {_MAX_CHARACTERS} characters", found=len(text)
        )
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise MalformedFileError("not UTF-8", where=where)

"""Prompt files: plain lines, JSON lines `{"id", "prompt", "image", "last_image", "category"}`, or one JSON array."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import DuplicateKeyError, MalformedFileError, UsageError

__all__ = [
    "Prompt", "check_prompts", "check_text", "distinct_prompts", "read_prompts", "repeats_line", "sample_numbers",
]  # fmt: skip

_MAX_CHARACTERS: Final = 20_000
_MAX_PROMPTS: Final = 100_000
_FIELDS: Final = {"id", "prompt", "image", "last_image", "category"}
_EXPECTED: Final = "a prompt a line, JSON lines, or a JSON array of texts or objects"

_KINDS: Final = {
    ".csv": "a table", ".tsv": "a table", ".yaml": "YAML", ".yml": "YAML", ".toml": "TOML", ".ini": "settings",
    ".xml": "markup", ".html": "markup", ".htm": "markup", ".rtf": "markup",
}  # fmt: skip
_JSON: Final = {".json", ".jsonl"}
_HEADINGS: Final = {"prompt", "prompts", "prompt_en", "caption", "text"}
_NAME: Final = re.compile(r"[a-z0-9_ -]{0,40}")
_MARKUP: Final = re.compile(r"<(\?xml|!doctype|html)|%PDF-|\{\\rtf", re.IGNORECASE)
_YAML_START: Final = re.compile(r"---|%YAML.*|(prompts?|captions?)\s*[:=]\s*(\[|\|.?|>.?)?")
_FIELD_LINE: Final = re.compile(r"(- )?[\"']?(prompt|caption|text)s?[\"']?\s*[:=]\s", re.IGNORECASE)
_OPENED: Final = re.compile(r"\[\s*([\"'{\]]|\n)|\{\s*\n")
_COMMENT: Final = re.compile(r"(#+|//+)(\s.*)?")
_QUOTED: Final = re.compile(r"([\"']).*\1,?")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Prompt:
    """One prompt; `image` and `last_image` are "blank" or paths, in a prompt file relative to it."""

    text: str
    id: str | None = None
    image: str | None = None
    last_image: str | None = None
    category: str | None = None

    @property
    def key(self) -> tuple[str, str | None, str | None]:
        """What makes two prompts the same one; an id or a category does not."""
        return self.text, self.image, self.last_image

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
    """Read a prompt file: one plain prompt or JSON object a line, or one JSON array of texts or of objects.

    Blank lines are skipped. A prompt that occurs again is listed again: `distinct_prompts` is for who wants each once,
    `sample_numbers` for who makes another sample of it.

    Raises:
        MissingPathError, UnreadableFileError: no file that can be read.
        MalformedFileError: a line or an entry that is no prompt; the message gives its number. A file that is neither
            lines nor JSON: a table, YAML, markup.
        UsageError: no prompt at all.
    """
    location = Path(path)
    try:
        text = read_bytes(location).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedFileError("not UTF-8", where=location, found=f"byte {error.start}") from None
    _refuse_other_formats(text, location)
    entries = _json_entries(text, location)
    if entries is None:
        # Not splitlines(): a prompt may hold a form feed or a line separator of another script.
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        entries = [(f"line {number}", _line_entry(line.strip(), f"{location}, line {number}"))
                   for number, line in enumerate(lines, 1) if line.strip()]  # fmt: skip
        if all(isinstance(entry, str) and entry.startswith('"') and _is_json(entry) for _, entry in entries):
            entries = [(place, json.loads(entry)) for place, entry in entries]
    prompts = [_prompt(entry, f"{location}, {place}", location.parent) for place, entry in entries]
    check_prompts(prompts, str(location))
    return prompts


def distinct_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Every prompt once, in the order of first occurrence: a prompt is its text and its frames."""
    first: dict[tuple[str, str | None, str | None], Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.key, prompt)
    return list(first.values())


def repeats_line(prompts: Sequence[Prompt]) -> str | None:
    """What a calibration says when prompts occur again, or None: more of the same adds no statistics."""
    repeats = len(prompts) - len(distinct_prompts(prompts))
    if not repeats:
        return None
    return f"{repeats} of {len(prompts)} prompts occurred before in the list; each is run once"


def sample_numbers(prompts: Sequence[Prompt]) -> list[int]:
    """How often each prompt occurred before: 0 for the first sample of it, 1 for the next one."""
    seen: Counter[tuple[str, str | None, str | None]] = Counter()
    numbers = []
    for prompt in prompts:
        numbers.append(seen[prompt.key])
        seen[prompt.key] += 1
    return numbers


def check_prompts(prompts: Sequence[Prompt], where: str) -> None:
    """Check that there are prompts, and that each can be stored.

    Raises:
        UsageError, MalformedFileError
    """
    if not prompts:
        raise UsageError("no prompts", where=where, expected="one per line, or a JSON array")
    if len(prompts) > _MAX_PROMPTS:
        raise UsageError("too many prompts", where=where, expected=f"at most {_MAX_PROMPTS}", found=len(prompts))
    for number, prompt in enumerate(prompts, 1):
        _checked(prompt, f"{where}: prompt {number}")


def _refuse_other_formats(text: str, where: Path) -> None:
    """Refuse what would be read as prompts and is none: tables, YAML, markup, binary files that happen to be UTF-8."""
    control = _CONTROL.search(text)
    if control is not None:
        raise MalformedFileError(
            "not a text file", where=where, expected=_EXPECTED, found=f"control character {ord(control[0]):#04x}"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return
    kind = _KINDS.get(where.suffix.lower())
    cells = [cell.strip().strip("\"'").lower() for cell in re.split("[,;\t|]", lines[0])]
    if _MARKUP.match(lines[0]):
        kind = "markup"
    elif cells[0] == "prompt" or (len(cells) > 1 and _HEADINGS & set(cells) and all(map(_NAME.fullmatch, cells))):
        kind = "a table with a heading"
    elif _YAML_START.fullmatch(lines[0]) or (len(lines) > 1 and all(line.startswith(("- ", "* ")) for line in lines)):
        kind = "a YAML or Markdown list"
    elif _FIELD_LINE.match(lines[0]):
        kind = "a line with a field's name"
    elif (comment := next(filter(_COMMENT.fullmatch, lines), None)) is not None:
        kind = f"a comment or a heading: {comment[:40]!r}"
    elif any(line.endswith(",") for line in lines) and all(map(_QUOTED.fullmatch, lines)):
        kind = "quoted texts with commas, a list without its brackets"
    elif len(lines) > 1 and all(re.match(rf"{number}[.):]\s", line) for number, line in enumerate(lines, 1)):
        kind = "a numbered list"
    if kind is not None:
        raise MalformedFileError(
            "neither plain lines nor JSON", where=where, expected=_EXPECTED, found=kind,
            todo="write the prompts alone into a text file, one per line",
        )  # fmt: skip


def _json_entries(text: str, where: Path) -> list[tuple[str, Any]] | None:
    """The entries of a file that is one JSON text, each with its place; None when it is lines."""
    start = text.strip()
    first = start.split("\n", 1)[0]
    if where.suffix.lower() in _JSON and not start.startswith('"') and _is_json(start) and start[0] not in "[{":
        raise MalformedFileError("a JSON value that is no prompt", where=where, expected=_EXPECTED, found=start[:80])
    if not start.startswith(("[", "{")) or (start.startswith("{") and _is_json(first)):
        return None
    # One text over several lines, or one that is broken; not a prompt such as "[wide shot] a cat", nor JSON lines.
    if where.suffix.lower() != ".json" and not _OPENED.match(start) and not _is_json(start):
        return None
    found = parse_json(start.encode(), str(where))
    if isinstance(found, dict):
        return [("the JSON object", found)]
    for number, entry in enumerate(found, 1):
        if not isinstance(entry, str | dict):
            raise MalformedFileError(
                "an entry that is no prompt", where=f"{where}, entry {number}", expected=_EXPECTED,
                found=json.dumps(entry)[:80],
            )  # fmt: skip
    return [(f"entry {number}", entry) for number, entry in enumerate(found, 1)]


def _line_entry(line: str, where: str) -> Any:
    """A plain prompt, or the object of a JSON line."""
    if line.startswith("{"):
        return parse_json(line.encode(), where)
    if line.startswith("[") and _is_json(line):
        raise MalformedFileError("a JSON array in a line", where=where, expected=_EXPECTED, found=line[:80])
    return line


def _is_json(text: str) -> bool:
    try:
        parse_json(text.encode(), "")
    except DuplicateKeyError:
        return True
    except MalformedFileError:
        return False
    return True


def _prompt(entry: Any, where: str, folder: Path) -> Prompt:
    if isinstance(entry, str):
        return _checked(Prompt(entry.strip()), where)
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        found = ", ".join(sorted(map(str, entry))[:8]) if isinstance(entry, dict) else json.dumps(entry)[:80]
        raise MalformedFileError(
            "a JSON entry without a `prompt`", where=where, expected='{"prompt": "..."}', found=found or "nothing"
        )
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

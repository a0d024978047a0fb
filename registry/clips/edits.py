"""A copy of a file with some of its bytes replaced: whatever nobody touches is in the copy as it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["PREVIOUS_COMMENT", "Edit", "free_name", "moved", "write_edited"]

PREVIOUS_COMMENT: Final = "hfq_previous_comment"
"""Under this name the copy keeps a comment that was there; a second one gets `_2`."""

_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes `start` to `end` of the source become `data`; with `start == end` they are put in before `start`."""

    start: int
    end: int
    data: bytes


def moved(edits: Iterable[Edit], position: int) -> int:
    """Where the byte at `position` of the source stands in the copy; it lies in none of the edited ranges."""
    return position + sum(len(edit.data) - (edit.end - edit.start) for edit in edits if edit.end <= position)


def free_name(taken: Iterable[str]) -> str:
    """PREVIOUS_COMMENT, numbered where tags of that name (in any case) are there already."""
    lower, number = {name.lower() for name in taken}, 1
    name = PREVIOUS_COMMENT
    while name in lower:
        number += 1
        name = f"{PREVIOUS_COMMENT}_{number}"
    return name


def write_edited(source: BinaryIO, size_bytes: int, out: Path, edits: Sequence[Edit]) -> None:
    """Write the copy; edits do not overlap."""
    with open(out, "xb") as target:
        position = 0
        for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
            _copy(source, target, position, edit.start)
            target.write(edit.data)
            position = edit.end
        _copy(source, target, position, size_bytes)


def _copy(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    source.seek(start)
    while start < end and (block := source.read(min(_BLOCK_BYTES, end - start))):
        target.write(block)
        start += len(block)

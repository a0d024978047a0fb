"""What `hfq db check` finds."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written. `exit_code` 0 is a note, 1 a damaged database, 3 changed content."""

    code: str
    where: str
    what: str
    exit_code: int

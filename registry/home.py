"""Paths that may begin in somebody's home."""

from __future__ import annotations

import os
from pathlib import Path

from hfq.schema.errors import UsageError

__all__ = ["expanded"]


def expanded(path: str | os.PathLike[str], source: str | None = None) -> Path:
    """The path, with a leading `~` or `~user` as the home that it means.

    Args:
        source: the environment variable that holds it, for the message.

    Raises:
        UsageError: there is no such user, or the user's home is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(
            "the home that this path begins in is not known", where=source, found=os.fspath(path), todo="write it out"
        ) from None

"""What a DELTA argument is: a folder, or the id or alias of a registered delta."""

from __future__ import annotations

import os
from pathlib import Path

from hfq.schema.documents import read_document
from hfq.schema.errors import MissingPathError, UsageError

from .folder import DOCUMENT
from .home import expanded

__all__ = ["existing_folder", "given", "id_in_folder"]


def given(argument: str | os.PathLike[str]) -> str:
    """The argument as text.

    Raises:
        UsageError: it is empty, which as a path would mean the current folder.
    """
    text = os.fspath(argument)
    if not text:
        raise UsageError("no DELTA given", expected="a delta's folder, its id or an alias", found="an empty argument")
    return text


def existing_folder(argument: str | os.PathLike[str]) -> Path | None:
    """The folder of this path; None for an id or an alias.

    Raises:
        UsageError: an empty argument.
        MissingPathError: it is written like a path and there is nothing.
    """
    text = given(argument)
    path = expanded(argument)
    if path.is_dir():
        return path
    if path.exists() or os.sep in text or text.startswith((".", "~")):
        raise MissingPathError("no such folder", where=text, expected="a delta's folder, its id or an alias")
    return None


def id_in_folder(argument: str | os.PathLike[str]) -> str:
    """What to look up: the id that a folder's document has, else the argument itself.

    Raises:
        UsageError: an empty argument.
        and what `hfq.schema.documents.read_document` raises for a folder.
    """
    text = given(argument)
    path = expanded(argument)
    return str(read_document(path / DOCUMENT, "ptq-state")["id"]) if path.is_dir() else text

"""New files beside clips: they appear whole or not at all, and never in the place of another."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hfq.schema.atomic import publish_file
from hfq.schema.errors import OutputExistsError, UsageError

__all__ = ["new_file"]


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path with the same suffix beside `path`; it gets that name when the block ends without an error.

    Raises:
        OutputExistsError: something of that name is there, before or after the block.
        UsageError: no such folder, or one that cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise OutputExistsError("the output is already there", where=path, todo="choose another name, or remove it")
    if not path.parent.is_dir():
        raise UsageError("the folder for the output does not exist", where=path.parent)
    if not os.access(path.parent, os.W_OK):
        raise UsageError("the folder for the output cannot be written", where=path.parent)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

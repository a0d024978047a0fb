"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hfq.schema.errors import OutputExistsError, UsageError

__all__ = [
    "atomic_file",
    "fsync_folder",
    "partial_of",
    "publish_file",
    "publish_folder",
    "refuse_existing",
    "write_file",
]


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write to a temporary name beside `path`; rename when the block ends without an error, remove otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_file(path) as file:
        file.write(data)


def partial_of(out: Path) -> Path:
    """Where an unfinished output lives: `OUT.partial`."""
    return out.with_name(out.name + ".partial")


def refuse_existing(out: Path, *, resume: bool) -> Path:
    """Check that `out` may be made and return its partial folder.

    Raises:
        OutputExistsError: `out` is there, or unfinished work is there and `resume` is false.
        UsageError: the folder that would hold it is not there.
    """
    if out.exists() or out.is_symlink():
        raise OutputExistsError("the output is already there", where=out, todo="choose another name, or remove it")
    if not out.parent.is_dir():
        raise UsageError("the folder for the output does not exist", where=out.parent)
    partial = partial_of(out)
    if partial.exists() and not resume:
        raise OutputExistsError(
            "unfinished work is already there", where=partial, todo="continue it with --resume, or remove it"
        )
    return partial


def publish_file(temporary: Path, path: Path) -> None:
    """Give a finished file its name, unless something has that name: of two writers at once one gets it.

    Raises:
        OutputExistsError: something of that name is there.
    """
    exists = OutputExistsError("the output is already there", where=path, todo="choose another name, or remove it")
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise exists from None
    except OSError:  # a file system without hard links: looked at first, and then renamed
        if path.exists() or path.is_symlink():
            raise exists from None
        os.rename(temporary, path)
    else:
        temporary.unlink()
    fsync_folder(path.parent)


def publish_folder(partial: Path, out: Path) -> None:
    """Give a finished folder its name.

    Raises:
        OutputExistsError: something of that name has appeared.
    """
    if out.exists() or out.is_symlink():  # renaming onto an empty folder would succeed
        raise OutputExistsError("the output appeared meanwhile", where=out, todo="choose another name, or remove it")
    fsync_folder(partial)
    os.rename(partial, out)
    fsync_folder(out.parent)

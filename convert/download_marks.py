"""Marks that programs leave beside a file while they download it. Some take the file's full size from the start.

The Hub's client keeps unfinished files of a local folder in `.cache/huggingface/download/`, mostly under a hash, and
writes a `.metadata` there for each file that is done. Source: huggingface_hub, `_local_folder.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hfq.schema.errors import UnfinishedDownloadError

from .hub_cache import blob_digest

__all__ = ["refuse_unfinished"]

# Behind the file's name, in lower case.
_SUFFIXES: Final = (
    ".incomplete", ".aria2", ".aria2__temp", ".part", ".partial", ".crdownload", ".!qb", ".!ut", ".!bt", ".bc!",
    ".download", ".downloading", ".filepart", ".opdownload", ".xltd", ".td", ".st", ".ytdl", ".lftp-pget-status",
)  # fmt: skip
# Behind the file's name and something that tells attempts apart.
_NUMBERED: Final = (".incomplete", ".partial", ".part")
_HUB_FOLDERS: Final = (Path(".cache/huggingface/download"), Path(".huggingface/download"))
_MOST_PARENTS: Final = 4
"""A file of a repository lies in a folder of a folder, at most."""
_METADATA_BYTES: Final = 4096


def refuse_unfinished(path: Path) -> None:
    """Check that no mark says that a file's download has not ended.

    Raises:
        UnfinishedDownloadError
    """
    mark = next(_marks(path), None)
    if mark is not None:
        raise UnfinishedDownloadError(
            "its download has not ended",
            where=path,
            expected="no mark of a download beside it",
            found=mark,
            todo="let the download end, or start it again; if the file is whole, remove the mark",
        )


def _marks(path: Path) -> Iterator[Path]:
    yield from _beside(path.parent, path.name)
    real = Path(os.path.realpath(path))
    digest = blob_digest(path)
    # A blob named by its SHA-256 is compared with it; what is left of an earlier attempt says nothing.
    if real != path and (digest is None or len(digest) != 64):
        yield from _beside(real.parent, real.name)
    for parent in list(Path(os.path.abspath(path)).parents)[:_MOST_PARENTS]:
        inside = Path(os.path.abspath(path)).relative_to(parent)
        for folder in _HUB_FOLDERS:
            waiting = parent / folder / inside.parent
            # Which file a hash is of does not show; one that is done has been written down.
            if waiting.is_dir() and not _is_done(waiting / f"{path.name}.metadata", path):
                yield from sorted(waiting.glob("*.incomplete"))


def _beside(folder: Path, name: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for entry in sorted(os.listdir(folder)):
            rest = entry.removeprefix(name).lower()
            if rest == entry.lower():
                continue
            if rest in _SUFFIXES or (rest.startswith(".") and rest.endswith(_NUMBERED)):
                yield folder / entry


def _is_done(metadata: Path, path: Path) -> bool:
    """Whether the Hub's client has written down that it finished this very file."""
    try:
        with open(metadata, encoding="utf-8") as file:
            _commit, _etag, finished = file.read(_METADATA_BYTES).split()
        # The client's own rule for a file that nobody has written to since.
        return path.stat().st_mtime - 1 <= float(finished)
    except (OSError, ValueError):
        return False

"""DELTA arguments: a folder, an id or an alias."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hfq.registry.folder import DOCUMENT

if TYPE_CHECKING:
    from hfq.convert.delta import Delta

__all__ = ["delta_folder", "open_delta"]


def delta_folder(text: str) -> Path:
    """The folder of a delta; what is no folder here is looked up in the registry.

    Raises:
        UnknownIdError, AmbiguousIdError: neither a folder nor a known id or alias.
        FolderGoneError: registered, and its folder is not there any more.
    """
    path = Path(text)
    if path.is_dir():
        return path
    if path.is_file() and path.name == DOCUMENT:
        return path.parent
    import hfq

    return Path(hfq.open_registry().locate(text))


def open_delta(text: str) -> Delta:
    """Open a DELTA argument; see `delta_folder` and `load_delta` for what it raises."""
    from hfq.convert.delta import load_delta

    return load_delta(delta_folder(text))

"""DELTA arguments: a folder, an id or an alias. The registry is imported for the last two alone: it takes a while."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hfq.console import note

if TYPE_CHECKING:
    from hfq.convert.delta import Delta
    from hfq.registry import Registry

__all__ = ["delta_folder", "note_absence", "open_delta"]


def delta_folder(text: str) -> Path:
    """The folder of a delta; what is no folder here is looked up in the registry.

    Raises:
        UsageError: an empty argument.
        UnknownIdError, AmbiguousIdError: neither a folder nor a known id or alias.
        FolderGoneError: registered, and its folder is not there any more.
    """
    path = Path(text)
    if text and path.is_dir():
        return path
    import hfq
    from hfq.registry.arguments import given
    from hfq.registry.folder import DOCUMENT

    if Path(given(text)).is_file() and path.name == DOCUMENT:
        return path.parent
    return Path(hfq.open_registry().locate(text))


def note_absence(registry: Registry) -> None:
    """Say on stderr where a registry would be, when there is none: an empty answer is none about deltas."""
    from hfq.registry.status import NO_REGISTRY

    if not registry.is_there:
        note(f"{registry.path}: {NO_REGISTRY}")


def open_delta(text: str) -> Delta:
    """Open a DELTA argument; see `delta_folder` and `load_delta` for what it raises."""
    from hfq.convert.delta import load_delta

    return load_delta(delta_folder(text))

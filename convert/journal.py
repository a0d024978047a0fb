"""The journal of an unfinished conversion: which sites are done, so that a killed run goes on where it was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from hfq.schema.errors import DigestMismatchError, HfqError

from .calibration import file_sha256
from .delta import DOCUMENT, PROVENANCE, REPORT, STATE
from .safetensors_file import SafetensorsFile
from .safetensors_writer import write_safetensors
from .work_folder import WorkFolder, WorkKind

__all__ = ["CONVERSION", "Journal"]

CONVERSION: Final = WorkKind(
    "conversion", "state", re.compile(r"[^/]+\.safetensors"), frozenset({DOCUMENT, STATE, PROVENANCE, REPORT})
)


class Journal:
    """The finished sites in an open work folder; the state tensors are pieces, one file per site.

    Attributes:
        folder: the work folder.
    """

    def __init__(self, folder: WorkFolder) -> None:
        self.folder = folder
        self._entries = {(entry["role"], entry["site"]): entry for entry in folder.entries}

    def get(self, role: str, site: str) -> dict[str, Any] | None:
        """The entry of a finished site."""
        return self._entries.get((role, site))

    def add(self, entry: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Record a finished site; when this returns, a crash cannot lose it."""
        role, site = entry["role"], entry["site"]
        path = self._state_path(role, site)
        full = {**entry, "state_sha256": write_safetensors(path, state) if state else None}
        self.folder.add(full)
        self._entries[role, site] = full

    def state(self, role: str, site: str) -> SafetensorsFile:
        """The state tensors of a finished site, opened.

        Raises:
            DigestMismatchError: the file is not the one that was written.
        """
        path = self._state_path(role, site)
        try:
            file = SafetensorsFile(path)
        except HfqError as error:
            raise DigestMismatchError(
                f"a file of the unfinished conversion is damaged: {error.what}",
                where=path,
                todo="remove the .partial folder and start again",
            ) from None
        if file_sha256(path) != self._entries[role, site]["state_sha256"]:
            file.close()
            raise DigestMismatchError(
                "a tensor of the unfinished conversion was changed",
                where=path,
                todo="remove the .partial folder and start again",
            )
        return file

    def _state_path(self, role: str, site: str) -> Path:
        return self.folder.items / f"{role}.{site}.safetensors"

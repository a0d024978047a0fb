"""The files of a delta that travel: their names, what each may hold, and where a list has them."""

from __future__ import annotations

from typing import Final

from hfq.schema.documents import MAX_DOCUMENT_BYTES
from hfq.schema.errors import HubListingError, HubNotFoundError

from ..folder import DOCUMENT, PROVENANCE, STATE
from .card_check import MAX_CARD_BYTES
from .listing import ListedFile, Listing, check_names

__all__ = ["CARD", "DOCUMENT", "LIMITS", "NAMES", "PROVENANCE", "REPORT", "REQUIRED", "STATE", "listed_files"]

REPORT: Final = "report.json"
CARD: Final = "README.md"

NAMES: Final = (DOCUMENT, STATE, PROVENANCE, REPORT, CARD)
REQUIRED: Final = (DOCUMENT, STATE, PROVENANCE)

LIMITS: Final = {
    DOCUMENT: MAX_DOCUMENT_BYTES,
    PROVENANCE: MAX_DOCUMENT_BYTES,
    REPORT: MAX_DOCUMENT_BYTES,
    CARD: MAX_CARD_BYTES,
}
"""Bytes. The state file has the size that the document says, no other."""


def listed_files(listing: Listing) -> dict[str, ListedFile]:
    """The delta's files of a commit, in the order of NAMES, with sizes inside their bounds.

    Raises:
        HubListingError: a list that no honest repository has.
        HubNotFoundError: it holds no delta.
    """
    check_names(listing, NAMES)
    where = f"{listing.repo}@{listing.commit[:12]}"
    listed = listing.by_name
    for name in REQUIRED:
        if name not in listed:
            raise HubNotFoundError("the repository holds no delta", where=where, expected=name)
    for name, limit in LIMITS.items():
        if name in listed and listed[name].size_bytes > limit:
            raise HubListingError(
                "a file too large",
                where=f"{where}: {name}",
                expected=f"at most {limit} bytes",
                found=listed[name].size_bytes,
            )
    return {name: listed[name] for name in NAMES if name in listed}

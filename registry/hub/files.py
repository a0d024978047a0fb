"""The files of a delta that travel: their names and what each may hold."""

from __future__ import annotations

from typing import Final

from hfq.schema.documents import MAX_DOCUMENT_BYTES

from ..folder import DOCUMENT, PROVENANCE, STATE
from .card_check import MAX_CARD_BYTES

__all__ = ["CARD", "DOCUMENT", "LIMITS", "NAMES", "PROVENANCE", "REPORT", "REQUIRED", "STATE"]

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

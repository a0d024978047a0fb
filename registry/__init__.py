"""The registry: deltas, what they were made from, and what they are called. SQLite, through SQLAlchemy and Alembic."""

from __future__ import annotations

from .lineage import Lineage, render_mermaid, render_text
from .lookup import Filters
from .records import DeltaRecord, DeltaSummary
from .registry import Registry, Status, open_registry
from .store import Registration

__all__ = [
    "DeltaRecord",
    "DeltaSummary",
    "Filters",
    "Lineage",
    "Registration",
    "Registry",
    "Status",
    "open_registry",
    "render_mermaid",
    "render_text",
]

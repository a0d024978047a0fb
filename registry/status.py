"""What lies where the registry should be, and how much it holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from hfq.migrations import HEAD, REVISIONS

from .database import Database
from .models import Alias, Base, Calibration, Clip, Delta, Event, Recipe
from .score_models import Score

__all__ = ["NO_REGISTRY", "Status", "read_status"]

NO_REGISTRY: Final = "there is no registry yet: `hfq register DELTA` makes one, HFQ_REGISTRY names another"


@dataclass(frozen=True, slots=True)
class Status:
    """What `hfq db status` says. `state` is absent, empty, older, current or newer; `counts` only when current."""

    path: Path
    state: str
    revision: str | None
    head: str
    size_bytes: int
    counts: dict[str, int]


def read_status(database: Database) -> Status:
    """What is on disk, without changing it; also for a database of another revision.

    Raises:
        NotARegistryError
    """
    path, revision = database.path, database.revision()
    if revision is None:
        return Status(path, "empty" if path.exists() else "absent", None, HEAD, _size_bytes(path), {})
    if revision != HEAD:
        state = "older" if revision in REVISIONS else "newer"
        return Status(path, state, revision, HEAD, _size_bytes(path), {})
    tables = {
        "deltas": Delta,
        "bases": Base,
        "recipes": Recipe,
        "calibrations": Calibration,
        "aliases": Alias,
        "clips": Clip,
        "scores": Score,
        "events": Event,
    }
    with database.reading() as session:
        counts = {
            name: session.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for name, table in tables.items()
        }
    return Status(path, "current", revision, HEAD, _size_bytes(path), counts)


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

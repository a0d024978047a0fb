"""The history: what happened when. Rows are added and never changed."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from .models import Event
from .records import EventRecord

__all__ = ["events_of", "record_event", "utc_now"]


def utc_now() -> str:
    """ISO 8601 in UTC with microseconds, such as `2026-03-01T12:00:00.000000Z`; sorts as text."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def record_event(session: Session, kind: str, delta_id: str | None, **detail: str) -> None:
    """Add a line: registered, located, folder-reused, aliased, alias-moved, alias-removed, clip, clip-amended,
    clip-stamped-as-another, scored, measured, reviewed, withdrawn.
    """
    row = Event(at=utc_now(), kind=kind, delta_id=delta_id, detail=json.dumps(detail, sort_keys=True))
    session.add(row)


def events_of(session: Session, delta_id: str) -> tuple[EventRecord, ...]:
    """The history of one delta, oldest first."""
    rows = session.scalars(sa.select(Event).where(Event.delta_id == delta_id).order_by(Event.seq))
    return tuple(EventRecord(row.seq, row.at, row.kind, json.loads(row.detail)) for row in rows)

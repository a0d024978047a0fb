"""Writing down what was seen on the Hub. Nothing here contacts it: `hfq.registry.hub` has asked before."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from .events import record_event, utc_now
from .hub_records import HubFileRecord
from .models import Base, BaseExpert, Delta, HubCopy, HubFile

__all__ = ["BasePlace", "DeltaPlace", "OnHub", "store_copy", "store_on_hub", "store_tie"]


@dataclass(frozen=True, slots=True)
class DeltaPlace:
    """A commit (40 hex digits) that holds a delta. `tag` is None where the delta's tag does not name that commit."""

    endpoint: str
    repo: str
    commit: str
    tag: str | None


@dataclass(frozen=True, slots=True)
class BasePlace:
    """A commit (40 hex digits) that holds every file of one copy of a base."""

    endpoint: str
    repo: str
    commit: str
    files: tuple[HubFileRecord, ...]


@dataclass(frozen=True, slots=True)
class OnHub:
    """What the Hub confirmed of a delta and of its base."""

    copy: DeltaPlace | None = None
    bases: tuple[BasePlace, ...] = ()


def store_on_hub(session: Session, delta_id: str, found: OnHub) -> None:
    """Write what is new in `found` about a registered delta and its base; each new fact is a line of its history."""
    if found.copy is not None and store_copy(session, delta_id, found.copy, "registered"):
        record_event(session, "found-on-hub", delta_id, repo=found.copy.repo, commit=found.copy.commit)
    for place in found.bases:
        if store_tie(session, delta_id, place):
            record_event(session, "base-tied", delta_id, repo=place.repo, commit=place.commit)


def store_copy(session: Session, delta_id: str, place: DeltaPlace, how: str) -> bool:
    """Write where a registered delta lies; False where that is known. A tag that is new is added to the known row.

    Args:
        how: pushed, pulled or registered.
    """
    delta_key = session.scalars(sa.select(Delta.key).where(Delta.id == delta_id)).one()
    row = session.scalar(
        sa.select(HubCopy).where(
            HubCopy.delta_key == delta_key,
            HubCopy.endpoint == place.endpoint,
            HubCopy.repo == place.repo,
            HubCopy.commit == place.commit,
        )
    )
    if row is not None:
        row.tag = row.tag or place.tag
        return False
    session.add(
        HubCopy(
            delta_key=delta_key,
            endpoint=place.endpoint,
            repo=place.repo,
            commit=place.commit,
            tag=place.tag,
            how=how,
            recorded_at=utc_now(),
        )
    )
    session.flush()
    return True


def store_tie(session: Session, delta_id: str, place: BasePlace) -> bool:
    """Tie the base of a registered delta to a commit; False where every file of it is tied to that commit already."""
    query = sa.select(BaseExpert.role, BaseExpert.key).join(Base).join(Delta, Delta.base_key == Base.key)
    experts = dict(session.execute(query.where(Delta.id == delta_id)).all())
    tied = sa.select(HubFile.expert_key, HubFile.sha256).where(
        HubFile.expert_key.in_(experts.values()),
        HubFile.endpoint == place.endpoint,
        HubFile.repo == place.repo,
        HubFile.commit == place.commit,
    )
    known = {(key, sha256) for key, sha256 in session.execute(tied)}
    added, now = False, utc_now()
    for file in place.files:
        if (experts[file.role], file.sha256) in known:
            continue
        known.add((experts[file.role], file.sha256))
        session.add(
            HubFile(
                expert_key=experts[file.role],
                sha256=file.sha256,
                endpoint=place.endpoint,
                repo=place.repo,
                commit=place.commit,
                path=file.path,
                tied_at=now,
            )
        )
        added = True
    session.flush()
    return added

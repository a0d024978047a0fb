"""Movable labels for deltas, such as `wan22@prod`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.schema.errors import UnknownIdError, UsageError

from .events import record_event, utc_now
from .models import Alias, Delta

__all__ = ["AliasChange", "check_alias", "list_aliases", "remove_alias", "set_alias"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
_HEX: Final = re.compile(r"[0-9a-fA-F]+")


@dataclass(frozen=True, slots=True)
class AliasChange:
    """What `set` did; `before` is the id that the alias named until now, None for a new one."""

    name: str
    id: str
    before: str | None


def check_alias(name: str) -> str:
    """The name itself, if it may be an alias: it must not read like an id or a path.

    Raises:
        UsageError
    """
    if _NAME.fullmatch(name) is None:
        expected = "letters, digits and . _ @ + -, at most 100"
        raise UsageError("not a name for an alias", expected=expected, found=repr(name))
    if _HEX.fullmatch(name):
        raise UsageError(
            "an alias of hex digits alone would read like an id", found=name, todo=f"take a name like {name}@prod"
        )
    return name


def set_alias(session: Session, name: str, delta: Delta) -> AliasChange:
    """Point `name` at a delta; an alias that exists is moved."""
    row = session.get(Alias, check_alias(name))
    if row is None:
        session.add(Alias(name=name, delta_key=delta.key, set_at=utc_now()))
        record_event(session, "aliased", delta.id, alias=name)
        return AliasChange(name, delta.id, None)
    before = row.delta.id
    if before != delta.id:
        row.delta_key, row.set_at = delta.key, utc_now()
        record_event(session, "alias-moved", delta.id, **{"alias": name, "from": before})
    return AliasChange(name, delta.id, before)


def remove_alias(session: Session, name: str) -> AliasChange:
    """Forget a label; the delta stays.

    Raises:
        UnknownIdError
    """
    row = session.get(Alias, name)
    if row is None:
        raise UnknownIdError("no such alias", found=repr(name), todo="`hfq alias list` shows them all")
    change = AliasChange(name, row.delta.id, row.delta.id)
    record_event(session, "alias-removed", row.delta.id, alias=name)
    session.delete(row)
    return change


def list_aliases(session: Session) -> dict[str, str]:
    """Every alias and the id it names, by name."""
    rows = session.execute(sa.select(Alias.name, Delta.id).join(Delta).order_by(Alias.name))
    return {row[0]: row[1] for row in rows}

"""Movable labels for deltas, such as `wan22@prod`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.schema.errors import AliasMovedError, UnknownIdError, UsageError

from .events import record_event, utc_now
from .models import Alias, Delta
from .text import display_id

__all__ = ["NO_ALIAS", "AliasChange", "check_alias", "expect_alias", "list_aliases", "remove_alias", "set_alias"]

NO_ALIAS: Final = "none"
"""What `expect` takes for an alias that must not be there yet."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")
_HEX: Final = re.compile(r"[0-9a-fA-F]+")


@dataclass(frozen=True, slots=True)
class AliasChange:
    """What `set` did; `before` is the id that the alias named until now, None for a new one."""

    name: str
    id: str
    before: str | None


def check_alias(name: str) -> str:
    """The name itself, if it may be an alias: it must not read like an id, a path or `NO_ALIAS`.

    Raises:
        UsageError
    """
    if _NAME.fullmatch(name) is None:
        expected = "letters, digits and . _ @ + -, at most 100"
        raise UsageError("not a name for an alias", expected=expected, found=repr(name))
    if name.lower() == NO_ALIAS:
        raise UsageError("an alias of this name would read like no alias at all", found=name, todo="take another name")
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


def expect_alias(session: Session, name: str, expected: str | None) -> None:
    """Check what an alias means now, under the lock of the transaction that will change it.

    Args:
        expected: the id that it must mean; None: it must not be there.

    Raises:
        AliasMovedError
    """
    row = session.get(Alias, name)
    found = None if row is None else row.delta.id
    if found != expected:
        raise AliasMovedError(
            f"the alias {name} does not mean what is expected; nothing was changed",
            expected="no such alias" if expected is None else display_id(expected),
            found="no such alias" if found is None else display_id(found),
            todo="look at it again: `hfq alias list`",
        )


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

"""Finding deltas: by id, prefix or alias, and by what they were made from."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, defer, joinedload, selectinload

from hfq.schema.errors import AmbiguousIdError, UnknownIdError, UsageError

from .models import Alias, Base, BaseExpert, Delta, KeptSite, Recipe, RecipeStage
from .records import DeltaSummary, delta_summary
from .text import DISPLAY_DIGITS, display_id

__all__ = ["MIN_PREFIX_DIGITS", "Filters", "find_deltas", "resolve"]

MIN_PREFIX_DIGITS: Final = 4

_HEX: Final = re.compile(r"[0-9a-f]{1,64}")
_CANDIDATES_SHOWN: Final = 5
_MANY: Final = 2000
_LIST_COMMAND: Final = "`hfq list` shows what is registered"


@dataclass(frozen=True, slots=True)
class Filters:
    """What `list` narrows by; None narrows nothing.

    `base`: first hex digits of a bf16 root or of the model-level id. `preset`: a recipe's name. `percentile`: of any
    smooth stage. `kept`: how many sites are kept, or a shell glob that a kept site's whole name matches.
    """

    base: str | None = None
    preset: str | None = None
    percentile: float | None = None
    kept: str | None = None


def resolve(session: Session, text: str) -> str:
    """The full id that `text` means: 64 digits, `delta:` and a prefix, a bare prefix, or an alias.

    Raises:
        UnknownIdError: nothing is called that.
        AmbiguousIdError: a prefix of several; they are named.
    """
    prefixed = text.lower().startswith("delta:")
    digits = text[len("delta:") :].lower() if prefixed else text.lower()
    if _HEX.fullmatch(digits):
        return _resolve_prefix(session, digits, text)
    if prefixed:
        raise UnknownIdError("not an id", found=repr(text), expected="delta: and hex digits", todo=_LIST_COMMAND)
    found = session.scalar(sa.select(Delta.id).join(Alias).where(Alias.name == text))
    if found is None:
        raise UnknownIdError("no delta has this alias", found=repr(text), todo=_LIST_COMMAND)
    return found


def _resolve_prefix(session: Session, digits: str, text: str) -> str:
    if len(digits) < MIN_PREFIX_DIGITS:
        raise UnknownIdError(
            "too short for an id", expected=f"at least {MIN_PREFIX_DIGITS} digits", found=repr(text), todo=_LIST_COMMAND
        )
    starts = _starts_with(Delta.id, digits)
    found = session.scalars(sa.select(Delta.id).where(starts).order_by(Delta.id).limit(_CANDIDATES_SHOWN + 1)).all()
    if not found:
        raise UnknownIdError("no delta has this id", found=repr(text), todo=f"register its folder; {_LIST_COMMAND}")
    if len(found) > 1:
        shown = found[:_CANDIDATES_SHOWN]
        if len({candidate[:DISPLAY_DIGITS] for candidate in shown}) == len(shown):
            shown = [display_id(candidate) for candidate in shown]
        more = " and more" if len(found) > _CANDIDATES_SHOWN else ""
        raise AmbiguousIdError(
            "several deltas begin like this",
            expected="more digits",
            found=f"{text}: {', '.join(shown)}{more}",
            todo="write more digits of the one you mean",
        )
    return found[0]


def _starts_with(column: sa.orm.InstrumentedAttribute[str], digits: str) -> sa.ColumnElement[bool]:
    """A range, which an index serves; `g` sorts after every hex digit."""
    return sa.and_(column >= digits, column < digits + "g")


def find_deltas(session: Session, filters: Filters, limit: int | None) -> tuple[tuple[DeltaSummary, ...], int]:
    """The newest `limit` deltas that pass every filter, newest first, and how many pass in all.

    Raises:
        UsageError: a base that is not hex digits.
    """
    conditions = _conditions(session, filters)
    total = session.scalar(sa.select(sa.func.count()).select_from(Delta).where(*conditions)) or 0
    if limit is not None and total > _MANY:
        # Of many, the newest are soon met in the order of the keys; through a filter's index all of them are sorted.
        conditions = _conditions(session, filters, by_index=False)
    query = (
        sa.select(Delta)
        .where(*conditions)
        .order_by(Delta.key.desc())
        .limit(limit)
        .options(
            joinedload(Delta.base).selectinload(Base.experts),
            joinedload(Delta.recipe).options(defer(Recipe.document), selectinload(Recipe.stages)),
            joinedload(Delta.calibration),
            selectinload(Delta.aliases),
        )
    )
    return tuple(delta_summary(row) for row in session.scalars(query)), total


def _conditions(session: Session, filters: Filters, *, by_index: bool = True) -> list[sa.ColumnElement[bool]]:
    """What a delta must be like. `by_index=False` asks the same of expressions that no index serves."""

    def of(column: sa.orm.InstrumentedAttribute[int]) -> sa.ColumnElement[int]:
        return column.expression if by_index else column + 0

    conditions: list[sa.ColumnElement[bool]] = []
    if filters.base is not None:
        conditions.append(of(Delta.base_key).in_(session.scalars(_bases(filters.base)).all()))
    if filters.preset is not None:
        recipes = session.scalars(sa.select(Recipe.key).where(Recipe.name == filters.preset)).all()
        conditions.append(of(Delta.recipe_key).in_(recipes))
    if filters.percentile is not None:
        stages = sa.select(RecipeStage.recipe_key).where(RecipeStage.percentile == filters.percentile)
        conditions.append(of(Delta.recipe_key).in_(session.scalars(stages.distinct()).all()))
    if filters.kept is not None and filters.kept.isascii() and filters.kept.isdigit() and len(filters.kept) < 10:
        conditions.append(of(Delta.kept) == int(filters.kept))
    elif filters.kept is not None:
        # The globs of recipes, decided by the same function as there; a registry has a few hundred distinct site names.
        sites = [name for name in _sites(session) if fnmatch.fnmatchcase(name, filters.kept)]
        kept = sa.select(KeptSite.delta_key).where(KeptSite.site.in_(sites))
        conditions.append(
            Delta.key.in_(kept) if by_index else kept.where(KeptSite.delta_key == Delta.key).correlate(Delta).exists()
        )
    return conditions


def _sites(session: Session) -> list[str]:
    """Every name of a kept site, by one seek in the index each: DISTINCT would read all rows."""
    names = sa.select(sa.func.min(KeptSite.site).label("site")).cte("names", recursive=True)
    after = sa.select(sa.func.min(KeptSite.site)).where(KeptSite.site > names.c.site).scalar_subquery()
    names = names.union_all(sa.select(after).where(names.c.site.is_not(None)))
    return list(session.scalars(sa.select(names.c.site).where(names.c.site.is_not(None))))


def _bases(text: str) -> sa.Select[int]:
    digits = text.lower().removeprefix("base:")
    if not _HEX.fullmatch(digits):
        raise UsageError("not a base", expected="the first hex digits of its bf16 root or id", found=repr(text))
    by_root = sa.select(BaseExpert.base_key).where(_starts_with(BaseExpert.bf16_root, digits))
    return sa.select(Base.key).where(sa.or_(Base.key.in_(by_root), _starts_with(Base.id, digits)))

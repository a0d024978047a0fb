"""Imports: what was recorded together, which of it counts, and taking one back.

Nothing is deleted or overwritten. Of each metric, cost and reviewed clip the last import that is not withdrawn counts;
importing a file again makes it the last. Clips that were measured here are one import with the base's clips beside
them: a variant is held against the figures of the base that were measured with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, Literal, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from hfq.schema.errors import AmbiguousIdError, UnknownIdError, UnknownScoresError, UsageError

from .clips.clip_document import Variant
from .events import record_event, utc_now
from .lookup import MIN_PREFIX_DIGITS
from .score_models import Measured, Review, Score, ScoreImport, ScoreImportItem
from .scores.names import match_key
from .scores.values import UNITS, Quantity
from .text import DISPLAY_DIGITS, display_id

__all__ = [
    "ImportKind",
    "ImportRecord",
    "Withdrawal",
    "add_import",
    "counting_outcomes",
    "counting_scores",
    "find_import",
    "import_content",
    "import_id",
    "last_import",
    "read_imports",
    "record_of_variant",
    "scores_beside",
    "standing",
    "withdraw_import",
]

ImportKind = Literal["scores", "cost", "review"]
State = Literal["counts", "counts in part", "replaced", "withdrawn"]
Measure = tuple[str, str, str | None]
"""Suite, metric, prompt set."""

MAX_REASON: Final = 400
"""Characters."""

standing: Final = ScoreImport.withdrawn_at.is_(None)
"""The condition of an import that is not withdrawn."""


@dataclass(frozen=True, slots=True)
class ImportRecord:
    """An import for people and programs. `what` says it in words; `withdrawn_at` and `reason` are None for one that
    stands.
    """

    id: str
    kind: ImportKind
    variant: Variant
    what: str
    state: State
    imported_at: str
    withdrawn_at: str | None
    reason: str | None

    def __str__(self) -> str:
        text = f"{display_id(self.id, 'import')}  {self.imported_at[:19]}Z  {self.what}: {self.state}"
        return text if self.reason is None else f"{text} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What withdrawing did. `is_new`: False where the import was withdrawn before; its first reason stays."""

    record: ImportRecord
    is_new: bool


def add_import(session: Session, kind: ImportKind, variant: Variant, content: Sequence[Any]) -> ScoreImport:
    """A new import, the last one from now on; the caller holds the write lock and adds the rows.

    Args:
        content: see `import_id`.
    """
    now = utc_now()
    row = ScoreImport(
        id=import_id(kind, variant, now, content), kind=kind, variant_kind=variant.kind, variant_id=variant.id,
        imported_at=now,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row


def import_id(kind: str, variant: Variant, imported_at: str, content: Sequence[Any]) -> str:
    """Hex SHA-256 over the JSON text (ASCII, as Python writes it) of kind, variant, time and content.

    Args:
        content: ids of scores; or [quantity, value, device, kernels, settings] of each measurement; or [stem, accepted,
            category] of each outcome.
    """
    ordered = sorted(content) if kind == "scores" else list(content)
    return hashlib.sha256(json.dumps([kind, variant.kind, variant.id, imported_at, ordered]).encode()).hexdigest()


def import_content(session: Session, row: ScoreImport) -> list[Any]:
    """What the id of an import is made of, as it is stored now."""
    if row.kind == "scores":
        items = sa.select(Score.id).join(ScoreImportItem, ScoreImportItem.score_key == Score.key)
        return list(session.scalars(items.where(ScoreImportItem.import_key == row.key)))
    if row.kind == "cost":
        costs = (Measured.quantity, Measured.value, Measured.device, Measured.kernels, Measured.settings)
        measured = session.execute(sa.select(*costs).where(Measured.import_key == row.key).order_by(Measured.key))
        return [list(found) for found in measured]
    outcomes = sa.select(Review.stem, Review.accepted, Review.category).where(Review.import_key == row.key)
    return [list(found) for found in session.execute(outcomes.order_by(Review.key))]


def last_import(session: Session, score_keys: Iterable[int]) -> dict[int, int]:
    """The last import that stands of each score, by keys; a score of which none stands is missing."""
    query = (
        sa.select(ScoreImportItem.score_key, sa.func.max(ScoreImportItem.import_key))
        .join(ScoreImport, ScoreImport.key == ScoreImportItem.import_key)
        .where(ScoreImportItem.score_key.in_(list(score_keys)), standing)
        .group_by(ScoreImportItem.score_key)
    )
    return {score_key: import_key for score_key, import_key in session.execute(query)}  # noqa: C416 (types)


def counting_scores(session: Session, variant_id: str) -> dict[Measure, int]:
    """The key of the score that counts, by measure."""
    query = sa.select(Score.metric_suite, Score.metric, Score.prompt_set, Score.key)
    rows = session.execute(query.where(Score.variant_id == variant_id, Score.counts == sa.true()))
    return {(suite, metric, prompt_set): key for suite, metric, prompt_set, key in rows}


def scores_beside(session: Session, delta_id: str, base_id: str) -> dict[Measure, int]:
    """Keys of the base's scores that were measured together with the delta's scores that count, by measure."""
    mine = counting_scores(session, delta_id)
    imports = last_import(session, mine.values())
    columns = (ScoreImportItem.import_key, Score.metric_suite, Score.metric, Score.prompt_set, Score.key)
    query = (
        sa.select(*columns)
        .join(Score, Score.key == ScoreImportItem.score_key)
        .where(ScoreImportItem.import_key.in_(set(imports.values())), Score.variant_id == base_id)
    )
    found: dict[tuple[int, Measure], int] = {}
    for import_key, suite, metric, prompt_set, score_key in session.execute(query):
        found[import_key, (suite, metric, prompt_set)] = score_key
    return {
        measure: found[imports[key], measure]
        for measure, key in mine.items()
        if key in imports and (imports[key], measure) in found
    }


def find_import(session: Session, text: str) -> ScoreImport:
    """The import of an id, or of its first digits, with or without `import:` before them.

    Raises:
        UnknownIdError, AmbiguousIdError
    """
    digits = text.lower().removeprefix("import:")
    found: Sequence[ScoreImport] = ()
    if len(digits) >= MIN_PREFIX_DIGITS and set(digits) <= set("0123456789abcdef"):
        query = sa.select(ScoreImport).where(ScoreImport.id.startswith(digits)).order_by(ScoreImport.key).limit(6)
        found = session.scalars(query).all()
    if len(found) > 1:
        shown = ", ".join(display_id(one.id, "import") for one in found)
        raise AmbiguousIdError("several imports begin like this", expected="more digits", found=shown)
    if not found:
        raise UnknownIdError(
            "no import has this id", found=repr(text), expected="import: and at least 4 hex digits",
            todo="`hfq show ID` lists the imports of a delta",
        )  # fmt: skip
    return found[0]


def record_of_variant(session: Session, variant: Variant) -> ScoreImport:
    """The last import of a variant that stands.

    Raises:
        UnknownScoresError: there is none.
    """
    query = sa.select(ScoreImport).where(ScoreImport.variant_id == variant.id, standing)
    row = session.scalars(query.order_by(ScoreImport.key.desc()).limit(1)).first()
    if row is None:
        raise UnknownScoresError("nothing is recorded of it that is not withdrawn", where=str(variant))
    return row


def withdraw_import(session: Session, row: ScoreImport, reason: str) -> Withdrawal:
    """Mark an import as withdrawn, and let the import before it count again; the caller holds the write lock.

    Raises:
        UsageError: no reason, or one that cannot be printed on a line.
    """
    text = reason.strip()
    if not text or len(text) > MAX_REASON or not text.isprintable():
        raise UsageError(
            "not a reason", expected=f"1 to {MAX_REASON} printable characters", found=repr(reason[: MAX_REASON + 1])
        )
    is_new = row.withdrawn_at is None
    if is_new:
        row.withdrawn_at, row.reason = utc_now(), text
        session.flush()
        for measure in _measures(session, row):
            _count_last(session, *measure)
        variant = {} if row.variant_kind == "delta" else {"base": row.variant_id}
        delta = row.variant_id if row.variant_kind == "delta" else None
        record_event(session, "withdrawn", delta, **{"import": row.id, "reason": text}, **variant)
    return Withdrawal(_describe(session, row), is_new)


def counting_outcomes(session: Session, variant_id: str) -> list[Review]:
    """Outcomes of a variant in the order in which they came: of each clip those of the last file that names it."""
    query = sa.select(Review).join(ScoreImport, ScoreImport.key == Review.import_key)
    rows = session.scalars(query.where(Review.variant_id == variant_id, standing).order_by(Review.key)).all()
    found: list[Review] = []
    for _, group in groupby(reversed(rows), key=lambda row: row.import_key):
        outcomes = list(group)
        later = {match_key(row.stem) for row in found}
        found += [row for row in outcomes if match_key(row.stem) not in later]
    return found[::-1]


def _measures(session: Session, row: ScoreImport) -> list[tuple[str, Measure]]:
    query = sa.select(Score.variant_id, Score.metric_suite, Score.metric, Score.prompt_set)
    query = query.join(ScoreImportItem, ScoreImportItem.score_key == Score.key)
    found = session.execute(query.where(ScoreImportItem.import_key == row.key))
    return [(variant_id, (suite, metric, prompt_set)) for variant_id, suite, metric, prompt_set in found]


def _count_last(session: Session, variant_id: str, measure: Measure) -> None:
    same = (
        Score.variant_id == variant_id,
        Score.metric_suite == measure[0],
        Score.metric == measure[1],
        Score.prompt_set.is_not_distinct_from(measure[2]),
    )
    last = session.scalar(
        sa.select(ScoreImportItem.score_key)
        .join(ScoreImport, ScoreImport.key == ScoreImportItem.import_key)
        .join(Score, Score.key == ScoreImportItem.score_key)
        .where(*same, standing)
        .order_by(ScoreImport.key.desc())
        .limit(1)
    )
    session.execute(
        sa.update(Score).where(*same).values(counts=sa.false() if last is None else Score.key == last),
        execution_options={"synchronize_session": False},
    )


def read_imports(session: Session, variant_id: str) -> tuple[ImportRecord, ...]:
    """Everything that was ever recorded of a delta or base, oldest first."""
    rows = session.scalars(sa.select(ScoreImport).where(ScoreImport.variant_id == variant_id).order_by(ScoreImport.key))
    return tuple(_describe(session, row) for row in rows)


def _describe(session: Session, row: ScoreImport) -> ImportRecord:
    variant = Variant(row.variant_kind, row.variant_id)
    what, counting, total = {"scores": _scores, "cost": _cost, "review": _review}[row.kind](session, row)
    state: State = "counts" if counting == total else "counts in part" if counting else "replaced"
    if row.withdrawn_at is not None:
        state = "withdrawn"
    return ImportRecord(
        row.id, cast(ImportKind, row.kind), variant, what, state, row.imported_at, row.withdrawn_at, row.reason
    )


def _scores(session: Session, row: ScoreImport) -> tuple[str, int, int]:
    """In words, and how many of how many scores of the variant count through this import."""
    query = sa.select(Score.key, Score.metric_suite, Score.counts, Score.source_sha256, Score.variant_id)
    query = query.join(ScoreImportItem, ScoreImportItem.score_key == Score.key)
    found = session.execute(query.where(ScoreImportItem.import_key == row.key).order_by(Score.key)).all()
    mine = [score for score in found if score.variant_id == row.variant_id]
    last = last_import(session, [score.key for score in mine])
    counting = sum(score.counts and last.get(score.key) == row.key for score in mine)
    beside = " beside its base" if len(mine) < len(found) else ""
    suites = ", ".join(sorted({score.metric_suite for score in mine}))
    sources = ", ".join(sorted({score.source_sha256[:DISPLAY_DIGITS] for score in mine}))
    return f"{len(mine)} metrics of {suites}{beside}, source {sources}", counting, len(mine)


def _cost(session: Session, row: ScoreImport) -> tuple[str, int, int]:
    found = session.scalars(sa.select(Measured).where(Measured.import_key == row.key).order_by(Measured.key)).all()
    later = aliased(Measured)
    counting = 0
    for one in found:
        replaced = (
            sa.select(later.key)
            .join(ScoreImport, ScoreImport.key == later.import_key)
            .where(
                standing,
                later.variant_id == one.variant_id,
                later.quantity == one.quantity,
                later.device == one.device,
                later.kernels == one.kernels,
                later.settings == one.settings,
                later.key > one.key,
            )
        )
        counting += session.execute(replaced.limit(1)).first() is None
    words = (f"{one.quantity} {one.value:g} {UNITS[cast(Quantity, one.quantity)]} on {one.device}, "
             f"{one.kernels} kernels" for one in found)  # fmt: skip
    return ", ".join(words), counting, len(found)


def _review(session: Session, row: ScoreImport) -> tuple[str, int, int]:
    total = session.scalar(sa.select(sa.func.count()).where(Review.import_key == row.key)) or 0
    counting = sum(outcome.import_key == row.key for outcome in counting_outcomes(session, row.variant_id))
    return f"{total} outcomes of reviewers", counting, total

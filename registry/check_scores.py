"""Scores in `hfq db check`: does a score have the id of its content, and do the columns that repeat something agree?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased, joinedload

from hfq.schema.errors import HfqError

from .clips.clip_document import Variant
from .finding import Finding
from .models import Base, Clip, Delta
from .score_imports import import_content, import_id, standing
from .score_models import Measured, Review, Score, ScoreImport, ScoreImportItem
from .score_store import prompts_digest, score_id, stored_score
from .text import display_id

__all__ = ["check_scores", "unknown_variants"]

_BATCH: Final = 500


def check_scores(session: Session) -> Iterator[Finding]:
    """Every score against its videos, its imports and the base of its variant."""
    rows = session.scalars(
        sa.select(Score)
        .options(joinedload(Score.settings), joinedload(Score.clips))
        .order_by(Score.key)
        .execution_options(yield_per=_BATCH)
    )
    changed: set[int] = set()
    for row in rows:
        for finding in _content(session, row):
            changed.add(row.key)
            yield finding
    yield from _order(session)
    yield from _imports(session, changed)
    of_base = sa.select(Base.key).where(Base.id == Score.variant_id).correlate(Score).scalar_subquery()
    of_delta = sa.select(Delta.base_key).where(Delta.id == Score.variant_id).correlate(Score).scalar_subquery()
    expected = sa.case((Score.variant_kind == "base", of_base), else_=of_delta)
    for row in session.scalars(sa.select(Score).where(Score.base_key.is_distinct_from(expected))):
        yield Finding("score-base", _name(row), "the recorded base is not that of its variant", 1)


def _order(session: Session) -> Iterator[Finding]:
    """Of each measure the score of the last import that stands counts."""
    measure = (Score.variant_id, Score.metric_suite, Score.metric, Score.prompt_set)
    last = (
        sa.select(*measure, sa.func.max(ScoreImportItem.import_key).label("import_key"))
        .join(ScoreImportItem, ScoreImportItem.score_key == Score.key)
        .join(ScoreImport, ScoreImport.key == ScoreImportItem.import_key)
        .where(standing)
        .group_by(*measure)
        .subquery()
    )
    mine = sa.exists().where(ScoreImportItem.score_key == Score.key, ScoreImportItem.import_key == last.c.import_key)
    of_last = sa.and_(
        last.c.variant_id == Score.variant_id,
        last.c.metric_suite == Score.metric_suite,
        last.c.metric == Score.metric,
        last.c.prompt_set.is_not_distinct_from(Score.prompt_set),
    )
    wrong = sa.select(Score).outerjoin(last, of_last).where(Score.counts != mine)
    for row in session.scalars(wrong):
        yield Finding(
            "score-order", _name(row), "not the last import that is not withdrawn decides whether it counts", 1
        )


def _imports(session: Session, changed: set[int]) -> Iterator[Finding]:
    """Every import against its id, and every score, cost and outcome against its import.

    Args:
        changed: keys of scores that are reported already; their imports would only repeat the news.
    """
    items = sa.select(ScoreImportItem.import_key).where(ScoreImportItem.score_key.in_(changed))
    reported = set(session.scalars(items)) if changed else set()
    for row in session.scalars(sa.select(ScoreImport).order_by(ScoreImport.key).execution_options(yield_per=_BATCH)):
        variant = Variant(row.variant_kind, row.variant_id)
        where = f"{display_id(row.id, 'import')} of {variant}"
        if row.key in reported:
            continue
        if import_id(row.kind, variant, row.imported_at, import_content(session, row)) != row.id:
            yield Finding("import-changed", where, "the stored import has another id", 3)
    alone = ~sa.select(ScoreImportItem.score_key).where(ScoreImportItem.score_key == Score.key).exists()
    for score in session.scalars(sa.select(Score).where(alone)):
        yield Finding("score-import", _name(score), "a score of no import", 1)
    scored = sa.select(Base.id).join(Delta, Delta.base_key == Base.key).where(Delta.id == ScoreImport.variant_id)
    foreign = (
        sa.select(ScoreImport.id, Score)
        .join(ScoreImportItem, ScoreImportItem.import_key == ScoreImport.key)
        .join(Score, Score.key == ScoreImportItem.score_key)
        .where(
            Score.variant_id != ScoreImport.variant_id,
            Score.variant_id.not_in(scored.correlate(ScoreImport).scalar_subquery()),
        )
    )
    for digits, score in session.execute(foreign):
        yield Finding("score-import", _name(score), f"in {display_id(digits, 'import')} of another variant", 1)
    for table in (Measured, Review):
        other = sa.select(table.variant_kind, table.variant_id).join(ScoreImport, ScoreImport.key == table.import_key)
        for kind, variant_id in session.execute(other.where(table.variant_id != ScoreImport.variant_id)):
            yield Finding(
                "score-import", str(Variant(kind, variant_id)), f"a {table.__tablename__} of another's import", 1
            )


def _content(session: Session, row: Score) -> Iterator[Finding]:
    where = _name(row)
    try:
        stored = stored_score(session, row)
        variant = Variant(row.variant_kind, row.variant_id)
        digest = score_id(variant, stored.scores, stored.settings, row.source_sha256, stored.origin)
    except (HfqError, ValueError) as error:
        yield Finding("score-changed", where, f"cannot be read back: {error}", 3)
        return
    scores = stored.scores
    if digest != row.id:
        yield Finding("score-changed", where, "the stored score has another id", 3)
    repeated = (scores.recomputed, len(scores.videos), prompts_digest(video.prompt_sha256 for video in scores.videos))
    if repeated != (row.mean, row.videos, row.prompts_sha256):
        yield Finding("score-videos", where, "the mean, count or prompts are not those of its videos", 1)


def _name(row: Score) -> str:
    where = f" on {row.prompt_set}" if row.prompt_set else ""
    return f"{Variant(row.variant_kind, row.variant_id)} {row.metric_suite} {row.metric}{where}"


def unknown_variants(session: Session) -> Iterator[Finding]:
    """A note for each variant of scores, measurements, reviews or clips that is not registered.

    No damage: results may arrive before their delta. A base is also known by clips of its own.
    """
    found: dict[Variant, list[str]] = {}
    tables: tuple[tuple[type[Score | Measured | Review | Clip], str], ...] = (
        (Score, "scores"), (Measured, "measurements"), (Review, "outcomes"), (Clip, "clips"),
    )  # fmt: skip
    own = aliased(Clip)
    for table, word in tables:
        is_delta = sa.select(Delta.key).where(Delta.id == table.variant_id)
        is_base = sa.select(Base.key).where(Base.id == table.variant_id)
        has_clip = sa.select(own.key).where(own.variant_kind == "base", own.variant_id == table.variant_id)
        known = sa.case(
            (table.variant_kind == "delta", is_delta.exists()), else_=sa.or_(is_base.exists(), has_clip.exists())
        )
        query = sa.select(table.variant_kind, table.variant_id, sa.func.count()).where(sa.not_(known))
        for kind, variant_id, count in session.execute(query.group_by(table.variant_kind, table.variant_id)):
            found.setdefault(Variant(kind, variant_id), []).append(f"{count} {word}")
    for variant, counts in sorted(found.items()):
        yield Finding("unknown-variant", str(variant), f"not registered; {', '.join(counts)} of it", 0)

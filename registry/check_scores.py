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
from .score_models import Measured, Review, Score
from .score_store import prompts_digest, score_id, stored_score

__all__ = ["check_scores", "unknown_variants"]

_BATCH: Final = 500


def check_scores(session: Session) -> Iterator[Finding]:
    """Every score against its videos, the order of imports and the base of its variant."""
    rows = session.scalars(
        sa.select(Score)
        .options(joinedload(Score.settings), joinedload(Score.clips))
        .order_by(Score.key)
        .execution_options(yield_per=_BATCH)
    )
    for row in rows:
        yield from _content(session, row)
    later = aliased(Score)
    after = (
        sa.select(sa.func.min(later.key))
        .where(
            later.variant_id == Score.variant_id,
            later.metric_suite == Score.metric_suite,
            later.metric == Score.metric,
            later.prompt_set.is_not_distinct_from(Score.prompt_set),
            later.key > Score.key,
        )
        .correlate(Score)
        .scalar_subquery()
    )
    for row in session.scalars(sa.select(Score).where(Score.superseded_by.is_distinct_from(after))):
        yield Finding("score-order", _name(row), "not the import that came last decides whether it counts", 1)
    of_base = sa.select(Base.key).where(Base.id == Score.variant_id).correlate(Score).scalar_subquery()
    of_delta = sa.select(Delta.base_key).where(Delta.id == Score.variant_id).correlate(Score).scalar_subquery()
    expected = sa.case((Score.variant_kind == "base", of_base), else_=of_delta)
    for row in session.scalars(sa.select(Score).where(Score.base_key.is_distinct_from(expected))):
        yield Finding("score-base", _name(row), "the recorded base is not that of its variant", 1)


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

"""Writing the scores of an import, which then count. What an import says is never overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.schema.errors import UsageError

from .clips.clip_document import Variant
from .events import utc_now
from .models import Base, Delta
from .score_imports import add_import, last_import
from .score_models import Score, ScoreClips, ScoreImport, ScoreImportItem, ScoreSettings, ScoreVideo
from .score_store import Settings, prompts_digest, record_scored, score_id, settings_text
from .scores.origin import ClipOrigin
from .scores.values import MetricScores

__all__ = ["Imported", "Side", "store_scores"]

_ROWS: Final = 5000
"""Rows per INSERT: a VBench run has tens of thousands."""


@dataclass(frozen=True, slots=True)
class Side:
    """Scores of a variant that are imported together.

    Args:
        settings: of the generation: guidance, steps, shift, frames and the like.
        source_sha256: hex SHA-256 of what was read.
        origin: whose the clips are, where they were measured here.
    """

    variant: Variant
    scores: Sequence[MetricScores]
    settings: Settings
    source_sha256: str
    origin: ClipOrigin | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """`id` of the import through which the scores count, and how many of each side did not count before."""

    id: str
    new: tuple[int, ...]


def store_scores(session: Session, sides: Sequence[Side]) -> Imported:
    """Write the metrics of one import, which then count; the caller holds the write lock. What counts already is not
    imported again.

    Args:
        sides: the variant, and where its clips were measured beside those of its base, the base.

    Raises:
        UsageError: a setting or a name that JSON does not have, one metric two times, or none at all.
    """
    rows = [[_score_row(session, side, metric) for metric in side.scores] for side in sides]
    if not rows[0]:
        raise UsageError("nothing to import", where=str(sides[0].variant))
    known = _known_import(session, rows)
    if known is not None:
        return Imported(known, (0,) * len(sides))
    every = [row for side in rows for row in side]
    if len({row.key for row in every}) < len(every) or len({_measure_of(row) for row in every}) < len(every):
        raise UsageError("one metric two times in an import", where=str(sides[0].variant))
    made = add_import(session, "scores", sides[0].variant, [row.id for row in every])
    session.add_all(ScoreImportItem(import_key=made.key, score_key=row.key) for row in every)
    new = tuple(sum(_make_count(session, row) for row in side) for side in rows)
    for side, count in zip(sides, new, strict=True):
        if count:
            suites = ", ".join(sorted({metric.metric_suite for metric in side.scores}))
            record_scored(session, "scored", side.variant, suite=suites, metrics=str(count), via=made.id)
    return Imported(made.id, new)


def _known_import(session: Session, rows: Sequence[Sequence[Score]]) -> str | None:
    """The import through which all scores of the first side count already, beside the same scores of the other."""
    if not all(row.counts for row in rows[0]):
        return None
    imports = set(last_import(session, [row.key for row in rows[0]]).values())
    if len(rows) == 1:
        return session.scalar(sa.select(ScoreImport.id).where(ScoreImport.key == max(imports)))
    if len(imports) > 1:
        return None
    (key,) = imports
    items = set(session.scalars(sa.select(ScoreImportItem.score_key).where(ScoreImportItem.import_key == key)))
    if items != {row.key for side in rows for row in side}:
        return None
    return session.scalar(sa.select(ScoreImport.id).where(ScoreImport.key == key))


def _make_count(session: Session, row: Score) -> bool:
    """Let this score count, and no other of its measure; False where it did."""
    if row.counts:
        return False
    session.execute(
        sa.update(Score)
        .where(
            Score.variant_id == row.variant_id,
            Score.metric_suite == row.metric_suite,
            Score.metric == row.metric,
            Score.prompt_set.is_not_distinct_from(row.prompt_set),
            Score.counts == sa.true(),
        )
        .values(counts=sa.false()),
        execution_options={"synchronize_session": False},
    )
    row.counts = True
    session.flush()
    return True


def _measure_of(row: Score) -> tuple[str, str, str, str | None]:
    return row.variant_id, row.metric_suite, row.metric, row.prompt_set


def _score_row(session: Session, side: Side, metric: MetricScores) -> Score:
    """The row of a metric, with its videos; it is written where it is new, and does not count yet."""
    digest = score_id(side.variant, metric, side.settings, side.source_sha256, side.origin)
    known = session.scalar(sa.select(Score).where(Score.id == digest))
    if known is not None:
        return known
    row = Score(
        id=digest,
        variant_kind=side.variant.kind,
        variant_id=side.variant.id,
        prompt_set=metric.prompt_set,
        metric_suite=metric.metric_suite,
        metric=metric.metric,
        direction=metric.direction,
        scale=metric.scale,
        stated=metric.stated,
        mean=metric.recomputed,
        videos=len(metric.videos),
        source_sha256=side.source_sha256,
        prompts_sha256=prompts_digest(video.prompt_sha256 for video in metric.videos),
        settings_key=_settings_key(session, side.settings),
        base_key=_base_key(session, side.variant),
        counts=False,
        imported_at=utc_now(),
    )
    session.add(row)
    session.flush()
    if side.origin is not None:
        session.add(ScoreClips(score_key=row.key, **asdict(side.origin)))
    videos = _video_rows(row.key, metric)
    for start in range(0, len(videos), _ROWS):
        session.execute(sa.insert(ScoreVideo), videos[start : start + _ROWS])
    return row


def _settings_key(session: Session, settings: Settings) -> int:
    document = settings_text(settings)
    row = session.scalar(sa.select(ScoreSettings).where(ScoreSettings.document == document))
    if row is None:
        row = ScoreSettings(document=document)
        session.add(row)
        session.flush()
    return row.key


def _base_key(session: Session, variant: Variant) -> int | None:
    query = sa.select(Base.key).where(Base.id == variant.id)
    if variant.kind == "delta":
        query = sa.select(Delta.base_key).where(Delta.id == variant.id)
    return session.scalar(query)


def _video_rows(key: int, metric: MetricScores) -> list[dict[str, Any]]:
    rows = [
        {
            "stem": video.stem,
            "sample": video.sample,
            "prompt_sha256": video.prompt_sha256,
            "category": video.category,
            "value": video.value,
            "seed": video.seed,
        }
        for video in metric.videos
    ]
    blank = {"sample": None, "prompt_sha256": None, "category": None, "value": None, "seed": None}
    rows += [{"stem": stem, **blank} for stem in metric.unscored]
    return [{"score_key": key, "position": position, **row} for position, row in enumerate(rows)]

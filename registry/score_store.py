"""Scores, measurements and reviews in the registry: written once, read back as the plain values of `scores/`.

What an import says is never overwritten. The last import of a metric on a prompt set is the one that counts; the ones
before it stay as rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session, joinedload

from hfq.schema.canonical import CanonicalizationError, canonical_json, sha256_hex
from hfq.schema.errors import UsageError

from .clips.clip_document import Variant
from .events import record_event, utc_now
from .models import Base, Delta
from .score_models import Measured, Review, Score, ScoreClips, ScoreSettings, ScoreVideo
from .scores.origin import ClipOrigin
from .scores.values import (
    Direction,
    Kernels,
    Measurement,
    MetricScores,
    Quantity,
    ReviewOutcome,
    SettingValue,
    VideoScore,
)

__all__ = [
    "StoredScore",
    "claim_scores",
    "prompts_digest",
    "read_measurements",
    "read_reviews",
    "read_scores",
    "score_id",
    "scored_deltas",
    "store_measurement",
    "store_reviews",
    "store_scores",
    "stored_score",
]

Settings = Mapping[str, SettingValue]

_ROWS = 5000
"""Rows per INSERT: a VBench run has tens of thousands."""


@dataclass(frozen=True, slots=True)
class StoredScore:
    """A score as it was imported.

    Args:
        settings: how the clips were generated, as far as it was recorded.
        origin: whose the clips are; None where another program scored them.
    """

    scores: MetricScores
    settings: Settings
    source_sha256: str
    imported_at: str
    origin: ClipOrigin | None = None


def store_scores(
    session: Session,
    variant: Variant,
    scores: Sequence[MetricScores],
    settings: Settings,
    source_sha256: str,
    origin: ClipOrigin | None = None,
) -> int:
    """Write the metrics of one import and return how many were new; the caller holds the write lock.

    Args:
        settings: of the generation: guidance, steps, shift, frames and the like.
        source_sha256: hex SHA-256 of what was read.
        origin: whose the clips are, where they were measured here.

    Raises:
        UsageError: a setting or a name that JSON does not have.
    """
    new = 0
    for metric in scores:
        digest = score_id(variant, metric, settings, source_sha256, origin)
        if session.scalar(sa.select(Score.key).where(Score.id == digest)) is not None:
            continue
        row = Score(
            id=digest,
            variant_kind=variant.kind,
            variant_id=variant.id,
            prompt_set=metric.prompt_set,
            metric_suite=metric.metric_suite,
            metric=metric.metric,
            direction=metric.direction,
            scale=metric.scale,
            stated=metric.stated,
            mean=metric.recomputed,
            videos=len(metric.videos),
            source_sha256=source_sha256,
            prompts_sha256=prompts_digest(video.prompt_sha256 for video in metric.videos),
            settings_key=_settings_key(session, settings),
            base_key=_base_key(session, variant),
            imported_at=utc_now(),
        )
        session.add(row)
        session.flush()
        session.execute(
            sa.update(Score)
            .where(
                Score.variant_id == variant.id,
                Score.metric_suite == metric.metric_suite,
                Score.metric == metric.metric,
                Score.prompt_set.is_not_distinct_from(metric.prompt_set),
                Score.superseded_by.is_(None),
                Score.key != row.key,
            )
            .values(superseded_by=row.key),
            execution_options={"synchronize_session": False},
        )
        if origin is not None:
            session.add(ScoreClips(score_key=row.key, **asdict(origin)))
        videos = _video_rows(row.key, metric)
        for start in range(0, len(videos), _ROWS):
            session.execute(sa.insert(ScoreVideo), videos[start : start + _ROWS])
        new += 1
    if new:
        suites = ", ".join(sorted({metric.metric_suite for metric in scores}))
        _record(session, "scored", variant, suite=suites, metrics=str(new))
    return new


def score_id(
    variant: Variant, metric: MetricScores, settings: Settings, source_sha256: str, origin: ClipOrigin | None = None
) -> str:
    """The SHA-256 over everything that an import says of a metric.

    Raises:
        UsageError: a setting or a name that JSON does not have.
    """
    return sha256_hex(
        _canonical(
            {
                "variant": [variant.kind, variant.id],
                "measure": [metric.prompt_set, metric.metric_suite, metric.metric, metric.direction, metric.scale],
                "stated": metric.stated,
                "videos": [
                    [video.stem, video.sample, video.prompt_sha256, video.category, video.value]
                    for video in metric.videos
                ],
                "unscored": list(metric.unscored),
                "settings": dict(settings),
                "source": source_sha256,
                **({} if origin is None else {"origin": asdict(origin)}),
            }
        )
    )


def prompts_digest(prompts: Iterable[str | None]) -> str:
    """SHA-256 over the sorted prompt hashes of scored videos, `-` where there is none, joined by LF."""
    return sha256_hex("\n".join(sorted("-" if sha256 is None else sha256 for sha256 in prompts)).encode())


def claim_scores(session: Session, variant_id: str, base_key: int) -> None:
    """Tell the scores that came before their variant was registered which base they are of."""
    session.execute(
        sa.update(Score).where(Score.variant_id == variant_id, Score.base_key.is_(None)).values(base_key=base_key),
        execution_options={"synchronize_session": False},
    )


def _settings_key(session: Session, settings: Settings) -> int:
    document = _settings_text(settings)
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
        }
        for video in metric.videos
    ]
    blank = {"sample": None, "prompt_sha256": None, "category": None, "value": None}
    rows += [{"stem": stem, **blank} for stem in metric.unscored]
    return [{"score_key": key, "position": position, **row} for position, row in enumerate(rows)]


def read_scores(
    session: Session, variant_id: str, metrics: Iterable[tuple[str, str]] | None = None
) -> tuple[StoredScore, ...]:
    """The scores that count of a delta or base, with every video, by suite and metric.

    Args:
        metrics: only these (suite, metric).
    """
    wanted = None if metrics is None else set(metrics)
    keys = sa.select(Score.metric_suite, Score.metric, Score.key).where(
        Score.variant_id == variant_id, Score.superseded_by.is_(None)
    )
    last = [key for suite, metric, key in session.execute(keys) if wanted is None or (suite, metric) in wanted]
    rows = session.scalars(
        sa.select(Score)
        .where(Score.key.in_(last))
        .order_by(Score.metric_suite, Score.metric, Score.prompt_set)
        .options(joinedload(Score.settings), joinedload(Score.clips))
    )
    return tuple(stored_score(session, row) for row in rows)


def stored_score(session: Session, row: Score) -> StoredScore:
    """A row with its videos."""
    columns = (ScoreVideo.stem, ScoreVideo.prompt_sha256, ScoreVideo.category, ScoreVideo.sample, ScoreVideo.value)
    query = sa.select(*columns).where(ScoreVideo.score_key == row.key).order_by(ScoreVideo.position)
    found = session.execute(query).all()
    scores = MetricScores(
        prompt_set=row.prompt_set,
        metric_suite=row.metric_suite,
        metric=row.metric,
        direction=cast(Direction, row.direction),
        scale=row.scale,
        stated=row.stated,
        videos=tuple(
            VideoScore(stem, prompt_sha256, category, sample, value)
            for stem, prompt_sha256, category, sample, value in found
            if value is not None
        ),
        unscored=tuple(line.stem for line in found if line.value is None),
    )
    origin = None
    if (known := row.clips) is not None:
        origin = ClipOrigin(known.clips, known.claimed, known.registered, known.unknown, known.identical)
    return StoredScore(scores, json.loads(row.settings.document), row.source_sha256, row.imported_at, origin)


def scored_deltas(session: Session, base_id: str, metrics: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Ids of the deltas on a base that have a score of any of these (suite, metric)."""
    base_key = session.scalar(sa.select(Base.key).where(Base.id == base_id))
    found: set[str] = set()
    for suite, metric in sorted(set(metrics)):
        query = sa.select(Score.variant_id).where(
            Score.metric == metric,
            Score.base_key == base_key,
            Score.superseded_by.is_(None),
            Score.metric_suite == suite,
            Score.variant_kind == "delta",
        )
        found.update(session.scalars(query.distinct()))
    return tuple(sorted(found))


def store_measurement(session: Session, variant: Variant, measurement: Measurement) -> bool:
    """Write a measurement; False where it repeats the last one of its quantity, device, kernels and settings."""
    settings = _settings_text(measurement.settings)
    last = session.scalar(
        sa.select(Measured.value)
        .where(
            Measured.variant_id == variant.id,
            Measured.quantity == measurement.quantity,
            Measured.device == measurement.device,
            Measured.kernels == measurement.kernels,
            Measured.settings == settings,
        )
        .order_by(Measured.key.desc())
        .limit(1)
    )
    if last == measurement.value:
        return False
    session.add(
        Measured(
            variant_kind=variant.kind,
            variant_id=variant.id,
            quantity=measurement.quantity,
            value=measurement.value,
            device=measurement.device,
            kernels=measurement.kernels,
            settings=settings,
            recorded_at=utc_now(),
        )
    )
    value = f"{measurement.value:g} {measurement.unit}"
    _record(
        session, "measured", variant,
        quantity=measurement.quantity, value=value, device=measurement.device, kernels=measurement.kernels,
    )  # fmt: skip
    return True


def read_measurements(session: Session, variant_id: str) -> tuple[Measurement, ...]:
    """Measurements of a delta or base, oldest first."""
    rows = session.scalars(sa.select(Measured).where(Measured.variant_id == variant_id).order_by(Measured.key))
    return tuple(
        Measurement(
            cast(Quantity, row.quantity), row.value, row.device, cast(Kernels, row.kernels), json.loads(row.settings)
        )
        for row in rows
    )


def store_reviews(session: Session, variant: Variant, outcomes: Sequence[ReviewOutcome], source_sha256: str) -> bool:
    """Write the outcomes of one file; False where this file is known of this variant."""
    known = sa.select(Review.key).where(Review.variant_id == variant.id, Review.source_sha256 == source_sha256)
    if session.execute(known.limit(1)).first() is not None:
        return False
    now = utc_now()
    for position, outcome in enumerate(outcomes):
        session.add(
            Review(
                variant_kind=variant.kind,
                variant_id=variant.id,
                source_sha256=source_sha256,
                position=position,
                stem=outcome.stem,
                accepted=outcome.accepted,
                category=outcome.category,
                recorded_at=now,
            )
        )
    accepted = sum(outcome.accepted for outcome in outcomes)
    _record(session, "reviewed", variant, outcomes=str(len(outcomes)), accepted=str(accepted))
    return True


def read_reviews(session: Session, variant_id: str) -> tuple[ReviewOutcome, ...]:
    """Outcomes of a delta or base, in the order in which they came."""
    rows = session.scalars(sa.select(Review).where(Review.variant_id == variant_id).order_by(Review.key))
    return tuple(ReviewOutcome(row.stem, row.accepted, row.category) for row in rows)


def _settings_text(settings: Settings) -> str:
    return _canonical(dict(settings)).decode()


def _canonical(value: Any) -> bytes:
    try:
        return canonical_json(value)
    except (CanonicalizationError, ValueError) as error:  # NaN, an integer beyond 2**53, a file name without UTF-8
        raise UsageError("a value that JSON does not have", found=error) from None


def _record(session: Session, kind: str, variant: Variant, **detail: str) -> None:
    delta = variant.id if variant.kind == "delta" else None
    record_event(session, kind, delta, **({} if delta else {"base": variant.id}), **detail)

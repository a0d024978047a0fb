"""Scores, measurements and reviews in the registry: written once, read back as the plain values of `scores/`.

What an import says is never overwritten; `score_imports` says what counts.
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
from .events import record_event
from .models import Base
from .score_imports import add_import, counting_outcomes, counting_scores, scores_beside, standing
from .score_models import (
    Measured,
    Review,
    Score,
    ScoreImport,
    ScoreVideo,
)
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
    "Settings",
    "StoredScore",
    "claim_scores",
    "prompts_digest",
    "read_base_scores",
    "read_measurements",
    "read_reviews",
    "read_scores",
    "record_scored",
    "score_id",
    "scored_deltas",
    "settings_text",
    "store_measurement",
    "store_reviews",
    "stored_score",
]

Settings = Mapping[str, SettingValue]


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
                    + ([] if video.seed is None else [video.seed])  # most scores have none, and older ones never
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


def read_scores(
    session: Session, variant_id: str, metrics: Iterable[tuple[str, str]] | None = None
) -> tuple[StoredScore, ...]:
    """The scores that count of a delta or base, with every video, by suite and metric.

    Args:
        metrics: only these (suite, metric).
    """
    return _read(session, counting_scores(session, variant_id), metrics)


def read_base_scores(
    session: Session, delta_id: str, base_id: str, metrics: Iterable[tuple[str, str]] | None = None
) -> tuple[StoredScore, ...]:
    """The scores of a base that a delta is held against: those that were measured beside the delta's, else those that
    count of the base. So what is measured of another delta changes nothing here.
    """
    found = counting_scores(session, base_id) | scores_beside(session, delta_id, base_id)
    return _read(session, found, metrics)


def _read(
    session: Session, keys: Mapping[tuple[str, str, str | None], int], metrics: Iterable[tuple[str, str]] | None
) -> tuple[StoredScore, ...]:
    wanted = None if metrics is None else set(metrics)
    rows = session.scalars(
        sa.select(Score)
        .where(Score.key.in_([key for (*name, _), key in keys.items() if wanted is None or tuple(name) in wanted]))
        .order_by(Score.metric_suite, Score.metric, Score.prompt_set)
        .options(joinedload(Score.settings), joinedload(Score.clips))
    )
    return tuple(stored_score(session, row) for row in rows)


def stored_score(session: Session, row: Score) -> StoredScore:
    """A row with its videos."""
    columns = (
        ScoreVideo.stem, ScoreVideo.prompt_sha256, ScoreVideo.category, ScoreVideo.sample, ScoreVideo.value,
        ScoreVideo.seed,
    )  # fmt: skip
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
            VideoScore(stem, prompt_sha256, category, sample, value, seed)
            for stem, prompt_sha256, category, sample, value, seed in found
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
            Score.counts == sa.true(),
            Score.metric_suite == suite,
            Score.variant_kind == "delta",
        )
        found.update(session.scalars(query.distinct()))
    return tuple(sorted(found))


def store_measurement(session: Session, variant: Variant, measurement: Measurement) -> bool:
    """Write a measurement; False where it repeats the one of its quantity, device, kernels and settings that counts."""
    settings = settings_text(measurement.settings)
    last = session.scalar(
        sa.select(Measured.value)
        .join(ScoreImport, ScoreImport.key == Measured.import_key)
        .where(
            Measured.variant_id == variant.id,
            Measured.quantity == measurement.quantity,
            Measured.device == measurement.device,
            Measured.kernels == measurement.kernels,
            Measured.settings == settings,
            standing,
        )
        .order_by(Measured.key.desc())
        .limit(1)
    )
    if last == measurement.value:
        return False
    content = [measurement.quantity, measurement.value, measurement.device, measurement.kernels, settings]
    made = add_import(session, "cost", variant, [content])
    session.add(
        Measured(
            variant_kind=variant.kind,
            variant_id=variant.id,
            quantity=measurement.quantity,
            value=measurement.value,
            device=measurement.device,
            kernels=measurement.kernels,
            settings=settings,
            recorded_at=made.imported_at,
            import_key=made.key,
        )
    )
    value = f"{measurement.value:g} {measurement.unit}"
    record_scored(
        session, "measured", variant, quantity=measurement.quantity, value=value, device=measurement.device,
        kernels=measurement.kernels, via=made.id,
    )  # fmt: skip
    return True


def read_measurements(session: Session, variant_id: str) -> tuple[Measurement, ...]:
    """Measurements of a delta or base that are not withdrawn, oldest first: of two of a kind the later counts."""
    query = sa.select(Measured).join(ScoreImport, ScoreImport.key == Measured.import_key)
    rows = session.scalars(query.where(Measured.variant_id == variant_id, standing).order_by(Measured.key))
    return tuple(
        Measurement(
            cast(Quantity, row.quantity), row.value, row.device, cast(Kernels, row.kernels), json.loads(row.settings)
        )
        for row in rows
    )


def store_reviews(session: Session, variant: Variant, outcomes: Sequence[ReviewOutcome], source_sha256: str) -> bool:
    """Write the outcomes of one file, which go before those of earlier files on the same clips; False where all that it
    says counts already.
    """
    counting = [row for row in counting_outcomes(session, variant.id) if row.source_sha256 == source_sha256]
    if len(counting) >= len(outcomes):
        return False
    made = add_import(session, "review", variant, [[one.stem, one.accepted, one.category] for one in outcomes])
    session.add_all(
        Review(
            variant_kind=variant.kind,
            variant_id=variant.id,
            source_sha256=source_sha256,
            position=position,
            stem=outcome.stem,
            accepted=outcome.accepted,
            category=outcome.category,
            recorded_at=made.imported_at,
            import_key=made.key,
        )
        for position, outcome in enumerate(outcomes)
    )
    accepted = sum(outcome.accepted for outcome in outcomes)
    record_scored(session, "reviewed", variant, outcomes=str(len(outcomes)), accepted=str(accepted), via=made.id)
    return True


def read_reviews(session: Session, variant_id: str) -> tuple[ReviewOutcome, ...]:
    """Outcomes of a delta or base that count, in the order in which they came."""
    rows = counting_outcomes(session, variant_id)
    return tuple(ReviewOutcome(row.stem, row.accepted, row.category) for row in rows)


def settings_text(settings: Settings) -> str:
    """Settings as they are stored: canonical JSON.

    Raises:
        UsageError: a value that JSON does not have.
    """
    return _canonical(dict(settings)).decode()


def _canonical(value: Any) -> bytes:
    try:
        return canonical_json(value)
    except (CanonicalizationError, ValueError) as error:  # NaN, an integer beyond 2**53, a file name without UTF-8
        raise UsageError("a value that JSON does not have", found=error) from None


def record_scored(session: Session, kind: str, variant: Variant, **detail: str) -> None:
    """A line of the history of a variant."""
    delta = variant.id if variant.kind == "delta" else None
    record_event(session, kind, delta, **({} if delta else {"base": variant.id}), **detail)

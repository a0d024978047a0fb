"""What was measured of a variant: scores beside those of its base, costs, and what people decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from .clips.clip_document import Variant
from .models import Base, Delta
from .prompts import Seen, seen_prompts
from .score_imports import ImportRecord, read_imports
from .score_store import StoredScore, read_base_scores, read_measurements, read_reviews, read_scores
from .scores.pairing import match_clips, scene_difference
from .scores.values import Measurement, ReviewCounts, VideoScore, count_reviews

__all__ = ["Evaluation", "read_evaluation"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the registry knows of a variant beyond what it is made of.

    Attributes:
        scores: those that count.
        base_scores: those of a delta's base; none for a base.
        seen: the prompts that a delta was made with; None for a base.
        costs: the last measurement of each quantity, device, kernels and settings.
        reviews: over all clips that somebody looked at; None when nobody did.
        imports: everything that was ever recorded of the variant, and of a delta's base, withdrawn or not.
    """

    scores: tuple[StoredScore, ...] = ()
    base_scores: tuple[StoredScore, ...] = ()
    seen: Seen | None = None
    costs: tuple[Measurement, ...] = ()
    reviews: ReviewCounts | None = None
    imports: tuple[ImportRecord, ...] = ()

    def of_base(self, ours: StoredScore) -> StoredScore | None:
        """The base's score of the same metric, suite, prompt set, videos and settings: what a mean can stand beside."""
        mine = ours.scores
        for one in self.base_scores:
            theirs = one.scores
            same = (mine.metric_suite, mine.metric, mine.prompt_set) == (
                theirs.metric_suite, theirs.metric, theirs.prompt_set,
            )  # fmt: skip
            if same and dict(ours.settings) == dict(one.settings) and _of_one_set(mine.videos, theirs.videos):
                return one
        return None


def _of_one_set(first: Sequence[VideoScore], second: Sequence[VideoScore]) -> bool:
    pairs = match_clips(first, second)
    alike = all(scene_difference(pair.first, pair.second) is None for pair in pairs)
    return alike and len(pairs) == len(first) == len(second)


def read_evaluation(session: Session, variant: Variant) -> Evaluation:
    """Everything that was measured of a variant; empty where nothing was.

    Raises:
        UnknownIdError: the delta is not registered.
    """
    seen = seen_prompts(session, variant)
    base_scores: tuple[StoredScore, ...] = ()
    imports: tuple[ImportRecord, ...] = ()
    if variant.kind == "delta":
        base_id = session.scalars(sa.select(Base.id).join(Delta).where(Delta.id == variant.id)).one()
        base_scores = read_base_scores(session, variant.id, base_id)
        imports = read_imports(session, base_id)
    last = {
        (one.quantity, one.device, one.kernels, tuple(sorted(one.settings.items()))): one
        for one in read_measurements(session, variant.id)
    }
    outcomes = read_reviews(session, variant.id)
    reviews = count_reviews(outcomes, {outcome.stem for outcome in outcomes}) if outcomes else None
    return Evaluation(
        read_scores(session, variant.id), base_scores, seen, tuple(last.values()), reviews,
        (*read_imports(session, variant.id), *imports),
    )  # fmt: skip

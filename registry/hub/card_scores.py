"""The part of a model card that says how clips came out: scores, costs, reviews, as far as a registry has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..evaluation import Evaluation
from ..judging import overlap_of
from ..scores.values import Measurement, ReviewCounts
from .card_text import plain, size_text, table

__all__ = ["Recorded", "Score", "recorded_for_card", "render_recorded"]

_WEIGHTS_ONLY = "Errors of weights do not say how clips look."


@dataclass(frozen=True, slots=True)
class Score:
    """A figure for the card; `prompt_set` says what it was measured on, `suite` which implementation of the metric.

    `base_value` is of the same videos of the base; `overlap` says how many of the prompts the delta was made with,
    `origin` who says that the clips are the delta's.
    """

    metric: str
    value: float
    prompt_set: str | None
    suite: str
    videos: int
    base_value: float | None = None
    overlap: str | None = None
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a registry has of a delta."""

    scores: tuple[Score, ...] = ()
    costs: tuple[Measurement, ...] = ()
    reviews: ReviewCounts | None = None


def recorded_for_card(evaluation: Evaluation) -> Recorded:
    """Means of all scores that have one, beside the base's where both are of the same videos and settings."""
    scores = []
    for one in evaluation.scores:
        if one.scores.recomputed is None:
            continue
        base = evaluation.of_base(one)
        scores.append(
            Score(
                one.scores.metric,
                one.scores.recomputed,
                one.scores.prompt_set,
                one.scores.metric_suite,
                len(one.scores.videos),
                None if base is None else base.scores.recomputed,
                overlap_of(one, evaluation.seen),
                None if one.origin is None else str(one.origin),
            )
        )
    return Recorded(tuple(scores), evaluation.costs, evaluation.reviews)


def render_recorded(recorded: Recorded | None) -> str:
    """The section's text; None where the delta is not registered."""
    if recorded is None:
        return f"This card carries no scores: it was made without a registry that knows the delta. {_WEIGHTS_ONLY}"
    parts = [_scores(recorded.scores)]
    if recorded.costs:
        rows = [_cost(one) for one in recorded.costs]
        parts.append("What running it took; simulated kernels say nothing about the speed of real ones:")
        parts.append(table(("quantity", "value", "device", "kernels", "settings"), rows))
    if recorded.reviews is not None:
        reviews = recorded.reviews
        parts.append(f"People looked at {reviews.reviewed} clips and accepted {reviews.accepted} of them.")
    return "\n\n".join(parts)


def _scores(scores: tuple[Score, ...]) -> str:
    if not scores:
        return f"No scores of generated clips are recorded. {_WEIGHTS_ONLY}"
    rows = [
        (
            plain(score.metric),
            f"{score.value:.4g}",
            "" if score.base_value is None else f"{score.base_value:.4g}",
            "not named" if score.prompt_set is None else plain(score.prompt_set),
            plain(score.suite),
            str(score.videos),
        )
        for score in scores
    ]
    found = table(("metric", "delta", "base", "prompt set", "suite", "videos"), rows)
    prompts = dict.fromkeys(f"Prompts: {plain(score.overlap)}." for score in scores if score.overlap is not None)
    clips = dict.fromkeys(f"Clips: {plain(score.origin)}." for score in scores if score.origin is not None)
    return "\n\n".join([found, *prompts, *clips])


def _cost(one: Measurement) -> tuple[str, ...]:
    value = size_text(one.value) if one.quantity == "peak-memory" else f"{one.value:g} {one.unit}"
    return one.quantity, value, plain(one.device), one.kernels, _settings(one.settings)


def _settings(settings: Mapping[str, object]) -> str:
    return plain(", ".join(f"{name} {value}" for name, value in sorted(settings.items()))) or "not recorded"

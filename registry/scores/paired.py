"""Two sets of scores compared video by video: a clip of one variant against the same clip of another.

A prompt counts once, with the mean of its videos, because those move together. Bounds and intervals are those of
`intervals`: they need the range of the metric and 20 prompts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hfq.schema.errors import NotComparableError

from .intervals import MIN_PROMPTS, mean_interval, ratio_bound
from .pairing import match_clips, scene_difference
from .ranges import Limits, is_possible, limits_of
from .values import Direction, MetricScores, match_key, set_name

__all__ = ["Comparison", "Difference", "Interval", "Pair", "Pairs", "Retained", "compare", "pair_scores", "retained"]

Floats = npt.NDArray[np.float64]

LEVEL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Pair:
    """One video under both sides. `group`: its prompt."""

    stem: str
    group: str
    prompt_sha256: str | None
    category: str | None
    first: float
    second: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """The common videos of two scores of one metric, sorted by key, and the stems that only one side has."""

    prompt_set: str | None
    metric_suite: str
    metric: str
    direction: Direction
    pairs: tuple[Pair, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends of a two-sided interval of `level`."""

    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Means over prompts of both sides and of `first - second`. `no_interval` says why there is none."""

    videos: int
    prompts: int
    mean_first: float
    mean_second: float
    mean: float
    interval: Interval | None
    no_interval: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences over all pairs and by category; `uncategorised` counts the videos that are in no category."""

    pairs: Pairs
    overall: Difference
    by_category: dict[str, Difference]
    uncategorised: int


@dataclass(frozen=True, slots=True)
class Retained:
    """How much of the second side's mean the first keeps; above 1 is better in either direction of the metric.

    `ratio` is None where it has no meaning: no pair, or a denominator that is not above 0. `lower`: one-sided lower
    confidence bound; `no_bound` says why there is none. `means`: numerator and denominator of the ratio.
    """

    videos: int
    prompts: int
    ratio: float | None
    lower: float | None
    confidence: float
    means: tuple[float, float] | None = None
    no_bound: str | None = None


def pair_scores(first: MetricScores, second: MetricScores) -> Pairs:
    """The videos that both sides have; see `match_clips`.

    Raises:
        NotComparableError: another metric, suite, direction or prompt set (one without a name is a set of its own);
            nothing in common; clips of two prompts or seeds under one name.
    """
    for what in ("metric", "metric_suite", "direction", "prompt_set"):
        found, expected = getattr(first, what), getattr(second, what)
        if found != expected:
            if what == "prompt_set":
                expected, found = set_name(expected), set_name(found)
            raise NotComparableError("not the same measure", where=what, expected=expected, found=found)
    matched = match_clips(first.videos, second.videos)
    if not matched:
        raise NotComparableError(
            "no video in common", where=f"{first.metric_suite} {first.metric}",
            found=f"{len(first.videos)} and {len(second.videos)} videos",
            todo="score the same prompts, samples and file names",
        )  # fmt: skip
    pairs = []
    for one, other in ((pair.first, pair.second) for pair in matched):
        if (difference := scene_difference(one, other)) is not None:
            raise NotComparableError(
                f"{one.stem} is not the same clip on both sides: {difference}",
                where=f"{first.metric_suite} {first.metric}",
                todo="score clips of the same prompts and seeds under the same names",
            )
        known = one if one.prompt_sha256 else other
        category = one.category or other.category
        pairs.append(Pair(one.stem, known.group, known.prompt_sha256, category, one.value, other.value))
    taken = {pair.first.stem for pair in matched}, {pair.second.stem for pair in matched}
    return Pairs(
        prompt_set=first.prompt_set,
        metric_suite=first.metric_suite,
        metric=first.metric,
        direction=first.direction,
        pairs=tuple(sorted(pairs, key=lambda pair: match_key(pair.stem))),
        only_first=_others(first, taken[0]),
        only_second=_others(second, taken[1]),
    )


def _others(scores: MetricScores, taken: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted((video.stem for video in scores.videos if video.stem not in taken), key=match_key))


def compare(pairs: Pairs, *, level: float = LEVEL) -> Comparison:
    """Mean of `first - second` with an interval, over all pairs and by category."""
    limits = limits_of(pairs.metric_suite, pairs.metric)
    categories = sorted({pair.category for pair in pairs.pairs if pair.category is not None})
    members = {name: [pair for pair in pairs.pairs if pair.category == name] for name in categories}
    return Comparison(
        pairs=pairs,
        overall=_difference(pairs.pairs, limits, level),
        by_category={name: _difference(part, limits, level) for name, part in members.items()},
        uncategorised=sum(pair.category is None for pair in pairs.pairs),
    )


def retained(
    pairs: Sequence[Pair], direction: Direction, *, limits: Limits | None = None, confidence: float = LEVEL
) -> Retained:
    """Ratio of the means, first / second (second / first where lower is better), and its lower confidence bound.

    Args:
        limits: lowest and highest value that the metric can have; without both there is no bound.
    """
    columns = _by_prompt(pairs)
    if direction == "lower":
        columns = columns[:, ::-1]
    prompts = len(columns)
    if prompts == 0 or columns[:, 1].mean() <= 0:
        why = "the mean to hold it against is not above 0" if prompts else "no video"
        return Retained(len(pairs), prompts, None, None, confidence, None, why)
    first, second = (float(mean) for mean in columns.mean(axis=0))
    no_bound, lower = _why_none(pairs, prompts, limits), None
    if no_bound is None and limits is not None and limits[1] is not None:
        lower = ratio_bound(columns[:, 0], columns[:, 1], (limits[0], limits[1]), confidence)
        no_bound = "the mean to hold it against may be 0 or less" if lower is None else None
    return Retained(len(pairs), prompts, first / second, lower, confidence, (first, second), no_bound)


def _difference(pairs: Sequence[Pair], limits: Limits | None, level: float) -> Difference:
    columns = _by_prompt(pairs)
    first, second = (float(mean) for mean in columns.mean(axis=0))
    no_interval, interval = _why_none(pairs, len(columns), limits), None
    if no_interval is None and limits is not None and limits[1] is not None:
        width = limits[1] - limits[0]
        interval = Interval(*mean_interval(columns[:, 0] - columns[:, 1], (-width, width), level), level)
    return Difference(len(pairs), len(columns), first, second, first - second, interval, no_interval)


def _why_none(pairs: Sequence[Pair], prompts: int, limits: Limits | None) -> str | None:
    """Why these pairs have no bound and no interval; None where they have."""
    if prompts < MIN_PROMPTS:
        return f"{prompts} prompts, {MIN_PROMPTS} needed"
    if limits is None or limits[1] is None:
        return "the range of the metric is not known"
    if not all(is_possible(value, limits) for pair in pairs for value in (pair.first, pair.second)):
        return "a value outside the range of the metric"
    return None


def _by_prompt(pairs: Sequence[Pair]) -> Floats:
    """Means [prompts, 2] over the videos of each prompt."""
    videos: dict[str, list[tuple[float, float]]] = {}
    for pair in pairs:
        videos.setdefault(pair.group, []).append((pair.first, pair.second))
    means = [np.mean(videos[name], axis=0) for name in sorted(videos)]
    return np.array(means, dtype=np.float64).reshape(-1, 2)

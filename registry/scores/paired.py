"""Two sets of scores compared video by video: a clip of one variant against the same clip of another.

Intervals are percentile bootstraps over prompts (Efron and Tibshirani 1993, chapters 8 and 13): videos of one prompt
are drawn together, because their scores move together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hfq.schema.errors import NotComparableError

from .pairing import match_clips, scene_difference
from .values import Direction, MetricScores, match_key, set_name

__all__ = ["Comparison", "Difference", "Interval", "Pair", "Pairs", "Retained", "compare", "pair_scores", "retained"]

Floats = npt.NDArray[np.float64]

RESAMPLES: Final = 10_000
LEVEL: Final = 0.95
_BLOCK: Final = 1_000_000
"""Draws held at a time: 8 MB, whatever the number of prompts."""


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
    """Means of both sides and of `first - second`. No interval from a single prompt."""

    videos: int
    prompts: int
    mean_first: float
    mean_second: float
    mean: float
    interval: Interval | None


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

    `lower`: one-sided lower confidence bound. Both are None where the ratio has no meaning: a denominator that is not
    above 0, no pair, or (for `lower`) a single prompt.
    """

    videos: int
    prompts: int
    ratio: float | None
    lower: float | None
    confidence: float


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


def compare(pairs: Pairs, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Mean of `first - second` with a bootstrap interval, over all pairs and by category."""
    categories = sorted({pair.category for pair in pairs.pairs if pair.category is not None})
    members = {name: [pair for pair in pairs.pairs if pair.category == name] for name in categories}
    return Comparison(
        pairs=pairs,
        overall=_difference(pairs.pairs, level, resamples, seed),
        by_category={name: _difference(part, level, resamples, seed) for name, part in members.items()},
        uncategorised=sum(pair.category is None for pair in pairs.pairs),
    )


def retained(
    pairs: Sequence[Pair],
    direction: Direction,
    *,
    confidence: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Retained:
    """Ratio of the means, first / second (second / first where lower is better), and its lower confidence bound."""
    columns, counts = _by_group(pairs)
    if direction == "lower":
        columns = columns[:, ::-1]
    totals = columns.sum(axis=0)
    if totals[1] <= 0:
        return Retained(len(pairs), len(counts), None, None, confidence)
    ratio = float(totals[0] / totals[1])
    lower = None
    if len(counts) > 1:
        means = _resample(columns, counts, resamples, seed)
        # A resample without a positive denominator would make any bound a matter of luck.
        if means[:, 1].min() > 0:
            lower = float(np.percentile(means[:, 0] / means[:, 1], 100 * (1 - confidence)))
    return Retained(len(pairs), len(counts), ratio, lower, confidence)


def _difference(pairs: Sequence[Pair], level: float, resamples: int, seed: int) -> Difference:
    columns, counts = _by_group(pairs)
    first, second = (float(mean) for mean in columns.sum(axis=0) / counts.sum())
    interval = None
    if len(counts) > 1:
        means = _resample(columns[:, :1] - columns[:, 1:], counts, resamples, seed)[:, 0]
        low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
        interval = Interval(float(low), float(high), level)
    return Difference(len(pairs), len(counts), first, second, first - second, interval)


def _by_group(pairs: Sequence[Pair]) -> tuple[Floats, Floats]:
    """Sums [prompts, 2] and numbers of videos [prompts]."""
    names = sorted({pair.group for pair in pairs})
    place = {name: index for index, name in enumerate(names)}
    columns, counts = np.zeros((len(names), 2)), np.zeros(len(names))
    for pair in pairs:
        columns[place[pair.group]] += (pair.first, pair.second)
        counts[place[pair.group]] += 1
    return columns, counts


def _resample(columns: Floats, counts: Floats, resamples: int, seed: int) -> Floats:
    """Means [resamples, columns] over prompts drawn with replacement."""
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(counts))
    parts = []
    for start in range(0, resamples, rows):
        picks = generator.integers(0, len(counts), (min(rows, resamples - start), len(counts)))
        parts.append(columns[picks].sum(axis=1) / counts[picks].sum(axis=1)[:, None])
    return np.concatenate(parts)

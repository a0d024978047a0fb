"""Bounds of means that hold for few prompts as well. Prompts are independent, the clips of one are not.

Clips that collapse are rare, and a sample may hold none of them: with 10 % of them, 20 prompts miss all in 12 % of
cases. Whatever looks at the sample alone (bootstrap, t) then claims too much. So the sample is joined by one more
prompt that is as bad as the metric allows, and all are weighed at random (Dirichlet(1, ..., 1), the Bayesian bootstrap
of Rubin 1981): the bound is a quantile of the weighed mean. That is the bound of Gaffke (2005), studied by
Learned-Miller and Thomas (2020, arXiv 1905.06208). Of values 0 and 1 it is that of Clopper and Pearson (1934), which
is exact; n equal values leave room for a collapse of `1 - alpha**(1/n)` of all prompts, which no method can exclude.
Its cover of other values is not proved: `benchmarks/gate_bounds.py` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "DRAWS",
    "MIN_PROMPTS",
    "draw_weights",
    "mean_bound",
    "mean_interval",
    "prompts_needed",
    "ratio_bound",
    "share_bound",
    "unseen_share",
]

Floats = npt.NDArray[np.float64]

MIN_PROMPTS: Final = 20
"""No bound or interval of a mean from fewer. Ours: with 10, a quarter of all prompts may collapse unseen."""

DRAWS: Final = 20_000
"""A probability of 5 % is then met to within 0.15 %."""

_TAIL_DRAWS: Final = 100
"""At least so many draws are beyond the bound, however high the confidence."""

_BLOCK: Final = 4_000_000
"""Weights held at a time: 32 MB, whatever the number of prompts."""


def draw_weights(prompts: int, confidence: float) -> Iterator[Floats]:
    """Blocks [draws, prompts + 1] of weights up to a common factor, the same ones for the same arguments.

    The first column is the weight of the prompt that nobody saw.
    """
    generator = np.random.default_rng(0)
    left = max(DRAWS, math.ceil(_TAIL_DRAWS / (1 - confidence)))
    rows = max(1, _BLOCK // (prompts + 1))
    while left:
        size = min(rows, left)
        yield generator.standard_exponential((size, prompts + 1))
        left -= size


def ratio_bound(
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    worst: tuple[float, float],
    confidence: float,
) -> float | None:
    """One-sided lower bound of mean(first) / mean(second).

    It is at least r exactly when the bound of mean(first - r second) is at least 0.

    Args:
        first, second: by prompt, [prompts] each.
        worst: the lowest possible value of `first` and the highest of `second`.
        confidence: for example 0.95.

    Returns:
        None where mean(second) may be 0 or less.
    """
    rows = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)], axis=1)
    # Sorted, so that neither names nor the order of a file decide which weight a prompt gets.
    columns = np.vstack([worst, rows[np.lexsort((rows[:, 1], rows[:, 0]))]])
    drawn = []
    for weights in draw_weights(len(rows), confidence):
        above, below = (weights @ columns).T
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append(np.where(below > 0, above / below, -np.inf))
    ratios = np.concatenate(drawn)
    place = max(0, math.floor((1 - confidence) * len(ratios)) - 1)
    found = float(np.partition(ratios, place)[place])
    return None if math.isinf(found) else found


def mean_bound(values: Sequence[float] | Floats, lowest: float, confidence: float) -> float:
    """One-sided lower bound of the mean of values [prompts] that cannot be below `lowest`."""
    found = ratio_bound(values, np.ones(len(values)), (lowest, 1.0), confidence)
    assert found is not None  # the mean of ones is above 0
    return found


def mean_interval(values: Sequence[float] | Floats, limits: tuple[float, float], level: float) -> tuple[float, float]:
    """Both ends of a two-sided interval of the mean of values [prompts] within `limits`."""
    one_sided = (1 + level) / 2
    negated = -np.asarray(values, np.float64)
    return mean_bound(values, limits[0], one_sided), -mean_bound(negated, -limits[1], one_sided)


def share_bound(hits: int, count: int, confidence: float) -> float:
    """One-sided lower bound of a share (Clopper and Pearson 1934): the p at which `hits` or more of `count` have the
    probability `1 - confidence`; 0 without hits.
    """
    if hits == 0:
        return 0.0
    successes = np.arange(hits, count + 1)
    ways = np.array(
        [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in successes.tolist()]
    )
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        if np.exp(ways + successes * math.log(p) + (count - successes) * math.log1p(-p)).sum() < 1 - confidence:
            low = p
        else:
            high = p
    return low


def unseen_share(prompts: int, confidence: float) -> float:
    """The largest share of all prompts of which a sample may well hold none: `1 - alpha**(1/n)`, about 3/n at 95 %."""
    return float(-np.expm1(math.log1p(-confidence) / prompts))


def prompts_needed(
    first: float, second: float, worst: tuple[float, float], ratio: float, confidence: float
) -> int | None:
    """The fewest prompts with which a bound of `ratio` can be shown, were they all at these means; None if never.

    Args:
        worst: as in `ratio_bound`.
    """
    spare = first - ratio * second
    lost = ratio * worst[1] - worst[0]
    if spare <= 0 or spare + lost <= 0:
        return None
    share = spare / (spare + lost)  # may collapse before the ratio is reached
    return 1 if share >= 1 else max(1, math.ceil(math.log1p(-confidence) / math.log1p(-share)))

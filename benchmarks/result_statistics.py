"""Intervals of the results table: percentile bootstrap, plain and paired. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "bootstrap", "paired_difference", "paired_ratio"]

Floats = npt.NDArray[np.float64]
Interval = list[float]
"""Mean, then the lower and upper end of its 95 % interval."""

RESAMPLES: Final = 10_000
LEVELS: Final = (2.5, 97.5)


def bootstrap(values: Sequence[float] | Floats) -> Interval:
    """Mean of values [n] and its interval; every call with the same n draws the same resamples."""
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.percentile(array[picks].mean(axis=1), LEVELS)
    return [float(array.mean()), float(low), float(high)]


def paired_difference(arm: Sequence[float], against: Sequence[float]) -> Interval:
    """Mean of `arm - against`, both [n] in the same order.

    Raises:
        ValueError: they are not of one length.
    """
    first, second = _pair(arm, against)
    return bootstrap(first - second)


def paired_ratio(arm: Sequence[float], against: Sequence[float], groups: int | None = None) -> Interval:
    """Geometric mean of `arm / against`, both [n], positive, in the same order.

    Args:
        groups: resample this many equal runs of neighbours (calls of one prompt are alike) in place of single values.

    Raises:
        ValueError: they are not of one length, or do not divide into the groups.
    """
    first, second = _pair(arm, against)
    logs = np.log(first / second)
    if groups is not None:
        if len(logs) % groups:
            raise ValueError(f"{len(logs)} values in {groups} groups")
        logs = logs.reshape(groups, -1).mean(axis=1)
    return [float(np.exp(value)) for value in bootstrap(logs)]


def _pair(arm: Sequence[float], against: Sequence[float]) -> tuple[Floats, Floats]:
    first, second = np.asarray(arm, dtype=np.float64), np.asarray(against, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} values against {len(second)}")
    return first, second

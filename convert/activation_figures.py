"""Figures of a linear's input over all its elements, from the statistics that a calibration keeps.

Maxima, squares and counts are exact. Percentiles, the mean of |x| and the kurtosis come from the per-channel histograms
of the sampled rows: bins of ratio 2^(1/16), 8 octaves up to each channel's largest value, one bin for what is smaller.
The channels' windows end at different places, so for an element of a bottom bin only an upper limit is known. Every
figure is computed for both extremes (all of them zero, all of them at their limit) and is given only where that decides
it.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from .figures import ALL_ZERO, PERCENTILES, Figures, LargestRatio
from .group_statistics import GroupStatistics
from .histogram import BINS_PER_OCTAVE, NO_OCTAVE, OCTAVES

__all__ = ["ActivationPool"]

_LOWEST: Final = -141
"""One octave below the bottom of the lowest window: BF16 reaches down to 2^-133, a window 7 octaves further."""
_HIGHEST: Final = 127
_KEYS: Final = (_HIGHEST - _LOWEST + 1) * BINS_PER_OCTAVE

_EDGE: Final = 1.0 / 3.0
"""Samples of a bin are placed by rank, but no nearer to an edge than this: off by two thirds of a bin at most, 2.9 %
(as in `hfq.convert.histogram`)."""

_BELOW_SHARE: Final = 0.025
"""Most that the elements below the windows may add to a figure, either way. With half a bin (2.2 % in |x|, 9.1 % in
x^4) that leaves a mean of |x| within 5 % and a kurtosis within 12 % of the sampled rows'."""

_BELOW: Final = "it lies below the histograms' windows (7 octaves below a channel's maximum)"
_TOO_MANY_BELOW: Final = "too much of it lies below the histograms' windows (7 octaves below a channel's maximum)"
_NO_SQUARES: Final = "the numbers are so small that their float32 squares are zero"


class ActivationPool:
    """Magnitudes of one input, or of several inputs as one tensor."""

    def __init__(self) -> None:
        self._inside = np.zeros(_KEYS, dtype=np.int64)
        self._below = np.zeros(_HIGHEST - _LOWEST + 1, dtype=np.int64)
        self._zeros = 0
        self._elements = 0
        self._max = 0.0
        self._squares = 0.0
        self._ratio = LargestRatio()

    @property
    def sampled(self) -> int:
        """Elements in the histograms."""
        return int(self._inside.sum() + self._below.sum()) + self._zeros

    def add(self, statistics: GroupStatistics) -> None:
        """Take in the statistics of one input, all calls and all histogram keys pooled."""
        histogram = statistics.pooled()
        for top in torch.unique(histogram.top).tolist():
            counts = histogram.counts[histogram.top == top].sum(dim=0, dtype=torch.int64).numpy()
            if top == NO_OCTAVE:
                self._zeros += int(counts.sum())
                continue
            floor = top - (OCTAVES - 1) - _LOWEST
            self._below[floor] += counts[0]
            self._inside[floor * BINS_PER_OCTAVE :][: counts.size - 1] += counts[1:]
        largest = statistics.channel_max().numpy()
        self._elements += int(statistics.count.sum()) * statistics.channels
        self._max = max(self._max, float(largest.max()))
        self._squares += float(statistics.sum_squares.sum())
        self._ratio.add(largest)

    def merge(self, other: ActivationPool) -> None:
        """Add the elements of other inputs; `channel_ratio` becomes the largest of them."""
        self._inside += other._inside
        self._below += other._below
        self._zeros += other._zeros
        self._elements += other._elements
        self._max = max(self._max, other._max)
        self._squares += other._squares
        self._ratio.merge(other._ratio)

    def figures(self, mean: float | None, mean_reason: str) -> Figures:
        """The figures; the signed mean is the caller's, because magnitudes do not have it.

        Args:
            mean: from kept rows, or None.
            mean_reason: why it is None.
        """
        reasons = {} if mean is not None else {"mean": mean_reason}
        if self._max == 0.0:
            reasons |= dict.fromkeys(("kurtosis", "crest", "channel_ratio"), ALL_ZERO)
            return Figures(self._elements, 0.0, 0.0, mean, 0.0, 0.0, 0.0, 0.0, None, None, None, reasons)
        rms = math.sqrt(self._squares / self._elements)
        percentiles = {field: self._percentile(p) for field, p in PERCENTILES.items()}
        mean_abs, fourth = self._moment(1), self._moment(4) if rms > 0.0 else None
        reasons |= {field: _BELOW for field, value in percentiles.items() if value is None}
        reasons |= {"mean_abs": _TOO_MANY_BELOW} if mean_abs is None else {}
        reasons |= {"kurtosis": _TOO_MANY_BELOW} if fourth is None else {}
        reasons |= dict.fromkeys(("kurtosis", "crest"), _NO_SQUARES) if rms == 0.0 else {}
        reasons |= self._ratio.reasons
        return Figures(
            elements=self._elements,
            max=self._max,
            rms=rms,
            mean=mean,
            mean_abs=None if mean_abs is None else mean_abs * self._max,
            kurtosis=None if fourth is None else fourth / (rms / self._max) ** 4,
            crest=self._max / rms if rms > 0.0 else None,
            channel_ratio=self._ratio.value,
            reasons=reasons,
            **percentiles,
        )

    def _moment(self, power: int) -> float | None:
        """E[(|x| / max)^power] over the sampled elements; None where those below the windows could change it."""
        octaves = np.arange(_LOWEST, _HIGHEST + 1) - math.log2(self._max)
        centres = np.arange(_KEYS) / BINS_PER_OCTAVE + octaves[0] + 0.5 / BINS_PER_OCTAVE
        inside, below = np.flatnonzero(self._inside), np.flatnonzero(self._below)
        known = float(self._inside[inside] @ np.exp2(power * centres[inside]))
        most = float(self._below[below] @ np.exp2(power * octaves[below]))
        if most / 2.0 > _BELOW_SHARE * (known + most / 2.0):
            return None
        return (known + most / 2.0) / self.sampled

    def _percentile(self, p: float) -> float | None:
        rank = p / 100.0 * (self.sampled - 1)
        low, high = self._sample(math.floor(rank)), self._sample(math.ceil(rank))
        if low is None or high is None:
            return None
        return min(low + (high - low) * (rank - math.floor(rank)), self._max)

    def _sample(self, rank: int) -> float | None:
        """Estimate of the sample of a 0-based rank; None where the elements below the windows leave its bin open."""
        if rank < self._zeros:
            return 0.0
        at_limit = self._inside.copy()
        # Just under 2^octave is the last bin of the octave before.
        limits = np.flatnonzero(self._below)
        np.add.at(at_limit, limits * BINS_PER_OCTAVE - 1, self._below[limits])
        lowest = _find(self._inside, rank - self._zeros - int(self._below.sum()))
        highest = _find(at_limit, rank - self._zeros)
        # A sample of given rank only moves up when elements do: equal extremes leave no other bin.
        if lowest is None or highest is None or lowest[0] != highest[0]:
            return None
        position = lowest[0] + (lowest[1] + highest[1]) / 2.0
        return float(np.exp2(position / BINS_PER_OCTAVE + _LOWEST))


def _find(counts: npt.NDArray[np.int64], rank: int) -> tuple[int, float] | None:
    """Bin and fraction of the bin of the element of a rank."""
    if rank < 0:
        return None
    cumulative = np.cumsum(counts)
    index = int(np.searchsorted(cumulative, rank, side="right"))
    inside = int(counts[index])
    fraction = (rank - (int(cumulative[index]) - inside) + 0.5) / inside
    return index, min(max(fraction, _EDGE), 1.0 - _EDGE)

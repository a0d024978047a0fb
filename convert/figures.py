"""Figures of a tensor's magnitudes, and the exact ones of BF16 values.

A BF16 tensor has at most 65,536 different values. Counting each of them is a complete description of the tensor without
its order: every figure follows from the counts exactly, and counts of several tensors add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["ALL_ZERO", "PERCENTILES", "Figures", "LargestRatio", "ValueCounts", "nmse"]

PERCENTILES: Final = {"p99": 99.0, "p99_9": 99.9, "p99_99": 99.99}
"""Field -> percentile of |x| over all elements."""

ALL_ZERO: Final = "nothing but zeros"
_MEDIAN_ZERO: Final = "half of the channels or more are nothing but zeros"
_PIECE: Final = 1 << 20
_TINY: Final = 1e-300
_LARGEST: Final = 1e300


@dataclass(frozen=True)
class Figures:
    """Figures of |x| over all elements of a tensor. A figure that is not known is None, and `reasons` says why.

    Attributes:
        elements: how many.
        max: largest |x|.
        rms: root mean square.
        mean: signed mean.
        mean_abs: mean of |x|.
        p99, p99_9, p99_99: percentiles of |x|, between neighbouring samples as in `numpy.percentile`.
        kurtosis: E[x^4] / E[x^2]^2, about zero and not about the mean: 3 for a Gaussian around zero.
        crest: max / rms.
        channel_ratio: largest channel maximum over the median one, max_j a_j / median_j a_j; channels are the columns
            of the last axis.
        reasons: field -> why it is None.
    """

    elements: int
    max: float
    rms: float
    mean: float | None
    mean_abs: float | None
    p99: float | None
    p99_9: float | None
    p99_99: float | None
    kurtosis: float | None
    crest: float | None
    channel_ratio: float | None
    reasons: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The figures as stored in an analysis."""
        return {**vars(self), "reasons": dict(self.reasons)}


def nmse(error: float, power: float) -> float:
    """Sum of squared differences over the original's sum of squares; finite also where the power is zero."""
    # JSON has no infinity; an original of zeros that stays zero has no error.
    return min(error / max(power, _TINY), _LARGEST) if error > 0.0 else 0.0


class LargestRatio:
    """max_j a_j / median_j a_j of a tensor's channel maxima; of several tensors, the largest."""

    def __init__(self) -> None:
        self.value: float | None = 0.0
        self.reasons: dict[str, str] = {}

    def add(self, channel_max: npt.NDArray[np.float64]) -> None:
        """Take in one tensor's channel maxima, float64 [channels]."""
        median = float(np.median(channel_max))
        self._join(float(channel_max.max()) / median if median > 0.0 else None)

    def merge(self, other: LargestRatio) -> None:
        """Take in other tensors."""
        self._join(other.value)

    def _join(self, ratio: float | None) -> None:
        self.value = None if ratio is None or self.value is None else max(self.value, ratio)
        if self.value is None:
            self.reasons = {"channel_ratio": _MEDIAN_ZERO}


def _values(patterns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The values of 16-bit patterns."""
    return (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


class ValueCounts:
    """How often each BF16 value occurs in one tensor or several."""

    def __init__(self) -> None:
        self._counts = np.zeros(1 << 16, dtype=np.int64)
        self._ratio = LargestRatio()

    def add(self, x: Tensor) -> None:
        """Count a tensor, BF16 [rows, channels], finite."""
        bits = x.contiguous().view(-1).view(torch.uint16).numpy()
        for begin in range(0, bits.size, _PIECE):
            self._counts += np.bincount(bits[begin : begin + _PIECE], minlength=1 << 16)
        self._ratio.add(x.abs().amax(dim=0).double().numpy())

    def merge(self, other: ValueCounts) -> None:
        """Add the counts of other tensors; `channel_ratio` becomes the largest of them."""
        self._counts += other._counts
        self._ratio.merge(other._ratio)

    def figures(self) -> Figures:
        """Exact figures, but for the roundings of float64 sums.

        Raises:
            ValueError: nothing was counted.
        """
        elements = int(self._counts.sum())
        if elements == 0:
            raise ValueError("no value was counted")
        magnitudes = self._counts[: 1 << 15] + self._counts[1 << 15 :]
        seen = np.flatnonzero(magnitudes)
        value, count = _values(seen), magnitudes[seen].astype(np.float64)
        largest = float(value[-1])
        if largest == 0.0:
            unknown = dict.fromkeys(("kurtosis", "crest", "channel_ratio"), ALL_ZERO)
            return Figures(elements, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None, None, None, unknown)
        # Divided by the largest: fourth powers of large BF16 numbers are beyond float64.
        unit = value / largest
        square = float(count @ unit**2) / elements
        signed = np.flatnonzero(self._counts)
        percentiles = {field: self._percentile(p, value, magnitudes[seen]) for field, p in PERCENTILES.items()}
        return Figures(
            elements=elements,
            max=largest,
            rms=largest * math.sqrt(square),
            mean=float(self._counts[signed] @ _values(signed)) / elements,
            mean_abs=float(count @ value) / elements,
            kurtosis=float(count @ unit**4) / elements / square**2,
            crest=1.0 / math.sqrt(square),
            channel_ratio=self._ratio.value,
            reasons=self._ratio.reasons,
            **percentiles,
        )

    @staticmethod
    def _percentile(p: float, value: npt.NDArray[np.float64], count: npt.NDArray[np.int64]) -> float:
        cumulative = np.cumsum(count)
        rank = p / 100.0 * (int(cumulative[-1]) - 1)
        low, high = (
            float(value[np.searchsorted(cumulative, step, side="right")])
            for step in (math.floor(rank), math.ceil(rank))
        )
        return low + (high - low) * (rank - math.floor(rank))

"""The statistics of one input group of one expert while a prompt runs."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from .group_statistics import GroupStatistics
from .histogram import Histogram, magnitude_bits
from .statistics_compiled import observe, observes

__all__ = ["Accumulator"]

_MOST_ROWS: Final = 4096
"""Rows worked on at a time."""


class Accumulator:
    """Exact statistics per call, and the histograms.

    Small inputs wait until `flush`, and are then worked on together: on a small model the cost of an operation is the
    call, not the numbers. They are copied, because a model may write over its activations.

    Args:
        calls: of the schedule.
        channels: of the input.
        rows: rows per call that enter the histograms, or None for all.
        device: of the input.
    """

    def __init__(self, calls: int, channels: int, rows: int | None, device: torch.device) -> None:
        self._rows = rows
        self.statistics = GroupStatistics(
            torch.zeros(calls, channels, device=device),
            torch.zeros(calls, channels, dtype=torch.float64, device=device),
            torch.zeros(calls, dtype=torch.int64),
            {},
        )
        self._waiting: list[tuple[str, int, Tensor]] = []

    def add(self, x: Tensor, call: int, key: str) -> int:
        """Take an input BF16 [rows, channels] of a call, to be counted in the histogram `key`.

        Returns:
            bytes that now wait in addition.

        Raises:
            CalibrationRangeError: more samples than a bin of the histogram can count.
        """
        found = self.statistics
        found.count[call] += x.shape[0]
        if observes(x):
            observe(x, self._sampled(x.shape[0]), found.max[call], found.sum_squares[call], self._histogram(key))
            return 0
        if x.shape[0] >= _MOST_ROWS:
            for part in x.split(_MOST_ROWS):
                self._measure(part[None], [call])
            self._count(x[None], key)
            return 0
        self._waiting.append((key, call, x.clone()))
        return x.numel() * x.element_size()

    def flush(self) -> None:
        """Work on everything that waits."""
        together: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}
        for key, call, x in self._waiting:
            together.setdefault((key, x.shape[0]), []).append((call, x))
        self._waiting.clear()
        for (key, rows), entries in together.items():
            most = max(1, _MOST_ROWS // max(rows, 1))
            for start in range(0, len(entries), most):
                chosen = entries[start : start + most]
                x = torch.stack([part for _, part in chosen])
                self._measure(x, [call for call, _ in chosen])
                self._count(x, key)

    def _measure(self, x: Tensor, calls: list[int]) -> None:
        """Maxima and sums of BF16 [calls, rows, channels]."""
        if x.shape[1] == 0:
            return
        largest = (magnitude_bits(x).amax(dim=1).int() << 16).view(torch.float32)
        # A square of BF16 is exact in float32; only its sum is not.
        squares = x.float().square_().sum(dim=1, dtype=torch.float64)
        found = self.statistics
        for index, call in enumerate(calls):
            torch.maximum(found.max[call], largest[index], out=found.max[call])
            found.sum_squares[call] += squares[index]

    def _count(self, x: Tensor, key: str) -> None:
        """The rows of BF16 [calls, rows, channels] that are sampled into the histogram."""
        rows, channels = x.shape[1:]
        if self._rows is not None and rows > self._rows:
            x = x[:, self._sampled(rows).to(x.device)]
        self._histogram(key).add(x.reshape(-1, channels))

    def _sampled(self, rows: int) -> Tensor:
        """Which of `rows` rows are sampled, evenly spaced, int64."""
        sample = rows if self._rows is None else min(rows, self._rows)
        return torch.arange(sample) * rows // max(sample, 1)

    def _histogram(self, key: str) -> Histogram:
        found = self.statistics
        if key not in found.histograms:
            found.histograms[key] = Histogram.empty(found.channels, found.max.device)
        return found.histograms[key]

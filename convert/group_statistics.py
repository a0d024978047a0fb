"""Statistics of one input group, what is derived from them, and all that one run gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hfq.schema.errors import CalibrationRangeError, MalformedFileError

from .histogram import BINS_PER_OCTAVE, NO_OCTAVE, Histogram
from .kept_calls import KeptCall
from .kept_rows import order_of_digests

__all__ = ["GroupStatistics", "RunStatistics", "check_values"]

_OCTAVES_OF_BF16: Final = (-133, 127)


@dataclass
class GroupStatistics:
    """Statistics of one input group of one expert.

    Attributes:
        max: float32 [calls, channels], largest |x|.
        sum_squares: float64 [calls, channels].
        count: int64 [calls], rows seen.
        histograms: key ("all", "bin0-cond", ...) -> histogram.
        inputs: timestep bin -> kept rows, bfloat16 [rows, channels].
        digests: timestep bin -> uint8 [rows, 32], the sort key of each kept row.
    """

    max: Tensor
    sum_squares: Tensor
    count: Tensor
    histograms: dict[str, Histogram]
    inputs: dict[int, Tensor] = field(default_factory=dict)
    digests: dict[int, Tensor] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Width of the input."""
        return int(self.max.shape[1])

    def pooled(self) -> Histogram:
        """All histograms as one."""
        result = Histogram.empty(self.channels)
        for key in sorted(self.histograms):
            result.merge(self.histograms[key])
        return result

    def pooled_inputs(self) -> Tensor:
        """The kept rows of all timestep bins in their order, bfloat16 [rows, channels]; there must be some."""
        return torch.cat([self.inputs[index] for index in sorted(self.inputs)])

    def channel_max(self) -> Tensor:
        """Exact largest |x| per channel, float64 [channels]."""
        return self.max.double().amax(dim=0)

    def channel_rms(self) -> Tensor:
        """Root mean square per channel over every row, float64 [channels]."""
        return (self.sum_squares.sum(dim=0) / self.count.sum().clamp(min=1)).sqrt()

    def channel_percentile(self, p: float, where: str) -> Tensor:
        """p-th percentile of |x| per channel, float64 [channels], within 3 %; p = 100 is the exact maximum.

        Raises:
            CalibrationRangeError: a channel's percentile lies below its histogram's window.
        """
        if p == 100.0:
            return self.channel_max()
        if not 0.0 <= p < 100.0:
            raise CalibrationRangeError("not a percentile", where=where, expected="0 to 100", found=p)
        histogram = self.pooled()
        values, below = histogram.percentile(p)
        if bool(below.any()):
            raise CalibrationRangeError(
                f"the percentile {p:g} of {int(below.sum())} of {self.channels} channels (first: channel "
                f"{int(below.nonzero()[0])}) lies more than 7 octaves below the channel's maximum",
                where=where,
                expected=f"a percentile of at least {histogram.lowest_percentile():.4f} for this input",
                todo="choose a higher percentile, or the statistic max or rms",
            )
        return torch.minimum(values, self.channel_max())


@dataclass(frozen=True)
class RunStatistics:
    """What the run of one prompt gives, on the CPU.

    Attributes:
        groups: (role, input group) -> statistics.
        calls: role -> sampled calls, by bin, branch and rising digest; empty when none are kept.
        spread: role -> spread calls, by step and branch; empty when none are kept.
    """

    groups: dict[tuple[str, str], GroupStatistics]
    calls: dict[str, list[KeptCall]] = field(default_factory=dict)
    spread: dict[str, list[KeptCall]] = field(default_factory=dict)


def check_values(statistics: GroupStatistics, where: str) -> None:
    """Refuse statistics that no run can have made.

    Raises:
        MalformedFileError
    """
    largest, squares, count = statistics.max.double(), statistics.sum_squares, statistics.count
    rows = count.double()[:, None]
    checks: list[tuple[str, str, Tensor]] = [
        ("max", "finite numbers from 0", torch.isfinite(largest) & (largest >= 0)),
        ("sum_squares", "finite numbers from 0", torch.isfinite(squares) & (squares >= 0)),
        ("count", "at least 1", count >= 1),
        # A sum of squares lies between one largest square and as many of them as there are rows; float32 squares of
        # numbers below 1e-19 round to nothing.
        ("sum_squares", "at least max ** 2", squares >= largest.square() * (1 - 1e-9) - 1e-37),
        ("sum_squares", "at most count * max ** 2", squares <= largest.square() * rows * (1 + 1e-9) + 1e-37),
    ]
    samples = torch.zeros((), dtype=torch.int64)
    for key, histogram in statistics.histograms.items():
        top, found = histogram.top, histogram.samples
        checks += [
            (f"histogram/{key}", "counts from 0", histogram.counts >= 0),
            (
                f"top/{key}",
                "octaves of BF16 numbers",
                (top == NO_OCTAVE) | ((top >= _OCTAVES_OF_BF16[0]) & (top <= _OCTAVES_OF_BF16[1])),
            ),
            (f"histogram/{key}", "as many samples in every channel, at least 1", (found == found[0]) & (found > 0)),
            (
                f"histogram/{key}",
                "a sample in the largest octave",
                (histogram.counts[:, -BINS_PER_OCTAVE:].sum(dim=1) > 0) | (top == NO_OCTAVE),
            ),
        ]
        reached = torch.where(top == NO_OCTAVE, 0.0, torch.exp2(top.double()))
        checks.append((f"top/{key}", "an octave that the maximum reaches", reached <= statistics.channel_max()))
        samples = samples + found[0]
    checks.append(("histogram", "no more samples than rows", samples <= count.sum()))
    for index, kept in statistics.inputs.items():
        digests = statistics.digests[index]
        checks.append((f"inputs/bin{index}", "finite numbers", torch.isfinite(kept)))
        rising = torch.from_numpy(order_of_digests(digests.numpy()) == np.arange(len(digests)))
        checks.append((f"digests/bin{index}", "rising digests", rising))
    for name, expected, right in checks:
        if not bool(right.all()):
            raise MalformedFileError("numbers that no run can have made", where=f"{where}: {name}", expected=expected)

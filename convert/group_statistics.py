"""Statistics of one input group, what is derived from them, and all that one run gives."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hfq.schema.errors import CalibrationRangeError, MalformedFileError

from .histogram import BINS_PER_OCTAVE, NO_OCTAVE, Histogram
from .kept_calls import KeptCall
from .kept_rows import order_of_digests
from .tensor_bytes import tensor_bytes

__all__ = ["ChannelPercentile", "GroupStatistics", "RunStatistics", "check_values", "different_rows", "row_numbers"]

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

    def channel_percentile(self, p: float, floor: float, where: str) -> ChannelPercentile:
        """p-th percentile of the sampled |x| per channel, within 3 %, no lower than `floor`; 100 is the exact maximum.

        The histogram cannot tell a percentile in its bottom bin. Where that bin ends at or below the floor the answer
        is the floor whatever is in it; elsewhere the channel takes its exact maximum.

        Raises:
            CalibrationRangeError: p is no percentile.
        """
        largest = self.channel_max()
        none = torch.zeros(self.channels, dtype=torch.bool)
        if p == 100.0:
            return ChannelPercentile(largest.clamp(min=floor), none, none)
        if not 0.0 <= p < 100.0:
            raise CalibrationRangeError("not a percentile", where=where, expected="0 to 100", found=p)
        histogram = self.pooled()
        values, below = histogram.percentile(p)
        floored = below & (histogram.bottom() <= floor)
        maxed = below & ~floored
        values = torch.where(below, torch.where(maxed, largest, floor), torch.minimum(values, largest))
        # Nothing but zeros was sampled of a channel that carried something: its percentile is 0, and rests on luck.
        floored |= (histogram.top == NO_OCTAVE) & (largest > floor)
        return ChannelPercentile(values.clamp(min=floor), floored, maxed)

    @property
    def kept_rows(self) -> int:
        """Kept rows of all timestep bins."""
        return sum(int(kept.shape[0]) for kept in self.inputs.values())

    def first_rows(self, limit: int) -> list[Tensor]:
        """At most `limit` kept rows, BF16 [rows, channels] per timestep bin by rising bin, each bin with its share.

        Rows are kept by rising digest, so that the first ones of a bin are as good a sample as any.
        """
        bins = [self.inputs[index] for index in sorted(self.inputs)]
        total = sum(kept.shape[0] for kept in bins)
        return bins if total <= limit else [kept[: max(1, kept.shape[0] * limit // total)] for kept in bins]


def row_numbers(rows: Tensor) -> Tensor:
    """int64 [rows]: the same number for equal rows of BF16 [rows, channels], counted from 0 in the order in which
    different ones come up; -1 for rows of zeros. No Hessian of the rows has a higher rank than there are numbers."""
    bits = rows.contiguous().view(torch.int16)
    found, numbers = torch.full((len(rows),), -1, dtype=torch.int64), dict[bytes, int]()
    for index in (bits & 0x7FFF).any(dim=1).nonzero()[:, 0].tolist():
        digest = hashlib.sha256(tensor_bytes(bits[index])).digest()
        found[index] = numbers.setdefault(digest, len(numbers))
    return found


def different_rows(numbers: Tensor) -> int:
    """How many different rows there are among those with these numbers."""
    return int(numbers.max()) + 1 if len(numbers) else 0


@dataclass(frozen=True)
class ChannelPercentile:
    """A percentile of |x| per channel.

    Attributes:
        values: float64 [channels], no lower than the floor.
        floored: bool [channels], the samples do not tell it, but that the floor is at or above it.
        maxed: bool [channels], the samples do not tell it: the value is the channel's exact maximum.
    """

    values: Tensor
    floored: Tensor
    maxed: Tensor


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

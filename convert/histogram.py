"""Per-channel histograms of |x| that merge exactly.

Octaves are absolute powers of two, each cut into 16 bins of equal ratio. Every channel keeps the 8 octaves below and
including its largest value, and one bin for everything smaller. Which bin a sample ends up in depends only on the
sample and on the channel's final largest octave, so the result does not depend on the order of the samples, nor on how
they were split into parts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from hfq.schema.errors import CalibrationRangeError

__all__ = [
    "BINS",
    "BINS_PER_OCTAVE",
    "COUNT_LIMIT",
    "NO_OCTAVE",
    "OCTAVES",
    "Histogram",
    "keys_of_bf16",
    "magnitude_bits",
    "too_many_samples",
]

BINS_PER_OCTAVE: Final = 16
OCTAVES: Final = 8
WINDOW: Final = BINS_PER_OCTAVE * OCTAVES
BINS: Final = WINDOW + 1
"""Bin 0 holds everything below the window; bin 1 is the window's lowest."""

NO_OCTAVE: Final = -1024
"""Top octave of a channel that has seen nothing but zeros; BF16 reaches down to -133 and up to 127."""
COUNT_LIMIT: Final = 2**31 - 1
"""Largest count of one bin."""

# A position inside a bin is estimated from ranks, but never nearer to an edge than a third of the bin: wherever the
# samples of the bin lie, the estimate is then off by two thirds of a bin at most, 2**(2/48) = 2.9 %.
_EDGE: Final = 1.0 / 3.0


# Elements counted at a time on a CPU: larger temporaries are fetched from the system, page by page, every time.
_CPU_PIECE: Final = 1 << 18


@functools.cache
def keys_of_bf16(device: torch.device) -> Tensor:
    """Table int16 [32768], to be read alone: magnitude bits of a BF16 value -> 16 * octave + bin within the octave."""
    bits = torch.arange(0x7F80, dtype=torch.int32)
    values = (bits << 16).view(torch.float32).double()
    octave = torch.frexp(values)[1] - 1
    ratio = values / torch.exp2(octave.double())
    # Bin edges are 2**(k/16); comparing with the edges avoids a logarithm whose last bit a library may change.
    edges = torch.tensor([2.0 ** (k / BINS_PER_OCTAVE) for k in range(1, BINS_PER_OCTAVE)], dtype=torch.float64)
    finite = octave.int() * BINS_PER_OCTAVE + torch.bucketize(ratio, edges, right=True).int()
    keys = torch.empty(1 << 15, dtype=torch.int16)
    keys[:0x7F80] = finite.short()
    # Infinity and NaN are refused elsewhere, by name; here they must only not leave the window.
    keys[0x7F80:] = keys[0x7F7F]
    keys[0] = (NO_OCTAVE - OCTAVES) * BINS_PER_OCTAVE
    return keys.to(device)


def too_many_samples() -> CalibrationRangeError:
    """The error for a bin that would have to count more than `COUNT_LIMIT`."""
    return CalibrationRangeError(
        "too many samples for one histogram bin",
        expected=f"at most {COUNT_LIMIT}",
        todo="use fewer rows per call (--rows)",
    )


def magnitude_bits(x: Tensor) -> Tensor:
    """The bits of |x| for a BF16 tensor of any shape, int16: larger magnitudes have larger bits."""
    return x.contiguous().view(torch.int16) & 0x7FFF


@dataclass
class Histogram:
    """Counts for one input group.

    Attributes:
        counts: int32 [channels, 129].
        top: int32 [channels], octave of the largest value seen, floor(log2 |x|); `NO_OCTAVE` when it is zero.
    """

    counts: Tensor
    top: Tensor

    @classmethod
    def empty(cls, channels: int, device: torch.device | str = "cpu") -> Histogram:
        """A histogram that has seen nothing."""
        counts = torch.zeros(channels, BINS, dtype=torch.int32, device=device)
        return cls(counts, torch.full((channels,), NO_OCTAVE, dtype=torch.int32, device=device))

    def add(self, x: Tensor) -> None:
        """Count the magnitudes of `x`, BF16 [rows, channels], finite.

        Raises:
            CalibrationRangeError: more samples than a bin can count.
        """
        rows, channels = x.shape
        if rows == 0:
            return
        bits = magnitude_bits(x)
        table = keys_of_bf16(x.device)
        octaves = torch.div(table[bits.amax(dim=0).int()].int(), BINS_PER_OCTAVE, rounding_mode="floor")
        self._raise_top(octaves.clamp(min=NO_OCTAVE))
        below = ((self.top - (OCTAVES - 1)) * BINS_PER_OCTAVE - 1).short()
        first = torch.arange(channels, dtype=torch.int32, device=x.device) * BINS
        added = torch.zeros(channels * BINS, dtype=torch.int64, device=x.device)
        for part in bits.split(max(BINS, _CPU_PIECE // channels) if x.device.type == "cpu" else rows):
            keys = table.index_select(0, part.reshape(-1).int()).reshape(part.shape)
            bins = (keys - below).clamp_(min=0)
            added += torch.bincount((first + bins).reshape(-1), minlength=channels * BINS)
        self._accumulate(added.reshape(channels, BINS))

    def merge(self, other: Histogram) -> None:
        """Add another histogram of the same channels.

        Raises:
            CalibrationRangeError: more samples than a bin can count.
        """
        moved = Histogram(other.counts.clone(), other.top.clone())
        moved._raise_top(self.top)
        self._raise_top(other.top)
        self._accumulate(moved.counts)

    def _accumulate(self, added: Tensor) -> None:
        total = self.counts + added.long()
        if int(total.max()) > COUNT_LIMIT:
            raise too_many_samples()
        self.counts = total.int()

    def _raise_top(self, new_top: Tensor) -> None:
        grown = new_top > self.top
        if not bool(grown.any()):
            return
        shift = ((new_top - self.top).clamp(min=0, max=OCTAVES) * BINS_PER_OCTAVE)[grown].long()
        old = self.counts[grown]
        # Window bin i moves to i - shift; whatever leaves the window at its lower end joins bin 0.
        target = (torch.arange(BINS, device=old.device)[None, :] - shift[:, None]).clamp(min=0)
        self.counts[grown] = torch.zeros_like(old).scatter_add_(1, target, old)
        self.top = torch.maximum(self.top, new_top)

    @property
    def samples(self) -> Tensor:
        """int64 [channels]: samples per channel."""
        return self.counts.sum(dim=1, dtype=torch.int64)

    def percentile(self, p: float) -> tuple[Tensor, Tensor]:
        """The p-th percentile of |x| per channel, in the manner of `numpy.percentile(..., method="linear")`.

        A percentile lies between two neighbouring samples; each of the two is estimated within 2.9 %, from its rank
        inside its bin.

        Returns:
            values float64 [channels], NaN where the answer lies below the window; and that mask, bool [channels]. A
            channel of nothing but zeros, or of nothing at all, has percentile 0.
        """
        rank = p / 100.0 * (self.samples.double() - 1.0).clamp(min=0.0)
        lower, upper = rank.floor(), rank.ceil()
        cumulative = self.counts.cumsum(dim=1, dtype=torch.float64)
        smaller, below = self._sample(lower, cumulative)
        larger, _ = self._sample(upper, cumulative)
        values = torch.lerp(smaller, larger, rank - lower)
        silent = self.top == NO_OCTAVE
        below &= ~silent
        return torch.where(silent, 0.0, torch.where(below, torch.nan, values)), below

    def _sample(self, rank: Tensor, cumulative: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate of the sample of each 0-based rank, and whether it lies in the bottom bin."""
        # It lies in the first bin whose cumulative count exceeds its rank.
        index = torch.searchsorted(cumulative, rank[:, None], right=True).clamp(max=BINS - 1)
        inside = self.counts.gather(1, index).double().clamp(min=1.0)
        before = cumulative.gather(1, index) - inside
        fraction = ((rank[:, None] - before + 0.5) / inside).clamp(_EDGE, 1.0 - _EDGE)
        position = ((index.double() - 1.0 + fraction) / BINS_PER_OCTAVE)[:, 0]
        return torch.exp2(position + (self.top.double() - (OCTAVES - 1))), index[:, 0] == 0

    def bottom(self) -> Tensor:
        """float64 [channels]: where the bottom bin ends; 0 for a channel of nothing but zeros."""
        return torch.where(self.top == NO_OCTAVE, 0.0, torch.exp2(self.top.double() - (OCTAVES - 1)))

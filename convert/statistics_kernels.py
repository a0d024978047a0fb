"""Compiled kernels of calibration statistics: largest |x|, sum of squares and histogram of every channel in one walk.

A block of channels is walked row part by row part: its magnitudes are copied into a buffer that stays in the
processor's cache, and everything else reads that. Blocks share nothing, so threads may take them in any order.

Sums of squares are added as torch adds them along the rows of [rows, channels] for a number of channels that is a
multiple of 32 (a cascade: 16 rows, 16 such sums, 16 of those ...), so that the bits are those of the eager path.

The histogram's constants are compiled in: a change of them asks for a change of this file, see `hfq.formats._kernels`.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from hfq.formats._kernels import BOOLEAN, DOUBLES, FLOATS, HALF, HALVES, INTEGER, float_of, inlined, kernel

from .histogram import BINS, BINS_PER_OCTAVE, NO_OCTAVE, OCTAVES

__all__ = ["BLOCK", "PART", "observe"]

BLOCK: Final = 128
"""Channels walked at a time: a part of their magnitudes is 1 MB, their counts are 66 kB."""
PART: Final = 4096
"""Rows walked at a time. Part of the result: each part's sum of squares is added to the sum so far."""

_STEP: Final = 16
_LEVELS: Final = 4  # 16**3 rows fill the last one: enough for a part
_MAGNITUDE: Final = np.uint16(0x7FFF)

_KEYS: Final = numba.types.int16[::1]
_COUNTS: Final = numba.types.int32[::1]
_INDICES: Final = numba.types.int64[::1]


@inlined
def _load(x: Any, start: int, rows: int, channels: int, first: int, width: int, magnitudes: Any) -> None:
    """Magnitudes of a part of a block, [rows, width]."""
    for row in range(rows):
        base = (start + row) * channels + first
        # Slices of their own: only so is it plain to the compiler that the two do not overlap.
        source, target = x[base : base + width], magnitudes[row * width : (row + 1) * width]
        for channel in range(width):
            target[channel] = source[channel] & _MAGNITUDE


@inlined
def _raise_most(magnitudes: Any, row: int, width: int, most: Any) -> None:
    """Take a row into the largest magnitudes."""
    source = magnitudes[row * width : (row + 1) * width]
    for channel in range(width):
        most[channel] = max(most[channel], source[channel])


@inlined
def _add_squares(magnitudes: Any, row: int, width: int, sums: Any) -> None:
    """Add the squares of a row."""
    source = magnitudes[row * width : (row + 1) * width]
    for channel in range(width):
        # A square of BF16 is exact in float32, unless it leaves float32's range.
        value = float_of(np.uint32(source[channel]) << HALF)
        sums[channel] += np.float64(np.float32(value * value))


@inlined
def _measure(magnitudes: Any, rows: int, width: int, most: Any, sums: Any) -> None:
    """Largest magnitudes into `most` [width], sums of squares into the first row of `sums` [levels, width]."""
    most[:] = 0
    sums[:] = 0.0
    for row in range(rows):
        _raise_most(magnitudes, row, width, most)
        _add_squares(magnitudes, row, width, sums[0])
        filled, level = row + 1, 1
        while level < _LEVELS and filled % _STEP == 0:
            lower, upper = sums[level - 1], sums[level]
            for channel in range(width):
                upper[channel] += lower[channel]
            lower[:] = 0.0
            filled, level = filled // _STEP, level + 1
    for level in range(1, _LEVELS):
        lower, upper = sums[0], sums[level]
        for channel in range(width):
            lower[channel] += upper[channel]


@inlined
def _raise_top(counts: Any, base: int, shift: int) -> None:
    """Move a channel's window up: bin i becomes bin i - shift, and what leaves the window joins bin 0."""
    for bin_index in range(1, BINS):
        target = max(bin_index - shift, 0)
        count = counts[base + bin_index]
        counts[base + bin_index] = 0
        counts[base + target] += count


@inlined
def _count(
    magnitudes: Any, sampled: Any, width: int, keys: Any, most: Any, places: Any, top: Any, counts: Any
) -> Any:  # fmt: skip
    """Count the sampled rows of a part of a block. Returns whether a bin ran over; its count is then useless."""
    most[:] = 0
    for row in sampled:
        _raise_most(magnitudes, row, width, most)
    for channel in range(width):
        octave: Any = max(np.int64(keys[most[channel]]) // BINS_PER_OCTAVE, NO_OCTAVE)
        grown = octave - np.int64(top[channel])
        if grown > 0:
            _raise_top(counts, channel * BINS, min(grown, OCTAVES) * BINS_PER_OCTAVE)
            top[channel] = octave
        # What a key is added to, to give the place of its bin among the counts.
        places[channel] = channel * BINS + 1 - (np.int64(top[channel]) - (OCTAVES - 1)) * BINS_PER_OCTAVE
    for row in sampled:
        source = magnitudes[row * width : (row + 1) * width]
        for channel in range(width):
            counts[max(np.int64(keys[source[channel]]) + places[channel], channel * BINS)] += 1
    least: Any = np.int32(0)
    for place in range(width * BINS):
        least = min(least, counts[place])
    return least < 0


@inlined
def _keep(most: Any, sums: Any, width: int, largest: Any, squares: Any) -> None:
    """Take the measures of a part into those of the call."""
    for channel in range(width):
        value = float_of(np.uint32(most[channel]) << HALF)
        # Larger or equal, so that NaN gets in and stays.
        if not (largest[channel] >= value) and largest[channel] == largest[channel]:
            largest[channel] = value
        squares[channel] += sums[channel]


@inlined
def _rows_of(sampled: Any, start: int, rows: int) -> Any:
    """The sampled rows of a part, counted from its start."""
    first, last = np.searchsorted(sampled, start), np.searchsorted(sampled, start + rows)
    return sampled[first:last] - start


@kernel(BOOLEAN(HALVES, INTEGER, INTEGER, _INDICES, _KEYS, FLOATS, DOUBLES, _COUNTS, _COUNTS, INTEGER, INTEGER))
def observe(
    x: Any, rows: int, channels: int, sampled: Any, keys: Any,
    largest: Any, squares: Any, top: Any, counts: Any, start: int, stop: int,
) -> bool:  # fmt: skip
    """Add the rows of a call to its statistics, for the blocks of channels from `start` to before `stop`.

    Args:
        x: uint16 [rows * channels], BF16 patterns.
        sampled: int64, rising: the rows that enter the histogram.
        keys: int16 [32768], magnitude -> 16 * octave + bin within the octave.
        largest, squares: float32 and float64 [channels], of the call.
        top, counts: int32 [channels] and [channels * 129], of the histogram.

    Returns:
        whether a bin ran over.
    """
    magnitudes = np.empty(min(rows, PART) * BLOCK, np.uint16)
    most, sums, places = np.empty(BLOCK, np.uint16), np.empty((_LEVELS, BLOCK), np.float64), np.empty(BLOCK, np.int64)
    over = False
    for block in range(start, stop):
        first, last = block * BLOCK, min((block + 1) * BLOCK, channels)
        width, own_counts = last - first, counts[first * BINS : last * BINS]
        for begin in range(0, rows, PART):
            part = min(PART, rows - begin)
            _load(x, begin, part, channels, first, width, magnitudes)
            _measure(magnitudes, part, width, most, sums)
            _keep(most, sums[0], width, largest[first:last], squares[first:last])
            chosen = _rows_of(sampled, begin, part)
            over |= _count(magnitudes, chosen, width, keys, most, places, top[first:last], own_counts)
    return over

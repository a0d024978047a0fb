"""HiFloat8, compiled: tables of the upper halves of fp32 patterns, over ranges of rows. See `hif8_compiled`.

A kernel works on chunks of a row in a scratch of bit patterns. A bf16 pattern is an upper half itself.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ._kernels import (
    BOOLEAN,
    BYTES,
    DOUBLE_ROWS,
    F32,
    FLOATS,
    HALF,
    HALVES,
    INFINITY,
    INTEGER,
    MAGNITUDE,
    NAN,
    ONE,
    SIGN,
    U32,
    VOID,
    WORDS,
    bits_of,
    float_of,
    inlined,
    kernel,
    round_bits_to_bf16,
)
from ._layout import DIVIDE, KEEP
from .square_kernels import PLACES, adder

CHUNK: Final = 4096  # elements: the scratch takes 16 KiB
_HALF_MAGNITUDE: Final = np.uint16(0x7FFF)
_HALF_INFINITY: Final = np.uint16(0x7F80)
_MAX: Final = np.float32(2.0**15).view(np.uint32)
_OVERFLOW: Final = np.float32(1.25 * 2.0**15).view(np.uint32)
_TINY: Final = np.float32(2.0**-22).view(np.uint32)
_HALF_TINY: Final = np.float32(2.0**-23).view(np.uint32)


add_squares: Final = adder(PLACES)


def new_scratch() -> Any:
    """A scratch uint32 [CHUNK]."""
    return np.zeros(CHUNK, np.uint32)


def new_halves() -> Any:
    """A scratch uint16 [CHUNK]."""
    return np.zeros(CHUNK, np.uint16)


def new_doubles() -> Any:
    """A scratch of doubles [2, PLACES]."""
    return np.zeros((2, PLACES), np.float64)


@inlined
def multiply(column: Any, n: Any, mask: Any, b: Any) -> None:
    """The numbers times their columns' mask."""
    factors = mask[column : column + n]
    for i in range(n):
        b[i] = bits_of(F32(float_of(b[i]) * factors[i]))


@inlined
def load(
    narrow: Any, x: Any, wide: Any, through_bf16: Any, mask: Any, action: Any, start: Any, column: Any, n: Any, b: Any
) -> None:
    """The fp32 numbers that are quantized: n of a row, from element `start`, which stands in `column`."""
    # A slice makes the indices of its loop plainly positive; else numba's negative indices keep LLVM from vectorising.
    if wide:
        words = x[start : start + n]
        for i in range(n):
            b[i] = words[i]
    else:
        halves = narrow[start : start + n]
        for i in range(n):
            b[i] = U32(halves[i]) << HALF
    if through_bf16:
        for i in range(n):
            bits = b[i]
            b[i] = NAN if (bits & MAGNITUDE) > INFINITY else round_bits_to_bf16(bits)
    if action == DIVIDE:
        divisors = mask[column : column + n]
        for i in range(n):
            b[i] = bits_of(F32(float_of(b[i]) / divisors[i]))
    elif action != KEEP:
        multiply(column, n, mask, b)


@inlined
def store(n: Any, b: Any, narrow: Any, out: Any, wide: Any, start: Any) -> None:
    """The numbers, rounded to bf16 unless `wide`."""
    if wide:
        words = out[start : start + n]
        for i in range(n):
            words[i] = b[i]
    else:
        halves = narrow[start : start + n]
        for i in range(n):
            bits = b[i]
            halves[i] = np.uint16((NAN if (bits & MAGNITUDE) > INFINITY else round_bits_to_bf16(bits)) >> HALF)


@inlined
def upper_halves(n: Any, inverse: Any, b: Any, h: Any) -> Any:
    """The numbers times `inverse` as indices of a table, and the pattern of the largest magnitude before that.

    An index truncates a magnitude and keeps a NaN a NaN.
    """
    peak = U32(0)
    for i in range(n):
        peak = max(peak, b[i] & MAGNITUDE)
        bits = bits_of(F32(float_of(b[i]) * inverse))
        h[i] = np.uint16((NAN if (bits & MAGNITUDE) > INFINITY else bits) >> HALF)
    return peak


@inlined
def round_values(n: Any, inverse: Any, scale: Any, saturate: Any, b: Any) -> None:
    """The numbers times `inverse`, rounded to values of the format, times `scale`.

    Half away from zero: half of the last kept place is added.
    """
    infinity, nan = (_MAX, U32(0)) if saturate else (INFINITY, NAN)
    for i in range(n):
        bits = bits_of(F32(float_of(b[i]) * inverse))
        magnitude = bits & MAGNITUDE
        exponent = U32(magnitude >> U32(23))
        # Three mantissa bits are kept from 2^-3 to 2^3, two to 2^7, one to 2^15, none below 2^-15.
        coarse = ONE if U32(exponent - U32(124)) > U32(6) else U32(0)
        coarser = ONE if U32(exponent - U32(120)) > U32(14) else U32(0)
        coarsest = ONE if U32(exponent - U32(112)) > U32(30) else U32(0)
        dropped = U32(U32(20) + coarse + coarser + coarsest)
        rounded = U32(U32(U32(magnitude + U32(ONE << U32(dropped - ONE))) >> dropped) << dropped)
        rounded = max(rounded, _TINY) if magnitude >= _HALF_TINY else U32(0)
        rounded = infinity if magnitude >= _OVERFLOW else rounded
        rounded = nan if magnitude > INFINITY else rounded
        sign = bits & SIGN if rounded != U32(0) else U32(0)
        b[i] = bits_of(F32(float_of(rounded | sign) * scale))


@kernel(VOID(HALVES, WORDS, BOOLEAN, BOOLEAN, FLOATS, INTEGER, INTEGER, WORDS, INTEGER, INTEGER, WORDS))
def largest(
    narrow: Any, x: Any, wide: bool, through_bf16: bool, mask: Any, action: int, columns: int, found: Any,
    first: int, last: int, b: Any,
) -> None:  # fmt: skip
    """The pattern of the largest finite magnitude of each row [first, last)."""
    for row in range(first, last):
        amax = U32(0)
        for column in range(0, columns, CHUNK):
            n = min(CHUNK, columns - column)
            load(narrow, x, wide, through_bf16, mask, action, row * columns + column, column, n, b)
            for i in range(n):
                magnitude = b[i] & MAGNITUDE
                amax = max(amax, magnitude if magnitude < INFINITY else U32(0))
        found[row] = amax


@kernel(BOOLEAN(HALVES, BYTES, BYTES, INTEGER, INTEGER))
def encode_halves(x: Any, table: Any, codes: Any, first: int, last: int) -> bool:
    """Codes of bf16 patterns [first, last), and whether one was NaN or infinite."""
    largest_magnitude = np.uint16(0)
    for start in range(first, last, CHUNK):
        source, target = x[start : min(start + CHUNK, last)], codes[start : min(start + CHUNK, last)]
        for i in range(len(source)):
            largest_magnitude = np.uint16(max(largest_magnitude, source[i] & _HALF_MAGNITUDE))
        for i in range(len(source)):
            target[i] = table[source[i]]
    return bool(largest_magnitude >= _HALF_INFINITY)


@kernel(
    BOOLEAN(
        *(HALVES, WORDS, BOOLEAN, BOOLEAN, FLOATS, INTEGER, INTEGER, FLOATS, INTEGER),
        *(BYTES, BYTES, INTEGER, INTEGER, WORDS, HALVES),
    )
)
def encode(
    narrow: Any, x: Any, wide: bool, through_bf16: bool, mask: Any, action: int, columns: int, inverse: Any, step: int,
    table: Any, codes: Any, first: int, last: int, b: Any, h: Any,
) -> bool:  # fmt: skip
    """Codes of rows [first, last) times their `inverse[row * step]`, and whether a number was NaN or infinite."""
    peak = U32(0)
    for row in range(first, last):
        for column in range(0, columns, CHUNK):
            n, start = min(CHUNK, columns - column), row * columns + column
            load(narrow, x, wide, through_bf16, mask, action, start, column, n, b)
            peak = max(peak, upper_halves(n, inverse[row * step], b, h))
            target = codes[start : start + n]
            for i in range(n):
                target[i] = table[h[i]]
    return bool(peak >= INFINITY)


@kernel(VOID(HALVES, HALVES, HALVES, INTEGER, INTEGER))
def qdq_halves(x: Any, table: Any, out: Any, first: int, last: int) -> None:
    """The values of bf16 patterns [first, last)."""
    source, target = x[first:last], out[first:last]
    for i in range(len(source)):
        target[i] = table[source[i]]


@kernel(
    VOID(
        *(HALVES, WORDS, BOOLEAN, FLOATS, INTEGER, INTEGER, FLOATS, FLOATS, INTEGER),
        *(BOOLEAN, HALVES, WORDS, BOOLEAN, INTEGER, INTEGER, WORDS),
    )
)
def qdq(
    narrow: Any, x: Any, wide: bool, mask: Any, action: int, columns: int, inverse: Any, scales: Any, step: int,
    saturate: bool, narrow_out: Any, out: Any, out_wide: bool, first: int, last: int, b: Any,
) -> None:  # fmt: skip
    """The values of rows [first, last), scaled back by `scales[row * step]`."""
    for row in range(first, last):
        for column in range(0, columns, CHUNK):
            n, start = min(CHUNK, columns - column), row * columns + column
            load(narrow, x, wide, False, mask, action, start, column, n, b)
            round_values(n, inverse[row * step], scales[row * step], saturate, b)
            store(n, b, narrow_out, out, out_wide, start)


@inlined
def load_stored(
    codes: Any, table: Any, factor: Any, mask: Any, action: Any, start: Any, column: Any, n: Any, b: Any
) -> None:
    """The values of codes, scaled, times their columns' mask when `action` says so."""
    source = codes[start : start + n]
    for i in range(n):
        b[i] = bits_of(F32(table[source[i]] * factor))
    if action != KEEP:
        multiply(column, n, mask, b)


@kernel(
    VOID(
        *(BYTES, FLOATS, FLOATS, INTEGER, FLOATS, INTEGER, INTEGER),
        *(HALVES, WORDS, BOOLEAN, INTEGER, INTEGER, WORDS),
    )
)
def decode(
    codes: Any, table: Any, scales: Any, step: int, mask: Any, action: int, columns: int,
    narrow_out: Any, out: Any, out_wide: bool, first: int, last: int, b: Any,
) -> None:  # fmt: skip
    """The values of rows [first, last)."""
    for row in range(first, last):
        for column in range(0, columns, CHUNK):
            n, start = min(CHUNK, columns - column), row * columns + column
            load_stored(codes, table, scales[row * step], mask, action, start, column, n, b)
            store(n, b, narrow_out, out, out_wide, start)


@inlined
def fold(sums: Any) -> Any:
    """The total of the sums [PLACES] of a row, in the order of `_squares`; they are used up."""
    n = PLACES
    while n > 4:
        n //= 2
        low, high = sums[:n], sums[n : 2 * n]
        for i in range(n):
            low[i] += high[i]
    return ((sums[0] + sums[1]) + sums[2]) + sums[3]


@kernel(
    VOID(
        *(BYTES, FLOATS, FLOATS, INTEGER, FLOATS, INTEGER, INTEGER),
        *(HALVES, WORDS, BOOLEAN, DOUBLE_ROWS, INTEGER, INTEGER, WORDS, WORDS, DOUBLE_ROWS),
    )
)
def measure(
    codes: Any, table: Any, scales: Any, step: int, mask: Any, action: int, columns: int,
    narrow: Any, original: Any, wide: bool, sums: Any, first: int, last: int, b: Any, o: Any, d: Any,
) -> None:  # fmt: skip
    """Sums of squares of rows [first, last): of value minus original in sums[0], of the original in sums[1]."""
    for row in range(first, last):
        d[:] = 0.0
        for column in range(0, columns, CHUNK):
            n, start = min(CHUNK, columns - column), row * columns + column
            load_stored(codes, table, scales[row * step], mask, action, start, column, n, b)
            load(narrow, original, wide, False, mask, KEEP, start, column, n, o)
            add_squares(n, b, o, d[0], d[1])
        for kind in range(2):
            sums[kind, row] = fold(d[kind])

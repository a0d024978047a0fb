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
    DOUBLES,
    F32,
    F64,
    FLOATS,
    HALF,
    HALVES,
    INFINITY,
    INTEGER,
    MAGNITUDE,
    NAN,
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

CHUNK: Final = 4096  # elements: the scratch takes 16 KiB
PLACES: Final = 64  # sums of a row, see `_squares`
_HALF_MAGNITUDE: Final = np.uint16(0x7FFF)
_HALF_INFINITY: Final = np.uint16(0x7F80)


def new_scratch() -> Any:
    """A scratch uint32 [CHUNK]."""
    return np.zeros(CHUNK, np.uint32)


def new_doubles() -> Any:
    """A scratch of doubles [CHUNK]."""
    return np.zeros(CHUNK, np.float64)


@inlined
def load(
    narrow: Any, x: Any, wide: Any, through_bf16: Any, mask: Any, action: Any, start: Any, column: Any, n: Any, b: Any
) -> None:
    """The fp32 numbers that are quantized: n of a row, from element `start`, which stands in `column`."""
    if wide:
        for i in range(n):
            b[i] = x[start + i]
    else:
        for i in range(n):
            b[i] = U32(narrow[start + i]) << HALF
    if through_bf16:
        for i in range(n):
            bits = b[i]
            b[i] = NAN if (bits & MAGNITUDE) > INFINITY else round_bits_to_bf16(bits)
    if action == DIVIDE:
        for i in range(n):
            b[i] = bits_of(F32(float_of(b[i]) / mask[column + i]))
    elif action != KEEP:
        for i in range(n):
            b[i] = bits_of(F32(float_of(b[i]) * mask[column + i]))


@inlined
def scale(n: Any, factor: Any, b: Any) -> None:
    """The numbers times a power of two."""
    for i in range(n):
        b[i] = bits_of(F32(float_of(b[i]) * factor))


@inlined
def store(n: Any, b: Any, narrow: Any, out: Any, wide: Any, start: Any) -> None:
    """The numbers, rounded to bf16 unless `wide`."""
    if wide:
        for i in range(n):
            out[start + i] = b[i]
    else:
        for i in range(n):
            bits = b[i]
            narrow[start + i] = np.uint16((NAN if (bits & MAGNITUDE) > INFINITY else round_bits_to_bf16(bits)) >> HALF)


@inlined
def upper_half(bits: Any) -> Any:
    """The index of a table. It truncates a magnitude and keeps a NaN a NaN."""
    return (NAN if (bits & MAGNITUDE) > INFINITY else bits) >> HALF


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
    for i in range(first, last):
        half = x[i]
        codes[i] = table[half]
        largest_magnitude = max(largest_magnitude, half & _HALF_MAGNITUDE)
    return bool(largest_magnitude >= _HALF_INFINITY)


@kernel(
    BOOLEAN(
        *(HALVES, WORDS, BOOLEAN, BOOLEAN, FLOATS, INTEGER, INTEGER, FLOATS, INTEGER),
        *(BYTES, BYTES, INTEGER, INTEGER, WORDS),
    )
)
def encode(
    narrow: Any, x: Any, wide: bool, through_bf16: bool, mask: Any, action: int, columns: int, inverse: Any, step: int,
    table: Any, codes: Any, first: int, last: int, b: Any,
) -> bool:  # fmt: skip
    """Codes of rows [first, last) times their `inverse[row * step]`, and whether a number was NaN or infinite."""
    peak = U32(0)
    for row in range(first, last):
        for column in range(0, columns, CHUNK):
            n, start = min(CHUNK, columns - column), row * columns + column
            load(narrow, x, wide, through_bf16, mask, action, start, column, n, b)
            for i in range(n):
                peak = max(peak, b[i] & MAGNITUDE)
            scale(n, inverse[row * step], b)
            for i in range(n):
                codes[start + i] = table[upper_half(b[i])]
    return bool(peak >= INFINITY)


@kernel(VOID(HALVES, HALVES, HALVES, INTEGER, INTEGER))
def qdq_halves(x: Any, table: Any, out: Any, first: int, last: int) -> None:
    """The values of bf16 patterns [first, last)."""
    for i in range(first, last):
        out[i] = table[x[i]]


@kernel(
    VOID(
        *(HALVES, WORDS, BOOLEAN, FLOATS, INTEGER, INTEGER, FLOATS, FLOATS, INTEGER),
        *(HALVES, HALVES, WORDS, BOOLEAN, INTEGER, INTEGER, WORDS),
    )
)
def qdq(
    narrow: Any, x: Any, wide: bool, mask: Any, action: int, columns: int, inverse: Any, scales: Any, step: int,
    table: Any, narrow_out: Any, out: Any, out_wide: bool, first: int, last: int, b: Any,
) -> None:  # fmt: skip
    """The values of rows [first, last), scaled back by `scales[row * step]`."""
    for row in range(first, last):
        for column in range(0, columns, CHUNK):
            n, start = min(CHUNK, columns - column), row * columns + column
            load(narrow, x, wide, False, mask, action, start, column, n, b)
            scale(n, inverse[row * step], b)
            for i in range(n):
                b[i] = U32(table[upper_half(b[i])]) << HALF
            scale(n, scales[row * step], b)
            store(n, b, narrow_out, out, out_wide, start)


@inlined
def load_stored(
    codes: Any, table: Any, factor: Any, mask: Any, action: Any, start: Any, column: Any, n: Any, b: Any
) -> None:
    """The values of codes, scaled, times their columns' mask when `action` says so."""
    for i in range(n):
        b[i] = bits_of(F32(table[codes[start + i]] * factor))
    if action != KEEP:
        for i in range(n):
            b[i] = bits_of(F32(float_of(b[i]) * mask[column + i]))


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
def add_squares(n: Any, d: Any, sums: Any) -> None:
    """Squares of a chunk added to the sums of their places, one span of places after the other."""
    whole = n // PLACES
    for j in range(whole):
        for i in range(PLACES):
            sums[i] += d[PLACES * j + i] * d[PLACES * j + i]
    for i in range(n - PLACES * whole):
        sums[i] += d[PLACES * whole + i] * d[PLACES * whole + i]


@kernel(
    VOID(
        *(BYTES, FLOATS, FLOATS, INTEGER, FLOATS, INTEGER, INTEGER),
        *(HALVES, WORDS, BOOLEAN, DOUBLE_ROWS, INTEGER, INTEGER, WORDS, WORDS, DOUBLES),
    )
)
def measure(
    codes: Any, table: Any, scales: Any, step: int, mask: Any, action: int, columns: int,
    narrow: Any, original: Any, wide: bool, sums: Any, first: int, last: int, b: Any, o: Any, d: Any,
) -> None:  # fmt: skip
    """Sums of squares of rows [first, last): of value minus original in sums[0], of the original in sums[1]."""
    places = np.zeros((2, PLACES))
    for row in range(first, last):
        places[:] = 0.0
        for column in range(0, columns, CHUNK):
            n, start = min(CHUNK, columns - column), row * columns + column
            load_stored(codes, table, scales[row * step], mask, action, start, column, n, b)
            load(narrow, original, wide, False, mask, KEEP, start, column, n, o)
            for i in range(n):
                d[i] = F64(float_of(b[i])) - F64(float_of(o[i]))
            add_squares(n, d, places[0])
            for i in range(n):
                d[i] = F64(float_of(o[i]))
            add_squares(n, d, places[1])
        for kind in range(2):
            total = 0.0
            for i in range(PLACES):
                total += places[kind, i]
            sums[kind, row] = total

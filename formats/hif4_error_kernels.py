"""HiFloat4 with a scale search, and the squared error of stored groups, compiled; see `hif4_kernels`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ._kernels import (
    BOOLEAN,
    DOUBLE_ROWS,
    F32,
    F64,
    FLOAT,
    FLOAT_ROWS,
    HALVES,
    INFINITY,
    INTEGER,
    MAGNITUDE,
    ONE,
    RUNS,
    U32,
    VOID,
    WORD_ROWS,
    WORDS,
    float_of,
    inlined,
    kernel,
)
from .hif4_kernels import (
    BEST,
    CHUNK,
    CODE,
    COLUMNS,
    FACTOR,
    RUN,
    STEP,
    clear_codes,
    find_peaks,
    find_scales,
    find_steps,
    load_stored,
    plan,
    round_quarters,
    write_codes,
    write_words,
)
from .hif4_runs import load, load_operand
from .hif4_spec import E6M2_MAX, E6M2_NAN, SEARCH_OFFSETS
from .square_kernels import PLACES, adder

# Rows of the scratch of doubles of a search. The first four hold squares, column by column as patterns stand.
RULE: Final = 4  # per group: the E6M2 code by the rule
ERROR: Final = 5  # per group: the smallest error so far
DOUBLE_ROW_COUNT: Final = 6
PLACE_RUNS: Final = PLACES // 4
add_squares: Final = adder(PLACE_RUNS)
_NAN_CODE: Final = np.uint32(E6M2_NAN)


def new_sums() -> Any:
    """Sums of the places of a row [8, PLACE_RUNS]: four rows as in the scratch of patterns, four of originals."""
    return np.zeros((8, PLACE_RUNS), np.float64)


def new_doubles() -> Any:
    """A scratch of doubles [DOUBLE_ROW_COUNT, COLUMNS]."""
    return np.zeros((DOUBLE_ROW_COUNT, COLUMNS), np.float64)


@inlined
def search(
    groups: Any, tests_in_bf16: Any, element_in_bf16: Any, ties_to_even: Any, octaves: Any, b: Any, pairs: Any, d: Any
) -> None:
    """The E6M2 codes replaced by those of the smallest squared error."""
    for g in range(groups):
        b[BEST, g] = b[CODE, g]
        d[RULE, g], d[ERROR, g] = F64(b[CODE, g]), np.inf
    for offset in SEARCH_OFFSETS:
        for g in range(groups):
            tried = U32(min(max(np.int64(d[RULE, g]) + offset, np.int64(0)), np.int64(E6M2_MAX)))
            b[CODE, g] = tried if d[RULE, g] != E6M2_NAN else _NAN_CODE
        plan(groups, tests_in_bf16, octaves, b, pairs)
        find_steps(groups, b)
        for s in range(4):
            for t in range(RUN * groups):
                quarters = round_quarters(b[s, t], float_of(b[FACTOR, t]), element_in_bf16, ties_to_even)
                value = F32(F32(np.int32(quarters)) * float_of(b[STEP, t]))
                difference = F64(float_of(U32(b[s, t] & MAGNITUDE))) - F64(value)
                d[s, t] = difference * difference
        for g in range(groups):
            error = 0.0
            for k in range(RUN * g, RUN * (g + 1)):
                error = (((error + d[0, k]) + d[1, k]) + d[2, k]) + d[3, k]
            if error < d[ERROR, g]:
                d[ERROR, g], b[BEST, g] = error, b[CODE, g]
    for g in range(groups):
        b[CODE, g] = b[BEST, g]


@kernel(
    BOOLEAN(
        *(RUNS, BOOLEAN, BOOLEAN, FLOAT_ROWS, INTEGER, FLOAT, BOOLEAN, BOOLEAN, BOOLEAN, BOOLEAN),
        *(WORDS, HALVES, INTEGER, INTEGER, WORD_ROWS, RUNS, DOUBLE_ROWS),
    )
)
def encode_searching(
    x: Any, wide: bool, through_bf16: bool, mask: Any, action: int,
    headroom: Any, infinity_too: bool, tests_in_bf16: bool, element_in_bf16: bool, ties_to_even: bool,
    words: Any, codes: Any, first: int, last: int, b: Any, pairs: Any, d: Any,
) -> bool:  # fmt: skip
    """`hif4_kernels.encode` with a scale search."""
    limit = INFINITY if infinity_too else INFINITY + ONE
    octaves = U32(2) if ties_to_even else U32(3)
    found = False
    for g in range(first, last, CHUNK):
        groups = min(CHUNK, last - g)
        n = RUN * groups
        load_operand(x, wide, through_bf16, mask, action, RUN * g, n, b)
        find_peaks(n, b)
        dead = find_scales(groups, headroom, limit, b)
        found |= dead
        search(groups, tests_in_bf16, element_in_bf16, ties_to_even, octaves, b, pairs, d)
        plan(groups, tests_in_bf16, octaves, b, pairs)
        write_words(g, groups, words, b)
        write_codes(RUN * g, n, element_in_bf16, ties_to_even, codes, b)
        if dead:
            clear_codes(RUN * g, groups, codes, b)
    return found


@inlined
def fold(sums: Any) -> Any:
    """The total of sums [4, PLACE_RUNS] of the places of a row, in the order of `_squares`; they are used up."""
    n = PLACE_RUNS
    while n > 1:
        n //= 2
        for s in range(4):
            low, high = sums[s, :n], sums[s, n : 2 * n]
            for t in range(n):
                low[t] += high[t]
    return ((sums[0, 0] + sums[1, 0]) + sums[2, 0]) + sums[3, 0]


@kernel(
    VOID(
        *(WORDS, HALVES, FLOAT_ROWS, INTEGER, RUNS, BOOLEAN, INTEGER, DOUBLE_ROWS),
        *(INTEGER, INTEGER, WORD_ROWS, WORD_ROWS, DOUBLE_ROWS),
    )
)
def measure(
    words: Any, codes: Any, mask: Any, action: int, original: Any, wide: bool, groups_per_row: int, sums: Any,
    first: int, last: int, b: Any, o: Any, d: Any,
) -> None:  # fmt: skip
    """Sums of squares of rows [first, last): of value minus original in sums[0], of the original in sums[1]."""
    for row in range(first, last):
        d[:] = 0.0
        for g in range(row * groups_per_row, (row + 1) * groups_per_row, CHUNK):
            groups = min(CHUNK, (row + 1) * groups_per_row - g)
            n = RUN * groups
            load_stored(words, codes, mask, action, g, groups, b)
            load(original, wide, RUN * g, n, o)
            for s in range(4):
                add_squares(n, b[s], o[s], d[s], d[4 + s])
        sums[0, row] = fold(d[:4])
        sums[1, row] = fold(d[4:])

"""HiFloat4, compiled: the conversion of `hif4` over ranges of groups. Imported by `hif4_compiled` when first needed.

A kernel works on chunks of groups that fit a core's own cache, in a scratch [rows, columns] of bit patterns. Column
16 g + k stands for run k of group g: four values, as many as share an lv3 flag, which lie in four rows. So all steps
but the maximum of a group and its scale word are flat loops, and one 64-bit word holds a run in bf16.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ._kernels import (
    BOOLEAN,
    F32,
    FLOAT,
    FLOAT_ROWS,
    HALF,
    HALVES,
    INFINITY,
    INTEGER,
    MAGNITUDE,
    NAN,
    ONE,
    RUNS,
    SIGN,
    U32,
    U64,
    VOID,
    WORD,
    WORD_ROWS,
    WORDS,
    bits_of,
    float_of,
    inlined,
    kernel,
    round_bits_to_bf16,
)
from ._layout import KEEP
from .hif4_runs import apply_mask, load_operand, store
from .hif4_spec import E6M2_BIAS, E6M2_NAN, ONE_SEVENTH, RECIPROCAL_MANTISSAS, SCALE_MAX, SCALE_MIN

CHUNK: Final = 32  # groups; the scratch then takes 28 KiB
RUN: Final = 16  # runs of four values in a group
COLUMNS: Final = CHUNK * RUN

# Rows of the scratch. The first four hold the values of a run.
FLAGS: Final = 4  # lv2 in bit 0 (the same in both runs of an lv2 flag), lv3 in bit 1
FACTOR: Final = 5  # what step 8 multiplies magnitudes by
STEP: Final = 6  # what one quarter is worth; or a run's share of the scale word
PEAK: Final = 7  # of a run: v16
LV2_PLACE: Final = 8  # shift of a run's flags in the scale word
LV3_PLACE: Final = 9
# Rows whose columns are groups.
CODE: Final = 10  # vmax, then the E6M2 code
RECIPROCAL: Final = 11
BEST: Final = 12  # E6M2 code of a scale search
ROWS: Final = 13

_SCALE_MIN: Final = np.float32(SCALE_MIN).view(np.uint32)
_SCALE_MAX: Final = np.float32(SCALE_MAX).view(np.uint32)
_ONE_SEVENTH: Final = np.float32(ONE_SEVENTH)
_E6M2_TO_FP32: Final = np.uint32((127 - E6M2_BIAS) << 2)
_MANTISSAS: Final = np.uint32(sum(mantissa << (8 * m) for m, mantissa in enumerate(RECIPROCAL_MANTISSAS)))
_RECIPROCAL_EXPONENT: Final = np.uint32(127 + E6M2_BIAS)
_NAN_CODE: Final = np.uint32(E6M2_NAN)
_TWO: Final = np.uint32(2)
_EXPONENT: Final = np.uint32(23)
_QUARTER_STEP: Final = np.uint32(2 << 23)
_LEFT, _MIDDLE, _RIGHT = np.uint32(4), np.uint32(8), np.uint32(12)
_BOTH: Final = np.uint64(0x1_0000_0001)
_INTEGERS: Final = np.float32(2.0**23)  # adding it rounds a small positive number to an integer, half to even


def new_scratch() -> tuple[Any, Any]:
    """A scratch uint32 [ROWS, COLUMNS], and its row of flags as uint64, two runs to a word."""
    scratch = np.zeros((ROWS, COLUMNS), np.uint32)
    run = np.arange(COLUMNS) % RUN
    scratch[LV2_PLACE], scratch[LV3_PLACE] = 8 + run // 2, 16 + run
    return scratch, scratch[FLAGS].view(np.uint64)


@inlined
def find_peaks(n: Any, b: Any) -> None:
    """Step 1. Patterns of magnitudes order like the magnitudes, with NaN on top."""
    for t in range(n):
        left, right = max(b[0, t] & MAGNITUDE, b[1, t] & MAGNITUDE), max(b[2, t] & MAGNITUDE, b[3, t] & MAGNITUDE)
        b[PEAK, t] = max(left, right)
    for g in range(n // RUN):
        peak = U32(0)
        for k in range(RUN):
            peak = max(peak, b[PEAK, RUN * g + k])
        b[CODE, g] = peak


@inlined
def find_scales(groups: Any, headroom: Any, limit: Any, b: Any) -> Any:
    """Steps 2-4; a group whose peak reaches `limit` is NaN. Whether one was."""
    dead = U32(0)
    for g in range(groups):
        alive = b[CODE, g] < limit
        peak = float_of(b[CODE, g] if alive else U32(0))
        scale = round_bits_to_bf16(bits_of(F32(F32(peak * headroom) * _ONE_SEVENTH)))
        scale = min(max(scale, _SCALE_MIN), _SCALE_MAX)
        half_to_even = U32(0xF_FFFF) + ((scale >> U32(21)) & ONE)
        b[CODE, g] = U32(U32(U32(scale + half_to_even) >> U32(21)) - _E6M2_TO_FP32) if alive else _NAN_CODE
        dead |= U32(0) if alive else ONE
    return dead != U32(0)


@inlined
def find_reciprocals(groups: Any, b: Any) -> None:
    """Step 5; zero for NaN."""
    for g in range(groups):
        code = b[CODE, g]
        m = code & U32(3)
        exponent = U32(_RECIPROCAL_EXPONENT - (code >> _TWO) - (ONE if m > U32(0) else U32(0)))
        mantissa = (_MANTISSAS >> U32(m << U32(3))) & U32(0xFF)
        b[RECIPROCAL, g] = U32(exponent << _EXPONENT) | U32(mantissa << HALF) if code != _NAN_CODE else U32(0)


@inlined
def spread(groups: Any, source: Any, out: Any) -> None:
    """One number of each group, repeated for its runs."""
    for g in range(groups):
        out[RUN * g : RUN * (g + 1)] = source[g]


@inlined
def find_flags(n: Any, tests_in_bf16: Any, b: Any, pairs: Any) -> None:
    """Steps 6-7. Rounding keeps order: the product of v8 reaches 4 where that of one of its two v16 does."""
    for t in range(n):
        product = bits_of(F32(float_of(b[PEAK, t]) * float_of(b[FACTOR, t])))
        if tests_in_bf16:
            product = round_bits_to_bf16(product)
        tested = float_of(product)
        b[FLAGS, t] = (ONE if tested >= F32(4) else U32(0)) | (_TWO if tested >= F32(2) else U32(0))
    for j in range(n // 2):
        both = pairs[j]
        lv2 = (both | (both >> WORD) | (both << WORD)) & _BOTH
        lv3 = (lv2 & both) | (~lv2 & (both >> U64(1)) & _BOTH)
        pairs[j] = lv2 | (lv3 << U64(1))


@inlined
def find_factors(n: Any, octaves: Any, b: Any) -> None:
    """rec / 2^(lv2 + lv3) * 2^octaves, in place of rec."""
    for t in range(n):
        flags = b[FLAGS, t]
        b[FACTOR, t] = U32(b[FACTOR, t] + U32(U32(octaves - (flags & ONE) - (flags >> ONE)) << _EXPONENT))


@inlined
def plan(groups: Any, tests_in_bf16: Any, octaves: Any, b: Any, pairs: Any) -> None:
    """Steps 5-7 and the factors of step 8, from E6M2 codes."""
    n = RUN * groups
    find_reciprocals(groups, b)
    spread(groups, b[RECIPROCAL], b[FACTOR])
    find_flags(n, tests_in_bf16, b, pairs)
    find_factors(n, octaves, b)


@inlined
def find_steps(groups: Any, b: Any) -> None:
    """What one quarter is worth: E6M2 * 2^(lv2 + lv3 - 2), exact; NaN in NaN groups."""
    spread(groups, b[CODE], b[STEP])
    for t in range(RUN * groups):
        flags, code = b[FLAGS, t], b[STEP, t]
        increments = U32((flags & ONE) + (flags >> ONE))
        step = U32(U32(U32(code + _E6M2_TO_FP32) << U32(21)) + U32(increments << _EXPONENT) - _QUARTER_STEP)
        b[STEP, t] = NAN if code == _NAN_CODE else step


@inlined
def write_words(first: Any, groups: Any, words: Any, b: Any) -> None:
    """The scale words, layout A."""
    target = words[first : first + groups]
    for g in range(groups):
        flags = b[FLAGS, RUN * g : RUN * (g + 1)]
        lv2 = lv3 = U32(0)
        for k in range(RUN):
            lv2 |= U32((flags[k] & ONE) << U32(8 + k // 2))
            lv3 |= U32((flags[k] >> ONE) << U32(16 + k))
        target[g] = b[CODE, g] | lv2 | lv3


@inlined
def read_words(first: Any, groups: Any, words: Any, b: Any) -> None:
    """E6M2 codes and flags from scale words."""
    for g in range(groups):
        b[CODE, g] = words[first + g] & U32(0xFF)
        b[BEST, g] = words[first + g]
    spread(groups, b[BEST], b[STEP])
    for t in range(RUN * groups):
        word = b[STEP, t]
        b[FLAGS, t] = ((word >> b[LV2_PLACE, t]) & ONE) | U32(((word >> b[LV3_PLACE, t]) & ONE) << ONE)


@inlined
def read_steps(first: Any, groups: Any, words: Any, b: Any) -> None:
    """`read_words` and `find_steps` at once, without the flags between them."""
    source = words[first : first + groups]
    for g in range(groups):
        word = source[g]
        code = U32(word & U32(0xFF))
        quarter = U32(U32(U32(code + _E6M2_TO_FP32) << U32(21)) - _QUARTER_STEP)
        steps = b[STEP, RUN * g : RUN * (g + 1)]
        for k in range(RUN):
            increments = U32(((word >> U32(8 + k // 2)) & ONE) + ((word >> U32(16 + k)) & ONE))
            steps[k] = U32(quarter + U32(increments << _EXPONENT)) if code != _NAN_CODE else NAN


@inlined
def round_quarters(bits: Any, factor: Any, element_in_bf16: Any, ties_to_even: Any) -> Any:
    """Steps 8-9 as `hif4_eager.round_quarters` takes them: 4m or 8m, saturated; a NaN saturates."""
    scaled = F32(float_of(U32(bits & MAGNITUDE)) * factor)
    if element_in_bf16:
        scaled = float_of(round_bits_to_bf16(bits_of(scaled)))
    if ties_to_even:
        scaled = scaled if scaled < F32(7) else F32(7)
        return bits_of(F32(scaled + _INTEGERS)) & U32(7)
    scaled = scaled if scaled < F32(14) else F32(14)
    return (U32(np.int32(scaled)) + ONE) >> ONE


@inlined
def _code(bits: Any, factor: Any, element_in_bf16: Any, ties_to_even: Any) -> Any:
    """Step 10."""
    return round_quarters(bits, factor, element_in_bf16, ties_to_even) | (U32(8) if bits > SIGN else U32(0))


@inlined
def write_codes(first: Any, n: Any, element_in_bf16: Any, ties_to_even: Any, codes: Any, b: Any) -> None:
    target = codes[first : first + n]
    for t in range(n):
        factor = float_of(b[FACTOR, t])
        c0 = _code(b[0, t], factor, element_in_bf16, ties_to_even)
        c1 = _code(b[1, t], factor, element_in_bf16, ties_to_even)
        c2 = _code(b[2, t], factor, element_in_bf16, ties_to_even)
        c3 = _code(b[3, t], factor, element_in_bf16, ties_to_even)
        target[t] = np.uint16(c0 | U32(c1 << _LEFT) | U32(c2 << _MIDDLE) | U32(c3 << _RIGHT))


@inlined
def clear_codes(first: Any, groups: Any, codes: Any, b: Any) -> None:
    """No codes in NaN groups."""
    for g in range(groups):
        if b[CODE, g] == _NAN_CODE:
            codes[first + RUN * g : first + RUN * (g + 1)] = 0


@inlined
def round_values(n: Any, element_in_bf16: Any, ties_to_even: Any, b: Any) -> None:
    """The values replaced by what their codes are worth, with the sign of the code."""
    for s in range(4):
        for t in range(n):
            bits = b[s, t]
            quarters = round_quarters(bits, float_of(b[FACTOR, t]), element_in_bf16, ties_to_even)
            value = bits_of(F32(F32(np.int32(quarters)) * float_of(b[STEP, t])))
            b[s, t] = value | (SIGN if bits > SIGN else U32(0))


@inlined
def decode_codes(first: Any, n: Any, codes: Any, b: Any) -> None:
    """The values of codes, exact."""
    source = codes[first : first + n]
    for t in range(n):
        run, step = U32(source[t]), float_of(b[STEP, t])
        for s in range(4):
            code = run >> U32(4 * s)
            value = bits_of(F32(F32(np.int32(code & U32(7))) * step))
            b[s, t] = value | U32((code & U32(8)) << U32(28))


@inlined
def load_stored(words: Any, codes: Any, mask: Any, action: Any, first: Any, groups: Any, b: Any) -> None:
    """The values of stored groups, times their columns' mask when `action` says so."""
    read_steps(first, groups, words, b)
    decode_codes(RUN * first, RUN * groups, codes, b)
    if action != KEEP:
        apply_mask(RUN * first, RUN * groups, mask, action, b)


@kernel(
    BOOLEAN(
        *(RUNS, BOOLEAN, BOOLEAN, FLOAT_ROWS, INTEGER, FLOAT, BOOLEAN, BOOLEAN, BOOLEAN, BOOLEAN, BOOLEAN),
        *(WORDS, HALVES, INTEGER, INTEGER, WORD_ROWS, RUNS),
    )
)
def encode(
    x: Any, wide: bool, through_bf16: bool, mask: Any, action: int,
    headroom: Any, infinity_too: bool, given_words: bool,
    tests_in_bf16: bool, element_in_bf16: bool, ties_to_even: bool,
    words: Any, codes: Any, first: int, last: int, b: Any, pairs: Any,
) -> bool:  # fmt: skip
    """Codes and scale words of groups [first, last); see `hif4_compiled` for the arguments.

    Returns:
        Whether a group holds NaN, or infinity when `infinity_too`.
    """
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
        if given_words:
            read_words(g, groups, words, b)
            find_reciprocals(groups, b)
            spread(groups, b[RECIPROCAL], b[FACTOR])
            find_factors(n, octaves, b)
        else:
            plan(groups, tests_in_bf16, octaves, b, pairs)
            write_words(g, groups, words, b)
        write_codes(RUN * g, n, element_in_bf16, ties_to_even, codes, b)
        if dead:
            clear_codes(RUN * g, groups, codes, b)
    return found


@kernel(
    BOOLEAN(
        *(RUNS, BOOLEAN, FLOAT_ROWS, INTEGER, FLOAT, BOOLEAN, BOOLEAN, BOOLEAN, BOOLEAN),
        *(RUNS, BOOLEAN, INTEGER, INTEGER, WORD_ROWS, RUNS),
    )
)
def qdq(
    x: Any, wide: bool, mask: Any, action: int,
    headroom: Any, infinity_too: bool, tests_in_bf16: bool, element_in_bf16: bool, ties_to_even: bool,
    out: Any, out_wide: bool, first: int, last: int, b: Any, pairs: Any,
) -> bool:  # fmt: skip
    """What the codes of groups [first, last) are worth. Returns as `encode`."""
    limit = INFINITY if infinity_too else INFINITY + ONE
    octaves = U32(2) if ties_to_even else U32(3)
    found = False
    for g in range(first, last, CHUNK):
        groups = min(CHUNK, last - g)
        n = RUN * groups
        load_operand(x, wide, False, mask, action, RUN * g, n, b)
        find_peaks(n, b)
        found |= find_scales(groups, headroom, limit, b)
        plan(groups, tests_in_bf16, octaves, b, pairs)
        find_steps(groups, b)
        round_values(n, element_in_bf16, ties_to_even, b)
        store(out, out_wide, RUN * g, n, b)
    return found


@kernel(VOID(WORDS, HALVES, FLOAT_ROWS, INTEGER, RUNS, BOOLEAN, INTEGER, INTEGER, WORD_ROWS))
def decode(
    words: Any, codes: Any, mask: Any, action: int, out: Any, out_wide: bool, first: int, last: int, b: Any
) -> None:
    """The values of groups [first, last), times their columns' mask when `action` says so."""
    for g in range(first, last, CHUNK):
        groups = min(CHUNK, last - g)
        n = RUN * groups
        load_stored(words, codes, mask, action, g, groups, b)
        store(out, out_wide, RUN * g, n, b)

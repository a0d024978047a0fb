"""HiFloat4, compiled: runs of four values between memory and the first rows of the scratch of `hif4_kernels`."""

from __future__ import annotations

from typing import Any

from ._kernels import (
    F32,
    HALF,
    INFINITY,
    MAGNITUDE,
    NAN,
    U32,
    U64,
    UPPER_HALF,
    WORD,
    bits_of,
    float_of,
    inlined,
    round_bits_to_bf16,
)
from ._layout import DIVIDE, KEEP

__all__ = ["apply_mask", "load", "load_operand", "store"]


@inlined
def load(x: Any, wide: Any, first: Any, n: Any, b: Any) -> None:
    """Runs of `x`: fp32 patterns in pairs when `wide`, else bf16 patterns in fours."""
    # A slice makes the indices of its loop plainly positive; else numba's negative indices keep LLVM from vectorising.
    if wide:
        source = x[2 * first : 2 * (first + n)]
        for t in range(n):
            low, high = source[2 * t], source[2 * t + 1]
            b[0, t], b[1, t] = U32(low), U32(low >> WORD)
            b[2, t], b[3, t] = U32(high), U32(high >> WORD)
    else:
        source = x[first : first + n]
        for t in range(n):
            low, high = U32(source[t]), U32(source[t] >> WORD)
            b[0, t], b[1, t] = U32(low << HALF), low & UPPER_HALF
            b[2, t], b[3, t] = U32(high << HALF), high & UPPER_HALF


@inlined
def round_operand(n: Any, b: Any) -> None:
    """The values rounded to bf16."""
    for s in range(4):
        for t in range(n):
            bits = b[s, t]
            b[s, t] = NAN if (bits & MAGNITUDE) > INFINITY else round_bits_to_bf16(bits)


@inlined
def apply_mask(first: Any, n: Any, mask: Any, action: Any, b: Any) -> None:
    """The values divided or multiplied by their columns' mask, rounded once."""
    width = mask.shape[1]
    done, at = 0, first % width
    while done < n:
        span = min(n - done, width - at)
        for s in range(4):
            values, factors = b[s, done : done + span], mask[s, at : at + span]
            if action == DIVIDE:
                for t in range(span):
                    values[t] = bits_of(F32(float_of(values[t]) / factors[t]))
            else:
                for t in range(span):
                    values[t] = bits_of(F32(float_of(values[t]) * factors[t]))
        done, at = done + span, 0


@inlined
def load_operand(x: Any, wide: Any, through_bf16: Any, mask: Any, action: Any, first: Any, n: Any, b: Any) -> None:
    """The fp32 numbers that are quantized."""
    load(x, wide, first, n, b)
    if through_bf16:
        round_operand(n, b)
    if action != KEEP:
        apply_mask(first, n, mask, action, b)


@inlined
def store(out: Any, wide: Any, first: Any, n: Any, b: Any) -> None:
    """The inverse of `load`, rounded to bf16 unless `wide`."""
    if wide:
        target = out[2 * first : 2 * (first + n)]
        for t in range(n):
            target[2 * t] = U64(b[0, t]) | (U64(b[1, t]) << WORD)
            target[2 * t + 1] = U64(b[2, t]) | (U64(b[3, t]) << WORD)
    else:
        target = out[first : first + n]
        for t in range(n):
            low = (round_bits_to_bf16(b[0, t]) >> HALF) | round_bits_to_bf16(b[1, t])
            high = (round_bits_to_bf16(b[2, t]) >> HALF) | round_bits_to_bf16(b[3, t])
            target[t] = U64(low) | (U64(high) << WORD)

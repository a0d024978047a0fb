"""Rounding fp32 to bf16, compiled; see `rounding`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._kernels import HALF, HALVES, INFINITY, INTEGER, MAGNITUDE, NAN, VOID, WORDS, kernel, round_bits_to_bf16


@kernel(VOID(WORDS, HALVES, INTEGER, INTEGER))
def round_words(x: Any, out: Any, first: int, last: int) -> None:
    """fp32 patterns [first, last) as bf16 patterns."""
    source, target = x[first:last], out[first:last]
    for i in range(len(source)):
        bits = source[i]
        target[i] = np.uint16((NAN if (bits & MAGNITUDE) > INFINITY else round_bits_to_bf16(bits)) >> HALF)

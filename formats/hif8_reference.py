"""HiFloat8, the readable reference: one value at a time, in plain Python, exact.

Slow on purpose. `hif8.quantize` and `hif8.qdq` are twins of `encode` and `decode` and are tested against them bit for
bit: the twins look the nearest value up, this file computes it. Source: arXiv 2409.16626v2, section 3.1.
"""

from __future__ import annotations

import math
from typing import Final

from .hif8_spec import FIELDS, INFINITY, MAX, MIN_SCALE_EXPONENT, NAN, SCALED_MAX, SIGN, TINY_BIAS

__all__ = ["decode", "encode", "scale_exponent"]

OVERFLOW: Final = 1.25 * 2.0**15  # half way between the largest value and the slot of infinity
UNDERFLOW: Final = 2.0**-23  # half of the smallest value
MIN_EXPONENT: Final = -22
MIN_NORMAL_EXPONENT: Final = -15


def decode(code: int) -> float:
    """The value of one byte, 0..255: read the prefix, then the exponent field, then the mantissa."""
    if code == NAN:
        return math.nan
    sign = -1.0 if code & SIGN else 1.0
    if code & ~SIGN == INFINITY:
        return sign * math.inf
    bits = format(code & ~SIGN, "07b")
    for field in FIELDS:
        if bits.startswith(field.prefix):
            exponent_field = bits[len(field.prefix) : -field.mantissa_bits]
            mantissa = int(bits[-field.mantissa_bits :], 2)
            return math.ldexp(sign * (1 + mantissa / 2**field.mantissa_bits), _exponent(exponent_field))
    m = int(bits, 2)
    return math.ldexp(sign, m - TINY_BIAS) if m else 0.0


def _exponent(field: str) -> int:
    """Sign and magnitude, the magnitude's leading one implicit; an empty field is zero."""
    if not field:
        return 0
    return int("1" + field[1:], 2) * (-1 if field[0] == "1" else 1)


def encode(x: float, *, saturate: bool = False) -> int:
    """The byte of one value: nearest, ties away from zero.

    E = floor(log2 |x|), at least -22;  m = 3 (|E| <= 3), 2 (<= 7), 1 (<= 15), else 0
    |q| = floor(|x| * 2^(m - E) + 1/2) * 2^(E - m);  |x| >= 1.25 * 2^15 is infinity, |x| < 2^-23 is zero

    Saturating, overflow and infinity go to 2^15 and NaN to zero. `x` is a binary32 number: the sum is exact.
    """
    if math.isnan(x):
        return 0 if saturate else NAN
    sign = SIGN if x < 0 else 0
    magnitude = abs(x)
    if magnitude >= OVERFLOW:
        return sign | (MAX if saturate else INFINITY)
    if magnitude < UNDERFLOW:
        return 0
    exponent = max(math.frexp(magnitude)[1] - 1, MIN_EXPONENT)
    m = _mantissa_bits(exponent)
    return sign | _code_of(math.floor(magnitude * 2.0 ** (m - exponent) + 0.5) * 2.0 ** (exponent - m))


def _mantissa_bits(exponent: int) -> int:
    """Precision tapers with the distance from one."""
    return next((m for m, reach in ((3, 3), (2, 7), (1, 15)) if abs(exponent) <= reach), 0)


def _code_of(value: float) -> int:
    """The code of a positive number that is a value of the format."""
    fraction, exponent = math.frexp(value)
    exponent -= 1
    if exponent < MIN_NORMAL_EXPONENT:
        return exponent + TINY_BIAS
    width = abs(exponent).bit_length()  # with the leading one: also the width with the sign instead of it
    field = next(field for field in FIELDS if field.exponent_bits == width)
    stored = format(abs(exponent), "b")[1:] if width else ""
    sign = "" if width == 0 else "1" if exponent < 0 else "0"
    mantissa = format(int((2 * fraction - 1) * 2**field.mantissa_bits), f"0{field.mantissa_bits}b")
    return int(field.prefix + sign + stored + mantissa, 2)


def scale_exponent(amax: float) -> int:
    """k of the scale 2^k: 2^ceil(log2(amax / 15)) without a logarithm; at least -126, and 0 for amax = 0."""
    if amax == 0:
        return 0
    k = math.frexp(amax)[1] - 5  # 15 * 2^k is below amax for this k
    while SCALED_MAX * 2.0**k < amax:
        k += 1
    return max(k, MIN_SCALE_EXPONENT)

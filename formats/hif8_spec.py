"""HiFloat8 as data: the fields of a byte and the constants of its conversion.

Source: the HiFloat8 paper, arXiv 2409.16626v2. Bit 7 is the sign. The other seven start with a prefix that gives the
width of the exponent field, which is sign-magnitude with an implicit leading one; what is left is the mantissa.

    prefix  exponent field  exponent E    mantissa  value
    11      4 bits          +-8 ... +-15  1 bit     2^E * (1 + M/2)
    10      3 bits          +-4 ... +-7   2 bits    2^E * (1 + M/4)
    01      2 bits          +-2, +-3      3 bits    2^E * (1 + M/8)
    001     1 bit           +-1           3 bits    2^E * (1 + M/8)
    0001    none            0             3 bits    1 + M/8
    0000    none            M - 23        3 bits    2^(M - 23), M = 1..7

00 is zero (there is no -0), 80 is NaN, 6F and EF are the infinities. Every finite value is exact in bf16 and in fp16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final, Literal

from .errors import UnknownOptionError

SIGN: Final = 0x80
NAN: Final = 0x80  # the code that would be -0
INFINITY: Final = 0x6F  # the code that would be 1.5 * 2^15
MAX: Final = 0x6E  # 2^15
INFINITY_SLOT: Final = 1.5 * 2.0**15  # where rounding places infinity: 1.25 * 2^15 and more overflow
TINY_BIAS: Final = 23  # prefix 0000: 2^(M - 23)

SCALED_MAX: Final = 15  # scaled magnitudes end where three mantissa bits do: 1.875 * 2^3
MIN_SCALE_EXPONENT: Final = -126  # so that a scale and its reciprocal are normal fp32 numbers

Scaling = Literal["none", "tensor", "row"]
NonFinite = Literal["refuse", "encode"]


@dataclasses.dataclass(frozen=True)
class Field:
    """One row of the table above, prefix 0000 excepted."""

    prefix: str
    exponent_bits: int  # the sign and the stored magnitude
    mantissa_bits: int


FIELDS: Final = (Field("11", 4, 1), Field("10", 3, 2), Field("01", 2, 3), Field("001", 1, 3), Field("0001", 0, 3))


def checked_option(option: str, word: str, known: Iterable[str]) -> str:
    """`word` if it is known.

    Raises:
        UnknownOptionError: it is not.
    """
    words = tuple(known)
    if word not in words:
        raise UnknownOptionError(option, word, words)
    return word

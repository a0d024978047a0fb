"""HiFloat4 as data: the fields of one group, the constants of its conversion, the numerics profiles.

Source: the HiFloat4 paper, arXiv 2602.11287v2. One group of 64 adjacent values takes 288 bits:

    field   count x bits   covers     meaning
    E6M2      1 x 8        64 values  scale (1 + M/4) * 2^(E - 48); FF is NaN; no zero, no infinity, no subnormals
    lv2       8 x 1         8 values  exponent increment, 0 or 1
    lv3      16 x 1         4 values  exponent increment, 0 or 1
    S1P2     64 x 4         1 value   sign and magnitude in quarters, 0 ... 1.75; code 8 is -0

    value[i] = E6M2 * 2^(lv2[i div 8] + lv3[i div 4]) * S1P2[i]

A value has at most six significant bits and an exponent within +-50: exact in bf16 and fp32, not always in fp16.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Final, Literal, get_args

import numpy as np

from .errors import InvalidHeadroomError, UnknownOptionError, UnknownProfileError

GROUP: Final = 64  # values that share one E6M2 scale, adjacent on the last axis
LV2_SPAN: Final = 8  # values that share one lv2 flag
LV3_SPAN: Final = 4  # values that share one lv3 flag
LV2_FLAGS: Final = GROUP // LV2_SPAN
LV3_FLAGS: Final = GROUP // LV3_SPAN
CODE_BYTES: Final = GROUP // 2  # two S1P2 codes to a byte, the even element in the low nibble

E6M2_BIAS: Final = 48  # code 0xC0 is 1.0
E6M2_MAX: Final = 0xFE  # 1.5 * 2^15
E6M2_NAN: Final = 0xFF
SCALE_MIN: Final = 2.0**-48  # value of code 00
SCALE_MAX: Final = 1.5 * 2.0**15  # value of code FE
RECIPROCAL_MANTISSAS: Final = (0, 77, 43, 18)  # by M: the 7-bit mantissa of bf16(1 / E6M2)

ONE_SEVENTH: Final = 73 / 512  # bf16(1/7) = 0x3E12; seven is the largest value / E6M2, 1.75 * 2^(1+1)
LV2_THRESHOLD: Final = 4  # lv2 is set when the peak of its 8 values reaches 4 * E6M2
LV3_THRESHOLD: Final = 2  # lv3 is set when, after lv2, the peak of its 4 values reaches 2 * E6M2
MAX_QUARTERS: Final = 7  # 1.75, the largest S1P2 magnitude; larger ones saturate
SIGN_CODE: Final = 8  # S1P2 bit 3

SEARCH_OFFSETS: Final = (0, -1, 1, -2, 2)  # E6M2 codes tried by a scale search, in the order that wins a tie

# refuse: raise NonFiniteError. propagate: NaN makes its whole group NaN, an infinity saturates (scale FE, value
# +-344064, the rest of its group is divided by 49152). nan-group: NaN or infinity makes the whole group NaN.
NonFinite = Literal["refuse", "propagate", "nan-group"]


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where one public implementation rounds. Everything that is not listed here is the same in all of them.

    The paper leaves the tie rule open ("round-half-to-even or round-half-away-from-zero") and types the scaled vector
    as BF16; the authors' own simulator, `ref`, does not round it. Decoding is identical in all profiles.
    """

    name: str
    tests_in_bf16: bool  # the products compared with 4 and 2 are rounded to bf16 first
    element_in_bf16: bool  # the scaled element is rounded to bf16 before it is rounded to quarters
    ties_to_even: bool  # quarters round half to even; otherwise half away from zero


PROFILES: Final[dict[str, Profile]] = {
    profile.name: profile
    for profile in (
        Profile("ref", tests_in_bf16=False, element_in_bf16=False, ties_to_even=False),
        Profile("amct", tests_in_bf16=False, element_in_bf16=True, ties_to_even=False),
        Profile("cann", tests_in_bf16=False, element_in_bf16=True, ties_to_even=True),
        Profile("pto", tests_in_bf16=True, element_in_bf16=True, ties_to_even=True),
    )
}


def profile_named(name: str) -> Profile:
    """The profile of this name.

    Raises:
        UnknownProfileError: there is none.
    """
    try:
        return PROFILES[name]
    except (KeyError, TypeError):
        raise UnknownProfileError(name, PROFILES) from None


def checked_headroom(headroom: float) -> float:
    """`headroom` rounded to fp32: the factor of the group peak in step 2 is an fp32 number.

    Raises:
        InvalidHeadroomError: it is not a positive finite fp32 number after that rounding.
    """
    try:
        with np.errstate(over="ignore"):
            value = float(np.float32(headroom))
    except (TypeError, ValueError):
        raise InvalidHeadroomError(headroom) from None
    if not math.isfinite(value) or value <= 0:
        raise InvalidHeadroomError(headroom)
    return value


def checked_nonfinite(policy: str) -> str:
    """`policy` if it is one of the words of `NonFinite`.

    Raises:
        UnknownOptionError: it is not.
    """
    if policy not in get_args(NonFinite):
        raise UnknownOptionError("nonfinite", policy, get_args(NonFinite))
    return policy


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a tensor is converted, checked."""

    profile: Profile
    headroom: float
    nonfinite: str


def checked_rules(profile: str, headroom: float, nonfinite: str) -> Rules:
    """Profile, headroom and policy of one conversion.

    Raises:
        UnknownProfileError, InvalidHeadroomError, UnknownOptionError: an argument has no meaning.
    """
    try:
        return _rules(profile, headroom, nonfinite)
    except TypeError:  # something that cannot even be looked up
        return Rules(profile_named(profile), checked_headroom(headroom), checked_nonfinite(nonfinite))


@functools.lru_cache(maxsize=256)
def _rules(profile: str, headroom: float, nonfinite: str) -> Rules:
    """A quantized linear asks for the same few at every call."""
    return Rules(profile_named(profile), checked_headroom(headroom), checked_nonfinite(nonfinite))

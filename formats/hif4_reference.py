"""HiFloat4, the readable reference: one group at a time, in plain Python, every rounding written out.

Slow on purpose. `hif4.quantize` and `hif4.qdq` are twins of `encode_group` and `decode_group` and are tested against
them bit for bit. Python floats are binary64: a product of two binary32 numbers is exact in them, so `fp32(a * b)` is
the single binary32 rounding that the conversion asks for.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Sequence

from .hif4_spec import (
    E6M2_BIAS,
    E6M2_MAX,
    E6M2_NAN,
    GROUP,
    LV2_FLAGS,
    LV2_SPAN,
    LV2_THRESHOLD,
    LV3_FLAGS,
    LV3_SPAN,
    LV3_THRESHOLD,
    MAX_QUARTERS,
    ONE_SEVENTH,
    SCALE_MAX,
    SCALE_MIN,
    SEARCH_OFFSETS,
    SIGN_CODE,
    NonFinite,
    Profile,
    checked_headroom,
    profile_named,
)

__all__ = ["Group", "decode_group", "encode_group"]


@dataclasses.dataclass(frozen=True)
class Group:
    """One encoded group: E6M2 code, 8 lv2 flags, 16 lv3 flags, 64 S1P2 codes."""

    e6m2: int
    lv2: tuple[int, ...]
    lv3: tuple[int, ...]
    codes: tuple[int, ...]

    @property
    def scale_word(self) -> int:
        """The 32 scale bits in layout A: bits 7:0 E6M2, bit 8+j lv2[j], bit 16+k lv3[k]."""
        flags = sum(flag << (8 + j) for j, flag in enumerate(self.lv2))
        return self.e6m2 | flags | sum(flag << (16 + k) for k, flag in enumerate(self.lv3))

    @property
    def code_bytes(self) -> bytes:
        """32 bytes: byte i is codes[2i] | codes[2i + 1] << 4."""
        return bytes(low | high << 4 for low, high in zip(self.codes[0::2], self.codes[1::2], strict=True))


NAN_GROUP = Group(E6M2_NAN, (0,) * LV2_FLAGS, (0,) * LV3_FLAGS, (0,) * GROUP)


def encode_group(
    x: Sequence[float],
    *,
    profile: str = "ref",
    headroom: float = 1.0,
    scale_search: bool = False,
    nonfinite: NonFinite = "propagate",
) -> Group:
    """Encode up to 64 fp32 values; missing values at the end count as zero.

    Raises:
        ValueError: with `nonfinite="refuse"` and a NaN or an infinity in `x`.
    """
    rules = profile_named(profile)
    values = [*x, *[0.0] * (GROUP - len(x))]
    if not all(map(math.isfinite, values)):
        if nonfinite == "refuse":
            raise ValueError("a group with NaN or infinity")
        if nonfinite == "nan-group" or any(map(math.isnan, values)):
            return NAN_GROUP
    start = scale_code(max(map(abs, values)), checked_headroom(headroom))
    if not scale_search:
        return encode_with_scale(values, start, rules)
    candidates = [start + offset for offset in SEARCH_OFFSETS if 0 <= start + offset <= E6M2_MAX]
    groups = [encode_with_scale(values, code, rules) for code in candidates]
    return min(groups, key=lambda group: squared_error(values, group))  # min keeps the first of equals


def scale_code(peak: float, headroom: float) -> int:
    """Steps 2-4: sf = clip(bf16(fp32(fp32(peak * h) * bf16(1/7)))); E6M2 = sf to two mantissa bits, half to even."""
    scale = bf16(fp32(fp32(peak * headroom) * ONE_SEVENTH))
    scale = min(max(scale, SCALE_MIN), SCALE_MAX)
    exponent = math.frexp(scale)[1] - 1
    quarters = round(scale / 2.0**exponent * 4)  # in [4, 8]: hidden one and two bits; `round` is half to even
    return 4 * (exponent + E6M2_BIAS) + quarters - 4  # quarters = 8 carries into the next exponent by itself


def scale_value(code: int) -> float:
    """E6M2 = (1 + M/4) * 2^(E - 48); code FF is NaN."""
    return math.nan if code == E6M2_NAN else (1 + code % 4 / 4) * 2.0 ** (code // 4 - E6M2_BIAS)


def encode_with_scale(x: Sequence[float], code: int, rules: Profile) -> Group:
    """Steps 5-10 for one E6M2 code."""
    reciprocal = bf16(1 / scale_value(code))

    def tested(peak: float) -> float:
        product = fp32(peak * reciprocal)
        return bf16(product) if rules.tests_in_bf16 else product

    peaks = [max(map(abs, x[i : i + LV3_SPAN])) for i in range(0, GROUP, LV3_SPAN)]
    lv2 = [int(tested(max(peaks[2 * j], peaks[2 * j + 1])) >= LV2_THRESHOLD) for j in range(LV2_FLAGS)]
    lv3 = [int(tested(peaks[k]) / 2 ** lv2[k // 2] >= LV3_THRESHOLD) for k in range(LV3_FLAGS)]
    codes = []
    for i, value in enumerate(x):
        increments = lv2[i // LV2_SPAN] + lv3[i // LV3_SPAN]
        scaled = fp32(abs(value) / 2**increments * reciprocal)
        if rules.element_in_bf16:
            scaled = bf16(scaled)
        codes.append((SIGN_CODE if value < 0 else 0) | quarters_of(scaled, rules))
    return Group(code, tuple(lv2), tuple(lv3), tuple(codes))


def quarters_of(scaled: float, rules: Profile) -> int:
    """q = min(floor(4m) + [4m - floor(4m) >= 1/2], 7), or half to even; 4m is never rounded on the way."""
    if scaled >= MAX_QUARTERS / 4:
        return MAX_QUARTERS
    quarters = 4 * scaled
    if rules.ties_to_even:
        return round(quarters)
    return math.floor(quarters) + int(quarters - math.floor(quarters) >= 0.5)


def decode_group(group: Group) -> list[float]:
    """value[i] = E6M2 * 2^(lv2[i div 8] + lv3[i div 4]) * S1P2[i]; 64 values, all NaN when E6M2 is."""
    values = []
    for i, code in enumerate(group.codes):
        magnitude = (code & MAX_QUARTERS) / 4 * 2.0 ** (group.lv2[i // LV2_SPAN] + group.lv3[i // LV3_SPAN])
        values.append((-1.0 if code & SIGN_CODE else 1.0) * magnitude * scale_value(group.e6m2))
    return values


def squared_error(x: Sequence[float], group: Group) -> float:
    """Sum of (x - value)^2 in binary64, element by element in index order."""
    total = 0.0
    for value, decoded in zip(x, decode_group(group), strict=True):
        total += (value - decoded) * (value - decoded)
    return total


def fp32(value: float) -> float:
    """A binary64 number rounded to binary32, nearest, ties to even."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def bf16(value: float) -> float:
    """A binary32 number rounded to bfloat16, nearest, ties to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    kept, dropped = bits >> 16, bits & 0xFFFF
    kept += dropped > 0x8000 or (dropped == 0x8000 and kept & 1)
    return float(struct.unpack("<f", struct.pack("<I", kept << 16))[0])

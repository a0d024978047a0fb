"""HiFloat4 one column at a time, under scale words that are fixed before the columns are known.

Error-compensating methods such as GPTQ round the columns of a group one after the other, each after the errors of those
before it have been added. The group's scale and flags are chosen first. Rounding is that of `hif4.quantize_under`, bit
for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._tiles import power_of_two
from .hif4_bytes import pack_codes, scale_values, unpack_codes
from .hif4_eager import element_factors, round_quarters, scale_fields
from .hif4_spec import GROUP, LV3_SPAN, MAX_QUARTERS, SIGN_CODE, profile_named

__all__ = ["FrozenGroup", "codes_of_levels", "levels_of_codes"]


class FrozenGroup:
    """One group of 64 columns, for many rows.

    Args:
        words: uint32 [rows], layout A.
        profile: numerics profile.

    Raises:
        MalformedTensorError: a word that is NaN.
    """

    def __init__(self, words: Tensor, profile: str = "ref") -> None:
        self._profile = profile_named(profile)
        e6m2, increments = scale_fields(words.view(torch.int32))
        increments = increments.t().contiguous()
        self._factors = element_factors(e6m2.unsqueeze(0).expand(increments.shape), increments, self._profile)
        self._steps = scale_values(e6m2) * power_of_two(increments - 2)

    def round(self, column: Tensor, index: int) -> Tensor:
        """Signed quarters of a column fp32 [rows]: fp32 [rows] in -7..7; zero is +0."""
        quarters = round_quarters(column.abs().mul_(self._factors[index // LV3_SPAN]), self._profile)
        return torch.copysign(quarters, column).add_(0.0)

    def values(self, levels: Tensor, index: int) -> Tensor:
        """The values of signed quarters fp32 [rows], exact: fp32 [rows]."""
        return levels * self._steps[index // LV3_SPAN]


def codes_of_levels(levels: Tensor) -> Tensor:
    """Signed quarters int8 [rows, K] in -7..7 -> packed codes uint8 [rows, ceil(K / 64) * 32]; zero is code 0."""
    missing = -levels.shape[-1] % GROUP
    if missing:
        levels = torch.nn.functional.pad(levels, (0, missing))
    return pack_codes(torch.where(levels < 0, SIGN_CODE - levels, levels).view(torch.uint8))


def levels_of_codes(codes: Tensor) -> Tensor:
    """The inverse for whole groups: packed codes uint8 [rows, n] -> signed quarters int8 [rows, 2n]."""
    plain = unpack_codes(codes).view(torch.int8)
    magnitude = plain & MAX_QUARTERS
    return torch.where(plain >= SIGN_CODE, -magnitude, magnitude)

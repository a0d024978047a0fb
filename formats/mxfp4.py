"""MXFP4 quantize-dequantize, for comparison tables only: 32 E2M1 values and one power-of-two (E8M0) scale.

Source: OCP Microscaling Formats (MX) specification v1.0, sections 5 and 6.3.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import torch
from torch import Tensor

from ._e2m1 import round_to_e2m1
from ._tiles import (
    INFINITY_BITS,
    MAGNITUDE_BITS,
    as_matrix,
    bits_of,
    checked,
    groups_of,
    power_of_two,
    tiles,
    ungrouped,
)
from .errors import UnknownOptionError

__all__ = ["qdq"]

BLOCK: Final = 32  # values that share one scale, adjacent on the last axis
MIN_EXPONENT: Final = -126  # E8M0 reaches 2^-127; one octave is given up so that scale and reciprocal are normal

ScaleRule = Literal["floor", "ceil"]


def qdq(x: Tensor, *, scale_rule: ScaleRule = "floor") -> Tensor:
    """Quantize and dequantize `x` [..., K] (bf16, fp32 or fp16) in blocks of 32; a short last block counts as zeros.

    Args:
        x: any strides. A block with NaN or infinity becomes NaN.
        scale_rule: "floor" is the OCP rule 2^(floor(log2 amax) - 2), with which magnitudes above 6 scales saturate;
            "ceil" is the smallest power of two with amax <= 6 * scale, with which none does.

    Returns:
        A new tensor with the shape and dtype of `x`, outside autograd.

    Raises:
        UnsupportedDtypeError, UnsupportedShapeError: `x` has another dtype or no axis.
        UnknownOptionError: no such scale rule.
    """
    if scale_rule not in get_args(ScaleRule):
        raise UnknownOptionError("scale_rule", scale_rule, get_args(ScaleRule))
    x = checked(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    matrix, rows = as_matrix(x), as_matrix(out)
    for r, c in tiles(matrix, multiple=BLOCK):
        blocks = groups_of(matrix[r, c], BLOCK)
        amax = (bits_of(blocks) & MAGNITUDE_BITS).amax(-1, keepdim=True)
        exponent = _exponents(amax, scale_rule)
        values = round_to_e2m1(blocks * power_of_two(-exponent)) * power_of_two(exponent)
        values.masked_fill_(amax >= INFINITY_BITS, torch.nan)
        rows[r, c] = ungrouped(values, matrix[r, c])
    return out


def _exponents(amax: Tensor, scale_rule: ScaleRule) -> Tensor:
    """Scale exponents from the fp32 patterns of amax = f * 2^e: floor gives e - 2, ceil one more where f > 6/4."""
    exponent = (amax >> 23) - 127 - 2
    if scale_rule == "ceil":
        exponent = exponent + ((amax & 0x7F_FFFF) > 0x40_0000).to(torch.int32)
    return exponent.clamp(MIN_EXPONENT, 126)

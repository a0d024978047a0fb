"""HiFloat8: quantize tensors to one byte per value, fast, on any device, optionally with a power-of-two scale.

The format is in `hif8_spec`, the readable conversion in `hif8_reference`, the bytes in `hif8_bytes`. This file is the
vectorised twin of the reference and agrees with it bit for bit.

Conversion: the nearest of {0, all finite values, infinity placed at 1.5 * 2^15}, ties away from zero. All midpoints of
this grid have at most five significant bits, so the upper 16 bits of an fp32 pattern decide, and one table of 65,536
entries, indexed by them, serves every dtype. Division by a power-of-two scale is exact.
"""

from __future__ import annotations

import functools
from typing import Final, get_args

import torch
from torch import Tensor

from ._tiles import (
    INFINITY_BITS,
    MAGNITUDE_BITS,
    as_matrix,
    bits_of,
    checked,
    float_of,
    power_of_two,
    refuse_non_finite,
    tiles,
)
from .hif8_bytes import Hif8Tensor, code_values
from .hif8_spec import INFINITY, INFINITY_SLOT, MAX, MIN_SCALE_EXPONENT, NAN, SIGN, NonFinite, Scaling, checked_option

__all__ = ["Hif8Tensor", "qdq", "quantize"]

QUIET_NAN: Final = 0x7FC0_0000


def quantize(
    x: Tensor, *, scale: Scaling = "none", saturate: bool = False, nonfinite: NonFinite = "refuse"
) -> Hif8Tensor:
    """Encode `x` (bf16, fp32 or fp16, at least one axis): code = HiF8(x / scale).

    Args:
        x: any strides; fp16 is widened to fp32.
        scale: "none" casts directly; "tensor" and "row" (along the last axis) divide by 2^ceil(log2(amax / 15)), which
            puts the largest magnitude at the top of the range that keeps three mantissa bits. A tensor or row of
            zeros has scale 1; no scale is below 2^-126.
        saturate: overflow goes to +-2^15 instead of infinity, NaN to zero (the paper's saturating mode).
        nonfinite: "refuse" raises for NaN or infinity in `x`; "encode" gives them their codes and leaves them out of
            amax. Either way a large finite value may overflow to infinity when it is neither scaled nor saturated.

    Returns:
        Codes and scale on the device of `x`. The same bits for any strides, device, thread count and tensor size.

    Raises:
        UnsupportedDtypeError, UnsupportedShapeError: `x` has another dtype or no axis.
        NonFiniteError: `nonfinite="refuse"` and `x` holds NaN or infinity; it names the first position.
        UnknownOptionError: `scale` or `nonfinite` is not one of its words.

    Source: arXiv 2409.16626v2, section 3.1 (conversion); the scale is this package's own.
    """
    checked_option("scale", scale, get_args(Scaling))
    checked_option("nonfinite", nonfinite, get_args(NonFinite))
    x = checked(x)
    if nonfinite == "refuse":
        matrix = as_matrix(x)
        for tile in tiles(matrix):
            refuse_non_finite(matrix, tile, x.shape)
    exponents = _scale_exponents(x, scale)
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    _look_up(x, exponents, _codes(x.device, saturate), codes)
    return Hif8Tensor(codes, _scale_of(x, exponents, scale), scale)


def qdq(x: Tensor, *, scale: Scaling = "none", saturate: bool = False) -> Tensor:
    """Quantize and dequantize: the values of `quantize(x, ..., nonfinite="encode").dequantize(x.dtype)`.

    Made for activations: nothing is checked and nothing waits for the device. NaN stays NaN and infinity stays
    infinity, unless `saturate` says otherwise.

    Returns:
        A new tensor, contiguous, with the shape and dtype of `x`, outside autograd.

    Raises:
        as `quantize`, but never NonFiniteError.
    """
    checked_option("scale", scale, get_args(Scaling))
    x = checked(x)
    exponents = _scale_exponents(x, scale)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _look_up(x, exponents, _rounded(x.device, saturate, x.dtype if exponents is None else torch.float32), out)
    return out


def _look_up(x: Tensor, exponents: Tensor | None, table: Tensor, out: Tensor) -> None:
    """out = table[upper half of fp32(x / 2^exponent)]; a table of values (not codes) is scaled back."""
    matrix, rows = as_matrix(x), as_matrix(out)
    for r, c in tiles(matrix):
        tile = matrix[r, c]
        if exponents is None:
            rows[r, c] = table.index_select(0, _upper_half(tile)).view(tile.shape)
            continue
        exponent = exponents[r] if exponents.shape[0] > 1 else exponents
        found = table.index_select(0, _upper_half(tile.to(torch.float32) * power_of_two(-exponent))).view(tile.shape)
        rows[r, c] = found * power_of_two(exponent) if table.is_floating_point() else found


def _upper_half(tile: Tensor) -> Tensor:
    """The upper 16 bits of the fp32 patterns, int32 in 0..65535, flat. They truncate a magnitude and keep NaN a NaN."""
    flat = tile.reshape(-1)
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).to(torch.int32) & 0xFFFF
    bits = bits_of(flat.to(torch.float32))
    bits = bits.masked_fill((bits & MAGNITUDE_BITS) > INFINITY_BITS, QUIET_NAN)
    return (bits >> 16) & 0xFFFF


def _scale_exponents(x: Tensor, scaling: Scaling) -> Tensor | None:
    """k of the scales 2^k = 2^ceil(log2(amax / 15)), from the bits of amax: int32 [1, 1] or [rows, 1].

    With amax = f * 2^e and 15 = 1.875 * 2^3, k is e - 3 for f <= 1.875 and e - 2 above.
    """
    if scaling == "none":
        return None
    matrix = as_matrix(x)
    amax = torch.zeros((matrix.shape[0], 1), dtype=torch.int32, device=x.device)
    for r, c in tiles(matrix):
        bits = bits_of(matrix[r, c].to(torch.float32)) & MAGNITUDE_BITS
        finite = bits.masked_fill_(bits >= INFINITY_BITS, 0)
        amax[r] = torch.maximum(amax[r], finite.amax(-1, keepdim=True))
    if scaling == "tensor":
        amax = amax.amax(0, keepdim=True) if amax.numel() else amax.new_zeros((1, 1))
    exponents = (amax >> 23) - 127 - 3 + ((amax & 0x7F_FFFF) > 0x70_0000).to(torch.int32)
    return exponents.clamp_(min=MIN_SCALE_EXPONENT).masked_fill_(amax == 0, 0)


def _scale_of(x: Tensor, exponents: Tensor | None, scaling: Scaling) -> Tensor:
    if exponents is None:
        return torch.ones((), dtype=torch.float32, device=x.device)
    return power_of_two(exponents).reshape((*x.shape[:-1], 1) if scaling == "row" else ())


@functools.cache
def _codes(device: torch.device, saturate: bool) -> Tensor:
    """The code of every upper half: uint8 [65536]. Nearest point of the grid, ties away from zero."""
    values = code_values(torch.device("cpu"))
    grid, order = values[:SIGN].where(values[:SIGN].isfinite(), INFINITY_SLOT).sort()
    midpoints = (grid[:-1] + grid[1:]) / 2  # exact in fp32: neighbours differ by one bit of a 4-bit significand
    magnitudes = float_of(torch.arange(0x8000, dtype=torch.int32, device="cpu") << 16)
    positive = order[torch.bucketize(magnitudes, midpoints, right=True)]
    positive[magnitudes.isnan()] = NAN
    if saturate:
        positive[positive == INFINITY] = MAX
        positive[positive == NAN] = 0
    negative = positive.where((positive == 0) | (positive == NAN), positive | SIGN)
    return torch.cat((positive, negative)).to(device, torch.uint8)


@functools.cache
def _rounded(device: torch.device, saturate: bool, dtype: torch.dtype) -> Tensor:
    """The rounded value of every upper half: `dtype` [65536]; exact in every dtype."""
    codes = _codes(torch.device("cpu"), saturate)
    return code_values(torch.device("cpu"))[codes.long()].to(device, dtype)

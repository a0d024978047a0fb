"""HiFloat8 in torch operations, on any device.

The vectorised twin of `hif8_reference`. All midpoints of the format's grid have at most five significant bits, so the
upper 16 bits of an fp32 pattern decide, and one table of 65,536 entries, indexed by them, serves every dtype. Division
by a power-of-two scale is exact.
"""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor

from ._operand import Operand
from ._tiles import INFINITY_BITS, MAGNITUDE_BITS, bits_of, float_of, power_of_two, tiles
from .hif8_bytes import code_values
from .hif8_spec import INFINITY, INFINITY_SLOT, MAX, MIN_SCALE_EXPONENT, NAN, SIGN, Scaling

__all__ = ["codes_table", "encode", "exponents_of_amax", "largest_magnitudes", "qdq", "rounded_table"]

QUIET_NAN: Final = 0x7FC0_0000


def encode(operand: Operand, exponents: Tensor | None, codes: Tensor, saturate: bool, refuse: bool) -> None:
    """Codes uint8 [rows, K] of an operand over 2^exponent; exponents int32 [1, 1] or [rows, 1].

    Raises:
        NonFiniteError: see `hif8.quantize`; only when `refuse`.
    """
    matrix = operand.matrix
    for r, c in tiles(matrix) if refuse else ():
        operand.refuse_non_finite(matrix, r, c)
    _look_up(operand, exponents, codes_table(codes.device, saturate), codes)


def qdq(operand: Operand, exponents: Tensor | None, out: Tensor, saturate: bool) -> None:
    """The values of an operand's codes, into `out` [rows, K]."""
    _look_up(operand, exponents, rounded_table(out.device, saturate), out)


def largest_magnitudes(operand: Operand) -> Tensor:
    """The fp32 patterns of the largest finite magnitude of each row, int32 [rows, 1]."""
    matrix = operand.matrix
    amax = torch.zeros((matrix.shape[0], 1), dtype=torch.int32, device=matrix.device)
    for r, c in tiles(matrix):
        bits = bits_of(operand.tile(matrix, r, c).to(torch.float32).contiguous()) & MAGNITUDE_BITS
        finite = bits.masked_fill_(bits >= INFINITY_BITS, 0)
        amax[r] = torch.maximum(amax[r], finite.amax(-1, keepdim=True))
    return amax


def exponents_of_amax(amax: Tensor, scaling: Scaling) -> Tensor:
    """k of the scales 2^k = 2^ceil(log2(amax / 15)): int32 [1, 1] or [rows, 1].

    Args:
        amax: result of `largest_magnitudes`.

    With amax = f * 2^e and 15 = 1.875 * 2^3, k is e - 3 for f <= 1.875 and e - 2 above.
    """
    if scaling == "tensor":
        amax = amax.amax(0, keepdim=True) if amax.numel() else amax.new_zeros((1, 1))
    exponents = (amax >> 23) - 127 - 3 + ((amax & 0x7F_FFFF) > 0x70_0000).to(torch.int32)
    return exponents.clamp_(min=MIN_SCALE_EXPONENT).masked_fill_(amax == 0, 0)


def _look_up(operand: Operand, exponents: Tensor | None, table: Tensor, out: Tensor) -> None:
    """out = table[upper half of fp32(x / 2^exponent)]; a table of values (not codes) is scaled back."""
    matrix = operand.matrix
    for r, c in tiles(matrix):
        tile = operand.tile(matrix, r, c)
        if exponents is None:
            out[r, c] = table.index_select(0, _upper_half(tile)).view(tile.shape)
            continue
        exponent = exponents[r] if exponents.shape[0] > 1 else exponents
        found = table.index_select(0, _upper_half(tile.to(torch.float32) * power_of_two(-exponent))).view(tile.shape)
        out[r, c] = found * power_of_two(exponent) if table.is_floating_point() else found


def _upper_half(tile: Tensor) -> Tensor:
    """The upper 16 bits of the fp32 patterns, int32 in 0..65535, flat. They truncate a magnitude and keep NaN a NaN."""
    flat = tile.reshape(-1)
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).to(torch.int32) & 0xFFFF
    bits = bits_of(flat.to(torch.float32))
    bits = bits.masked_fill((bits & MAGNITUDE_BITS) > INFINITY_BITS, QUIET_NAN)
    return (bits >> 16) & 0xFFFF


@functools.cache
def codes_table(device: torch.device, saturate: bool) -> Tensor:
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
def rounded_table(device: torch.device, saturate: bool) -> Tensor:
    """The rounded value of every upper half: bf16 [65536], exact."""
    codes = codes_table(torch.device("cpu"), saturate)
    return code_values(torch.device("cpu"))[codes.long()].to(device, torch.bfloat16)

"""HiFloat4 as bytes: packed codes, scale words in layout A, and the tensor that holds both.

Layout A (`u32-lsb`): one word per group, bits 7:0 E6M2, bit 8+j = lv2[j], bit 16+k = lv3[k]. Other public layouts carry
the same fields in another bit order; `pack_*` and `unpack_*` are the only place that knows this one.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Final

import torch
from torch import Tensor

from . import hif4_compiled
from ._compiled import runs_compiled
from ._operand import checked_dtype, checked_mask, times
from ._squares import checked_original, exact_sums, row_errors, row_tiles
from ._tiles import as_matrix, float_of, power_of_two, tiles
from .errors import MalformedTensorError
from .hif4_spec import (
    CODE_BYTES,
    E6M2_BIAS,
    E6M2_NAN,
    GROUP,
    LV2_FLAGS,
    LV2_SPAN,
    LV3_FLAGS,
    LV3_SPAN,
    SIGN_CODE,
    profile_named,
)

__all__ = ["Hif4Tensor", "pack_codes", "pack_scale", "unpack_codes", "unpack_scale"]

# An E6M2 code and an fp32 pattern shifted right by 21 are both "exponent, two mantissa bits"; the biases differ.
E6M2_TO_FP32: Final = (127 - E6M2_BIAS) << 2


def pack_codes(codes: Tensor) -> Tensor:
    """Two S1P2 codes to a byte, the even element in the low nibble: uint8 [..., 2n] in 0..15 -> uint8 [..., n]."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_codes(packed: Tensor) -> Tensor:
    """The inverse of `pack_codes`: uint8 [..., n] -> uint8 [..., 2n] in 0..15."""
    return torch.stack((packed & 0x0F, packed >> 4), dim=-1).flatten(-2)


def pack_scale(e6m2: Tensor, lv2: Tensor, lv3: Tensor) -> Tensor:
    """Scale words in layout A, uint32 [...], from integer tensors [...]: E6M2 code, 8 lv2 bits, 16 lv3 bits.

    Flag j of `lv2` and flag k of `lv3` are bits j and k, the same numbering as in the word.
    """
    words = e6m2.to(torch.int32) | (lv2.to(torch.int32) << 8) | (lv3.to(torch.int32) << 16)
    return words.contiguous().view(torch.uint32)


def unpack_scale(scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `pack_scale`: uint32 [...] -> (E6M2 code, lv2 bits, lv3 bits), each int32 [...]."""
    words = scale.view(torch.int32)
    return words & 0xFF, (words >> 8) & 0xFF, (words >> 16) & 0xFFFF


def scale_values(e6m2: Tensor) -> Tensor:
    """E6M2 = (1 + M/4) * 2^(E - 48), code FF is NaN: int32 codes -> fp32, exact."""
    values = float_of((e6m2 + E6M2_TO_FP32) << 21)
    return values.masked_fill(e6m2 == E6M2_NAN, float("nan"))


def flag_words(flags: Tensor) -> Tensor:
    """Bool flags [..., n], n <= 16, as the bits of int32 words [...]: flag j is bit j."""
    places = torch.arange(flags.shape[-1], device=flags.device, dtype=torch.int32)
    return (flags.to(torch.int32) << places).sum(-1, dtype=torch.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Hif4Tensor:
    """A tensor [..., K] in HiFloat4, grouped by 64 along its last axis.

    Attributes:
        codes: uint8 [..., 32 * ceil(K/64)], two S1P2 codes to a byte, the even element in the low nibble.
        scale: uint32 [..., ceil(K/64)], layout A.
        shape: the true shape [..., K]. The tail of an incomplete last group is zero.
        profile: the numerics profile that encoded it; decoding does not depend on it.
    """

    codes: Tensor
    scale: Tensor
    shape: tuple[int, ...]
    profile: str

    def dequantize(self, dtype: torch.dtype = torch.bfloat16, *, factor: Tensor | None = None) -> Tensor:
        """value[i] = E6M2 * 2^(lv2[i div 8] + lv3[i div 4]) * S1P2[i], as a tensor of the true shape.

        Exact in bf16 and fp32. In fp16 values are rounded to nearest even and may overflow to infinity. Groups whose
        scale is NaN become NaN; the payload of these NaNs is not specified.

        Args:
            factor: fp32 [K]; values are multiplied by it in fp32, and the product is rounded to `dtype`.

        Raises:
            UnsupportedDtypeError: `dtype` is not bf16, fp32 or fp16; `factor` is not fp32.
            MalformedTensorError: codes, scale and shape do not belong together; a factor of another shape or device.
        """
        checked_dtype(dtype)
        self._check_layout()
        factor = None if factor is None else checked_mask(factor, self.shape[-1], self.codes.device)
        out = torch.empty(self.shape, dtype=dtype, device=self.codes.device)
        if out.numel() == 0:
            return out
        rows, codes, scale = as_matrix(out), as_matrix(self.codes), as_matrix(self.scale)
        if runs_compiled(self.codes, out):
            hif4_compiled.decode(codes, scale, factor, rows)
            return out
        for r, c in tiles(rows, multiple=GROUP):
            rows[r, c] = times(_decode(codes, scale, r, c), factor, c)
        return out

    def squared_error(self, original: Tensor, *, factor: Tensor | None = None) -> tuple[float, float]:
        """Sums of squares in binary64: of `dequantize(torch.float32, factor=factor)` minus `original`, of `original`.

        A row is summed in 256 places (see `_squares`), rows exactly, rounded once. So the sums depend on no thread
        count, and on no division into parts of whole rows.

        Args:
            original: bf16, fp32 or fp16 [..., K].
            factor: as in `dequantize`.

        Raises:
            UnsupportedDtypeError: `original` is not bf16, fp32 or fp16; `factor` is not fp32.
            MalformedTensorError: codes, scale and shape do not belong together; tensors of another shape or device.
        """
        return exact_sums(self.row_squared_errors(original, factor=factor))

    def row_squared_errors(self, original: Tensor, *, factor: Tensor | None = None) -> Tensor:
        """The sums of `squared_error` per row: float64 [2, rows] on the CPU, for tensors that are measured in parts.

        Args and errors: as `squared_error`.
        """
        self._check_layout()
        original = checked_original(original, self.shape, self.codes.device)
        factor = None if factor is None else checked_mask(factor, self.shape[-1], self.codes.device)
        if original.numel() == 0:
            return torch.zeros((2, 0), dtype=torch.float64)
        x, codes, scale = as_matrix(original), as_matrix(self.codes), as_matrix(self.scale)
        if runs_compiled(original, self.codes):
            return torch.from_numpy(hif4_compiled.measure(codes, scale, factor, x))
        whole = slice(0, x.shape[1])
        values = ((r, times(_decode(codes, scale, r, whole), factor, whole)) for r in row_tiles(x))
        return torch.from_numpy(row_errors(x, values))

    def validate(self) -> None:
        """Check everything that a quantizer guarantees about the bytes; for codes and scales read from outside.

        NaN groups pass: they are part of the format.

        Raises:
            MalformedTensorError: wrong dtype, shape or device, or the padding of the last group is not zero.
            UnknownProfileError: `profile` names no profile.
        """
        profile_named(self.profile)
        self._check_layout()
        used = self.shape[-1] % GROUP
        if used == 0 or self.codes.numel() == 0:
            return
        codes = unpack_codes(self.codes[..., -CODE_BYTES:])[..., used:]
        _, lv2, lv3 = unpack_scale(self.scale[..., -1:])
        unused_lv2 = lv2 >> -(-used // LV2_SPAN)
        unused_lv3 = lv3 >> -(-used // LV3_SPAN)
        for what, padding in (("codes", codes), ("lv2 flags", unused_lv2), ("lv3 flags", unused_lv3)):
            if bool(padding.any()):
                raise MalformedTensorError(
                    f"{what} in the padding after column {self.shape[-1]}", expected="all zero", found="other bits"
                )

    def _check_layout(self) -> None:
        shape = tuple(self.shape)
        if not shape or any(not isinstance(size, int) or size < 0 for size in shape):
            raise MalformedTensorError("HiF4 shape", expected="at least one axis, no negative size", found=shape)
        groups = -(-shape[-1] // GROUP)
        for what, tensor, dtype, columns in (
            ("codes", self.codes, torch.uint8, groups * CODE_BYTES),
            ("scale", self.scale, torch.uint32, groups),
        ):
            if tensor.dtype != dtype:
                raise MalformedTensorError(f"HiF4 {what} dtype", expected=dtype, found=tensor.dtype)
            expected = (*shape[:-1], columns)
            if tuple(tensor.shape) != expected:
                raise MalformedTensorError(
                    f"HiF4 {what} shape for a tensor of shape {list(shape)}",
                    expected=list(expected),
                    found=list(tensor.shape),
                )
        if self.codes.device != self.scale.device:
            raise MalformedTensorError("HiF4 scale device", expected=self.codes.device, found=self.scale.device)


def _decode(codes: Tensor, scale: Tensor, rows: slice, columns: slice) -> Tensor:
    """The values of a tile, fp32 [rows, columns]."""
    g = slice(columns.start // GROUP, -(-columns.stop // GROUP))
    steps = quarter_steps(scale[rows, g]).reshape(-1, LV3_FLAGS, 1)
    packed = codes[rows, g.start * CODE_BYTES : g.stop * CODE_BYTES]
    quarters = _value_pairs(codes.device).index_select(0, packed.reshape(-1).to(torch.int32))
    values = (quarters.view(-1, LV3_FLAGS, LV3_SPAN) * steps).view(packed.shape[0], -1)
    return values[:, : columns.stop - columns.start]


def quarter_steps(scale: Tensor) -> Tensor:
    """What one quarter is worth in each run of four values: uint32 [...] -> fp32 [..., 16].

    E6M2 * 2^(lv2 + lv3) / 4, exact.
    """
    e6m2, lv2, lv3 = (field.unsqueeze(-1) for field in unpack_scale(scale))
    k = torch.arange(LV3_FLAGS, device=scale.device, dtype=torch.int32)
    increments = ((lv2 >> k // (LV3_FLAGS // LV2_FLAGS)) & 1) + ((lv3 >> k) & 1)
    return scale_values(e6m2) * power_of_two(increments - 2)


@functools.cache
def _value_pairs(device: torch.device) -> Tensor:
    """Both values of every code byte, in quarters: fp32 [256, 2]."""
    packed = torch.arange(256, dtype=torch.int32, device="cpu").to(torch.uint8)
    codes = unpack_codes(packed.unsqueeze(-1)).to(torch.int32)
    signs = 1.0 - 2.0 * (codes >= SIGN_CODE).to(torch.float32)
    return (signs * (codes % SIGN_CODE).to(torch.float32)).to(device)

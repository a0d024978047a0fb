"""What is quantized: a tensor, rounded to bf16 first or not, divided or multiplied by a number per column or not."""

from __future__ import annotations

import dataclasses
from typing import Final

import torch
from torch import Tensor

from ._tiles import as_matrix, bits_of, checked, float_of, refuse_non_finite
from .errors import MalformedTensorError, UnsupportedDtypeError

__all__ = ["Operand", "checked_dtype", "checked_mask", "operand_of", "round_bits_to_bf16", "times"]

OUTPUT_DTYPES: Final = (torch.bfloat16, torch.float32, torch.float16)
_NAN_BITS: Final = 0x7FC0_0000


@dataclasses.dataclass(frozen=True)
class Operand:
    """The fp32 numbers that a quantizer sees, tile by tile.

    Attributes:
        x: bf16, fp32 or fp16 [..., K], outside autograd.
        mask: fp32 [K], or None.
        divide: whether `x` is divided by the mask; otherwise multiplied.
        through_bf16: `x` is rounded to bf16 before that.
    """

    x: Tensor
    mask: Tensor | None = None
    divide: bool = False
    through_bf16: bool = False

    @property
    def matrix(self) -> Tensor:
        """`x` as [rows, K]."""
        return as_matrix(self.x)

    def tile(self, matrix: Tensor, rows: slice, columns: slice) -> Tensor:
        """The numbers of a tile of `matrix`: fp32, or the dtype of `x` where nothing happens to it."""
        part = matrix[rows, columns]
        if self.through_bf16 and part.dtype != torch.bfloat16:
            part = float_of(round_bits_to_bf16(bits_of(part.to(torch.float32).contiguous())))
        if self.mask is None:
            return part
        wide = part.to(torch.float32)
        return wide / self.mask[columns] if self.divide else wide * self.mask[columns]

    def refuse_non_finite(self, matrix: Tensor, rows: slice, columns: slice) -> None:
        """Raises NonFiniteError for the first number of a tile that is NaN or infinite."""
        refuse_non_finite(self.tile(matrix, rows, columns), (rows, columns), matrix.shape[1], self.x.shape)


def operand_of(
    x: Tensor, *, divisor: Tensor | None = None, factor: Tensor | None = None, through: torch.dtype | None = None
) -> Operand:
    """`x` with at most one of `divisor` and `factor`.

    Raises:
        UnsupportedDtypeError, UnsupportedShapeError: `x` is none of the supported dtypes or has no axis; a mask is not
            fp32, or `through` not bf16.
        MalformedTensorError: a mask of another shape or device.
    """
    x = checked(x)
    if through not in (None, torch.bfloat16):
        raise UnsupportedDtypeError(through, (torch.bfloat16,))
    mask = divisor if factor is None else factor
    if mask is not None:
        mask = checked_mask(mask, x.shape[-1], x.device)
    return Operand(x, mask, divisor is not None, through is not None)


def checked_mask(mask: Tensor, columns: int, device: torch.device) -> Tensor:
    """A number per column: fp32 [columns], outside autograd.

    Raises:
        UnsupportedDtypeError: it is not fp32.
        MalformedTensorError: another shape or device.
    """
    if mask.dtype != torch.float32:
        raise UnsupportedDtypeError(mask.dtype, (torch.float32,))
    if tuple(mask.shape) != (columns,) or mask.device != device:
        raise MalformedTensorError(
            "not one number per column",
            expected=f"[{columns}] on {device}",
            found=f"{list(mask.shape)} on {mask.device}",
        )
    return mask.detach()


def checked_dtype(dtype: torch.dtype) -> torch.dtype:
    """A dtype that values are given in.

    Raises:
        UnsupportedDtypeError: it is not bf16, fp32 or fp16.
    """
    if dtype not in OUTPUT_DTYPES:
        raise UnsupportedDtypeError(dtype, OUTPUT_DTYPES)
    return dtype


def times(values: Tensor, mask: Tensor | None, columns: slice) -> Tensor:
    """fp32 values [rows, columns] times their columns' numbers, rounded once."""
    return values if mask is None else values * mask[columns]


def round_bits_to_bf16(bits: Tensor) -> Tensor:
    """int32 fp32 patterns rounded to bf16, nearest even, as fp32 patterns; every NaN becomes 7FC00000."""
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & -0x1_0000
    return rounded.masked_fill_((bits & 0x7FFF_FFFF) > 0x7F80_0000, _NAN_BITS)

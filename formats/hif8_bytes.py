"""HiFloat8 as bytes: what each code means, and the tensor that holds codes and scale."""

from __future__ import annotations

import dataclasses
import functools
from typing import get_args

import torch
from torch import Tensor

from . import hif8_compiled
from ._compiled import runs_compiled
from ._operand import checked_dtype, checked_mask, times
from ._squares import checked_original, exact_sums, row_errors, row_tiles
from ._tiles import INFINITY_BITS, as_matrix, bits_of, tiles
from .errors import MalformedTensorError
from .hif8_spec import FIELDS, INFINITY, NAN, TINY_BIAS, Scaling, checked_option

__all__ = ["Hif8Tensor"]


@dataclasses.dataclass(frozen=True, eq=False)
class Hif8Tensor:
    """A tensor in HiFloat8.

    Attributes:
        codes: uint8, the shape of the tensor.
        scale: fp32, a power of two; shape [] for scaling "tensor" and "none" (then 1), [..., 1] for "row".
        scaling: "none", "tensor" or "row".
    """

    codes: Tensor
    scale: Tensor
    scaling: Scaling

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor."""
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype = torch.bfloat16, *, factor: Tensor | None = None) -> Tensor:
        """value = HiF8(code) * scale.

        Exact where the result is a normal number of `dtype`; below that rounded to nearest even, beyond it infinite.

        Args:
            factor: fp32 [K]; values are multiplied by it in fp32, and the product is rounded to `dtype`.

        Raises:
            UnsupportedDtypeError: `dtype` is not bf16, fp32 or fp16; `factor` is not fp32.
            MalformedTensorError: codes and scale do not belong together; a factor of another shape or device.
        """
        checked_dtype(dtype)
        self._check_layout()
        factor = None if factor is None else checked_mask(factor, self.shape[-1], self.codes.device)
        out = torch.empty(self.codes.shape, dtype=dtype, device=self.codes.device)
        if out.numel() == 0:
            return out
        rows, codes, scale = as_matrix(out), as_matrix(self.codes), self.scale.reshape(-1, 1)
        if runs_compiled(self.codes, out):
            hif8_compiled.decode(codes, scale, factor, rows, code_values(out.device))
            return out
        for r, c in tiles(rows):
            rows[r, c] = times(_decode(codes, scale, r, c), factor, c)
        return out

    def squared_error(self, original: Tensor, *, factor: Tensor | None = None) -> tuple[float, float]:
        """Sums of squares in binary64: of `dequantize(torch.float32, factor=factor)` minus `original`, of `original`.

        Args, order of the sums and errors: as `Hif4Tensor.squared_error`.
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
        x, codes, scale = as_matrix(original), as_matrix(self.codes), self.scale.reshape(-1, 1)
        if runs_compiled(original, self.codes):
            return torch.from_numpy(hif8_compiled.measure(codes, scale, factor, x, code_values(x.device)))
        whole = slice(0, x.shape[1])
        values = ((r, times(_decode(codes, scale, r, whole), factor, whole)) for r in row_tiles(x))
        return torch.from_numpy(row_errors(x, values))

    def validate(self) -> None:
        """Check everything that a quantizer guarantees about the bytes; for tensors read from outside.

        NaN and infinity codes pass: they are part of the format.

        Raises:
            MalformedTensorError: wrong dtype, shape or device, or a scale that is not a normal power of two.
            UnknownOptionError: `scaling` is not one of its words.
        """
        self._check_layout()
        bits = bits_of(self.scale.contiguous())
        wrong = (bits <= 0) | (bits >= INFINITY_BITS) | ((bits & 0x7F_FFFF) != 0)
        if bool(wrong.any()):
            raise MalformedTensorError(
                "HiF8 scale", expected="powers of two, 2^-126 or more", found=float(self.scale[wrong][0])
            )
        if self.scaling == "none" and float(self.scale) != 1:
            raise MalformedTensorError('HiF8 scale of scaling "none"', expected=1.0, found=float(self.scale))

    def _check_layout(self) -> None:
        checked_option("scaling", self.scaling, get_args(Scaling))
        for what, tensor, dtype in (("codes", self.codes, torch.uint8), ("scale", self.scale, torch.float32)):
            if tensor.dtype != dtype:
                raise MalformedTensorError(f"HiF8 {what} dtype", expected=dtype, found=tensor.dtype)
        if self.codes.ndim == 0:
            raise MalformedTensorError("HiF8 codes shape", expected="at least one axis", found=[])
        expected = [*self.codes.shape[:-1], 1] if self.scaling == "row" else []
        if list(self.scale.shape) != expected:
            raise MalformedTensorError(
                f'HiF8 scale shape of scaling "{self.scaling}"', expected=expected, found=list(self.scale.shape)
            )
        if self.codes.device != self.scale.device:
            raise MalformedTensorError("HiF8 scale device", expected=self.codes.device, found=self.scale.device)


def _decode(codes: Tensor, scale: Tensor, rows: slice, columns: slice) -> Tensor:
    """The values of a tile, fp32 [rows, columns]; scale fp32 [1, 1] or [rows, 1]."""
    tile = codes[rows, columns]
    decoded = code_values(codes.device).index_select(0, tile.reshape(-1).to(torch.int32)).view(tile.shape)
    return decoded * (scale[rows] if scale.shape[0] > 1 else scale)


@functools.cache
def code_values(device: torch.device) -> Tensor:
    """The value of every code: fp32 [256], built field by field from the table in `hif8_spec`."""
    positive = torch.zeros(128, dtype=torch.float32, device="cpu")
    for m in range(1, 8):
        positive[m] = 2.0 ** (m - TINY_BIAS)
    for field in FIELDS:
        for e in range(1 << field.exponent_bits):
            for m in range(1 << field.mantissa_bits):
                code = int(field.prefix, 2) << field.exponent_bits | e
                value = 2.0 ** _exponent(e, field.exponent_bits) * (1 + m / (1 << field.mantissa_bits))
                positive[code << field.mantissa_bits | m] = value
    positive[INFINITY] = torch.inf
    values = torch.cat((positive, -positive))
    values[NAN] = torch.nan
    return values.to(device)


def _exponent(field: int, width: int) -> int:
    """Sign-magnitude; the leading one of the magnitude stands where the sign bit is stored."""
    if width == 0:
        return 0
    leading_one = 1 << (width - 1)
    return -field if field & leading_one else field | leading_one

"""Rounding to BF16: round to nearest, ties to even, with integers alone, so that every machine gives the same bits.

torch's own cast agrees on numbers, but its NaN depends on the vector width of the CPU (0x7FC0 or 0xFFFF), and some
CPUs' instruction for it drops subnormals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from hfq.schema.errors import UnsupportedDtypeError

from .finite import Floats, find_non_finite, non_finite_error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["round_into", "stored_floats", "to_bf16", "to_finite_bf16"]

_CHUNK: Final = 1 << 16  # elements: the three scratch arrays stay in a core's own cache
_NAN_BITS: Final = 0x7FC0


def to_bf16(tensor: Tensor) -> Tensor:
    """`tensor` (float32, float16 or bfloat16, any shape) rounded to BF16, same shape; BF16 comes back as it is.

    Overflow becomes infinity, subnormals are kept, every NaN of F32 or F16 becomes 0x7FC0. F16 is exact in F32, so it
    is rounded once. Takes two bytes an element plus a fixed scratch.

    Raises:
        UnsupportedDtypeError: any other dtype.
    """
    import torch  # takes longer than hashing a gigabyte, and `round_into` does without it

    if tensor.dtype == torch.bfloat16:
        return tensor
    if tensor.dtype not in (torch.float32, torch.float16):
        raise UnsupportedDtypeError(
            "cannot be rounded to BF16", expected="float32, float16 or bfloat16", found=tensor.dtype
        )
    source = tensor.detach().contiguous().reshape(-1).numpy()
    rounded = torch.empty(tensor.shape, dtype=torch.bfloat16)
    round_into(source, rounded.reshape(-1).view(torch.uint16).numpy())
    return rounded


def to_finite_bf16(tensor: Tensor, where: str) -> Tensor:
    """`tensor` of a base rounded to BF16, as `to_bf16`, if every number of it is finite then.

    Args:
        where: file or model, and tensor, for the message.

    Raises:
        NonFiniteWeightError, UnsupportedDtypeError
    """
    import torch

    try:
        rounded = to_bf16(tensor)
    except UnsupportedDtypeError as error:
        raise UnsupportedDtypeError(error.what, where=where, expected=error.expected, found=error.found) from None
    stored = None if rounded is tensor else tensor.detach().contiguous().reshape(-1).numpy()
    bits = rounded.detach().contiguous().reshape(-1).view(torch.uint16).numpy()
    found = find_non_finite(bits, tuple(tensor.shape), stored=stored)
    if found is not None:
        raise non_finite_error(where, found)
    return rounded


def stored_floats(data: npt.NDArray[np.uint8], dtype: str) -> Floats:
    """Bytes of a file as the values of a safetensors dtype that is rounded, F32 or F16."""
    return data.view(np.float16) if dtype == "F16" else data.view(np.float32)


def round_into(source: Floats, out: npt.NDArray[np.uint16]) -> None:
    """Round `source` [n] to the BF16 bits `out` [n], as `to_bf16` does."""
    scratch = np.empty(min(_CHUNK, source.size), dtype=np.uint32)
    for begin in range(0, source.size, _CHUNK):
        bits = source[begin : begin + _CHUNK].astype(np.float32, copy=False).view(np.uint32)
        work = scratch[: bits.size]
        # Add half of the last kept place, less one unless that place is odd, and cut.
        np.right_shift(bits, 16, out=work)
        np.bitwise_and(work, 1, out=work)
        np.add(work, 0x7FFF, out=work)
        np.add(work, bits, out=work)
        target = out[begin : begin + _CHUNK]
        target[:] = work.view(np.uint16)[1::2]
        values = bits.view(np.float32)
        if np.isnan(values.max(initial=0.0)):  # a maximum hands NaN on
            target[np.isnan(values)] = _NAN_BITS

"""What every torch twin needs: checked inputs, tiles that bound the temporaries, exact scalings by powers of two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from .errors import NonFiniteError, UnsupportedDtypeError, UnsupportedShapeError

FLOAT_DTYPES: Final = (torch.bfloat16, torch.float32, torch.float16)
MAGNITUDE_BITS: Final = 0x7FFF_FFFF  # an fp32 pattern without its sign; magnitudes then order as integers do
INFINITY_BITS: Final = 0x7F80_0000  # magnitude of Inf; every NaN lies above it
NEGATIVE_ZERO: Final = -0x8000_0000  # the pattern of -0.0, read as int32

# Elements per tile. On a CPU a tile and its fp32 temporaries stay near the caches; elsewhere kernel launches dominate.
# Every result is a function of its own group, so the size can change speed and memory, never a bit.
CPU_TILE: Final = 1 << 18
DEVICE_TILE: Final = 1 << 24


def checked(x: Tensor) -> Tensor:
    """`x` without its autograd history.

    Raises:
        UnsupportedDtypeError: `x` is not bf16, fp32 or fp16.
        UnsupportedShapeError: `x` has no axis.
    """
    if x.dtype not in FLOAT_DTYPES:
        raise UnsupportedDtypeError(x.dtype, FLOAT_DTYPES)
    if x.ndim == 0:
        raise UnsupportedShapeError
    # A compiler keeps fp32 digits between the steps that it fuses, whatever their dtype. An opaque step ends that.
    narrow = torch.compiler.is_compiling() and x.dtype != torch.float32
    return torch.ops.hfq.settled(x.detach()) if narrow else x.detach()


@torch.library.custom_op("hfq::settled", mutates_args=(), schema="(Tensor x) -> Tensor")
def _settled(x: Tensor) -> Tensor:
    """A copy, for compilers: a tensor whose values are those of its dtype."""
    return x.clone()


@_settled.register_fake
def _settled_shape(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def as_matrix(x: Tensor) -> Tensor:
    """[..., K] as [rows, K]; a view wherever the strides allow one."""
    rows = 1
    for size in x.shape[:-1]:
        rows *= size
    return x.reshape(rows, x.shape[-1])


def tiles(matrix: Tensor, *, multiple: int = 1) -> Iterator[tuple[slice, slice]]:
    """Slices that cover [rows, columns] in row-major order; column cuts fall on multiples of `multiple`."""
    rows, columns = matrix.shape
    if matrix.numel() == 0:
        return
    limit = CPU_TILE if matrix.device.type == "cpu" else DEVICE_TILE
    width = min(columns, max(multiple, limit // multiple * multiple))
    padded_width = -(-width // multiple) * multiple
    height = max(1, limit // padded_width) if width == columns else 1
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


def groups_of(tile: Tensor, size: int) -> Tensor:
    """A [rows, columns] tile as contiguous fp32 [groups, size], rows padded with zeros; often a view of the tile."""
    wide = tile.to(torch.float32)
    missing = -tile.shape[1] % size
    if missing:
        wide = torch.nn.functional.pad(wide, (0, missing))
    return wide.reshape(-1, size).contiguous()


def ungrouped(groups: Tensor, tile: Tensor) -> Tensor:
    """The inverse of `groups_of`: [groups, size] back to the tile's own [rows, columns], padding dropped."""
    return groups.reshape(tile.shape[0], -1)[:, : tile.shape[1]]


def bits_of(x: Tensor) -> Tensor:
    """The fp32 patterns of `x` (contiguous fp32), as int32."""
    return x.view(torch.int32)


def float_of(bits: Tensor) -> Tensor:
    """The fp32 values of int32 patterns."""
    return bits.view(torch.float32)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent as fp32, exact, for int32 exponents in [-126, 127]."""
    return float_of((exponent + 127) << 23)


def refuse_non_finite(part: Tensor, tile: tuple[slice, slice], columns: int, shape: torch.Size) -> None:
    """Raises NonFiniteError for the first NaN or Inf of a tile of a matrix, in the coordinates of the whole tensor."""
    found = torch.nonzero(~torch.isfinite(part))
    if found.numel():
        row, column = (int(index) for index in found[0])
        flat_index = (row + tile[0].start) * columns + column + tile[1].start
        raise NonFiniteError(flat_index, shape, float(part[row, column]))

"""The squared error of stored values, summed in an order that every twin follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ._tiles import CPU_TILE, checked
from .errors import MalformedTensorError

__all__ = ["checked_original", "exact_sums", "row_errors", "row_tiles"]

PLACES: Final = 256
"""Sums of a row: place i takes the columns i, i + 256, i + 512, ... in this order. The upper half of the places is
added to the lower one until four are left, which are added in order: loops that compilers vectorise."""


def checked_original(original: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """A tensor to compare with, outside autograd.

    Raises:
        UnsupportedDtypeError, UnsupportedShapeError: see `_tiles.checked`.
        MalformedTensorError: it has another shape or device.
    """
    original = checked(original)
    if tuple(original.shape) != tuple(shape) or original.device != device:
        raise MalformedTensorError(
            "not an original of this tensor",
            expected=f"{list(shape)} on {device}",
            found=f"{list(original.shape)} on {original.device}",
        )
    return original


def row_tiles(matrix: Tensor) -> Iterator[slice]:
    """Slices of whole rows that cover a matrix [rows, K]."""
    height = max(1, CPU_TILE // matrix.shape[1])
    for top in range(0, matrix.shape[0], height):
        yield slice(top, min(top + height, matrix.shape[0]))


def row_errors(original: Tensor, values: Iterable[tuple[slice, Tensor]]) -> Any:
    """Sums of squares per row, float64 numpy [2, rows]: of value minus original, of the original [rows, K].

    Args:
        values: fp32, row tile by row tile.
    """
    sums = np.zeros((2, original.shape[0]))
    for rows, found in values:
        exact = original[rows].to(torch.float64)
        sums[0, rows] = _sum_rows(found.to(torch.float64) - exact)
        sums[1, rows] = _sum_rows(exact)
    return sums


def _sum_rows(x: Tensor) -> Any:
    """Squares of float64 [rows, K] summed per row."""
    squares = torch.nn.functional.pad(x * x, (0, -x.shape[1] % PLACES)).view(x.shape[0], -1, PLACES)
    places = torch.zeros((x.shape[0], PLACES), dtype=torch.float64, device=x.device)
    for g in range(squares.shape[1]):
        places += squares[:, g]
    n = PLACES
    while n > 4:
        n //= 2
        places = places[:, :n] + places[:, n : 2 * n]
    return (((places[:, 0] + places[:, 1]) + places[:, 2]) + places[:, 3]).cpu().numpy()


def exact_sums(sums: Tensor) -> tuple[float, float]:
    """The sums of rows [2, rows], rounded once."""
    return math.fsum(sums[0].tolist()), math.fsum(sums[1].tolist())

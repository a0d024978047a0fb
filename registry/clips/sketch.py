"""A sketch of a signature: 130 bytes that bound, from below, how far two clips are apart.

P takes a signature of length 1 to 64 numbers: sums over blocks of 2 frames x 4 x 4 cells, divided by sqrt(32), which is
an orthonormal projection. For two signatures u and v (Cauchy-Schwarz on what P leaves over)

    cos(u, v) = <Pu, Pv> + <u - Pu, v - Pv>  <=  <Pu, Pv> + |u - Pu| |v - Pv|

The sketch holds Pv to the nearest, and |v - Pv| up to the next, of 32,767 steps. Rounding moves Pv by at most
sqrt(64) / 2 / 32767, and |Pu| <= 1, so the product by no more. Fewer than 70 roundings to float32 lie behind the sum of
65 products, in whatever order it is made, and the absolute products sum to less than 1.001: together below 2**-17.
`ALLOWANCE` is above both: no distance is below its bound.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from .signature import FRAMES, GRID, Signature, Vector

__all__ = ["ALLOWANCE", "SKETCH_BYTES", "SketchBound", "sketch_of"]

_FRAME_BLOCKS: Final = 4
_CELL_BLOCKS: Final = 4
_BLOCKS: Final = _FRAME_BLOCKS * _CELL_BLOCKS**2
_BLOCK_CELLS: Final = FRAMES * GRID**2 // _BLOCKS
_STEPS: Final = 32767

SKETCH_BYTES: Final = 2 * (_BLOCKS + 1)
"""int16 little-endian: 64 block sums and the length of the rest, each times 32,767."""

ALLOWANCE: Final = math.sqrt(_BLOCKS) / 2 / _STEPS + 2.0**-16


def sketch_of(signature: Signature) -> bytes:
    """The sketch of a signature, SKETCH_BYTES; zeros for a blank one, at distance 1 from everything as it is itself."""
    blocks, rest = _project(signature)
    return np.append(np.rint(blocks * _STEPS), math.ceil(rest * _STEPS)).astype("<i2").tobytes()


class SketchBound:
    """Bounds the distances of one signature to many.

    Args:
        query: not blank.
    """

    def __init__(self, query: Signature) -> None:
        blocks, rest = _project(query)
        self._query = np.append(blocks, rest).astype(np.float32)

    def least_distances(self, sketches: bytes) -> npt.NDArray[np.float64]:
        """float64 [n]: no signature is nearer than its sketch in `sketches` (n of them, joined) says here."""
        raw = np.frombuffer(sketches, "<i2").reshape(-1, _BLOCKS + 1)
        cosines = (raw.astype(np.float32) * np.float32(1 / _STEPS)) @ self._query
        return np.maximum(0.0, 1.0 - ALLOWANCE - cosines.astype(np.float64))


def _project(signature: Signature) -> tuple[Vector, float]:
    """Pv and |v - Pv| of the signature at length 1. The sums are whole numbers below 2**53, and exact."""
    values = signature.values()
    square = float(values @ values)
    if square == 0:
        return np.zeros(_BLOCKS), 0.0
    edge = (_CELL_BLOCKS, GRID // _CELL_BLOCKS)
    cells = values.reshape(_FRAME_BLOCKS, FRAMES // _FRAME_BLOCKS, *edge, *edge)
    sums = cells.sum(axis=(1, 3, 5)).ravel()
    rest = _BLOCK_CELLS * square - float(sums @ sums)
    return sums / math.sqrt(_BLOCK_CELLS * square), math.sqrt(rest / (_BLOCK_CELLS * square))

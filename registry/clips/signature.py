"""The perceptual signature of a clip: its picture in 4 kB.

Eight frames at fixed fractions of the clip, the luma of each averaged over 16x16 cells; distance is one minus the
cosine of the signatures without their means, so that brightness and contrast do not count.

Which registered clips are worth comparing with, `sketch.py` says by a bound that misses none. A perceptual hash would:
pHash mixed up smooth clips after half size and CRF 32 (same clip up to 138 of 512 bits, other clips from 136).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hfq.schema.errors import MalformedFileError

from .stream import Luma, luma_of

__all__ = ["BLANK_SIGNATURE", "FRAMES", "GRID", "SIGNATURE_BYTES", "Signature", "SignatureMaker", "Vector", "distances"]

FRAMES: Final = 8
GRID: Final = 16
SIGNATURE_BYTES: Final = FRAMES * GRID * GRID * 2

_FLAT_SIGMA: Final = 1.0
"""Grey levels of 255. What varies less is a blank picture and the encoder's noise on it."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Signature:
    """The picture of a clip in 4,096 bytes: int16 little-endian [8 frames, 16 rows, 16 columns].

    The mean is zero and the scale free. All zeros is a clip without texture, which resembles none.
    """

    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != SIGNATURE_BYTES:
            raise MalformedFileError(
                "no clip signature", expected=f"{SIGNATURE_BYTES} bytes", found=f"{len(self.data)} bytes"
            )

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to compare."""
        return not any(self.data)

    def values(self) -> Vector:
        """The stored whole numbers as float64 [2048]."""
        return np.frombuffer(self.data, "<i2").astype(np.float64)

    def distance(self, other: Signature) -> float:
        """One minus the cosine, 0 to 2; 1 when either is blank."""
        return float(distances(self, [other])[0])


BLANK_SIGNATURE: Final = Signature(bytes(SIGNATURE_BYTES))
"""Of a clip without anything to compare."""


def distances(query: Signature, others: Sequence[Signature]) -> Vector:
    """One minus the cosine to each, float64 [n], 0 to 2; 1 where either is blank.

    Sums of 2,048 products of 16-bit numbers stay below 2**53: they are exact in float64 whatever the order of addition
    is, so a distance does not depend on what is measured beside it.
    """
    own = query.values()
    raw = np.frombuffer(b"".join(other.data for other in others), "<i2")
    vectors = raw.reshape(len(others), -1).astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors)) * np.sqrt(own @ own)
    return np.asarray(np.maximum(0.0, 1.0 - vectors @ own / np.maximum(lengths, 1.0)), np.float64)


class SignatureMaker:
    """Takes a clip's frames in order and gives its signature: one pass, whatever the number of frames is."""

    def __init__(self) -> None:
        self._cells: list[npt.NDArray[np.float32]] = []
        self._weights: dict[int, npt.NDArray[np.float32]] = {}

    def update(self, frame: Any) -> None:
        """Add one `av.VideoFrame`."""
        self.update_luma(luma_of(frame))

    def update_luma(self, luma: Luma) -> None:
        """Add one frame, uint8 [height, width]."""
        rows, columns = (self._weights_of(extent) for extent in luma.shape)
        self._cells.append(rows @ luma.astype(np.float32) @ columns.T)

    def signature(self) -> Signature:
        """The signature of the frames so far; at least one."""
        count = len(self._cells)
        chosen = np.stack([self._cells[(2 * index + 1) * count // (2 * FRAMES)] for index in range(FRAMES)])
        centred = chosen.astype(np.float64) - float(chosen.mean(dtype=np.float64))
        peak = float(np.abs(centred).max())
        if float(centred.std()) < _FLAT_SIGMA:
            return BLANK_SIGNATURE
        return Signature(np.rint(centred * (32767 / peak)).astype("<i2").tobytes())

    def _weights_of(self, extent: int) -> npt.NDArray[np.float32]:
        if extent not in self._weights:
            self._weights[extent] = _cell_weights(extent)
        return self._weights[extent]


def _cell_weights(extent: int) -> npt.NDArray[np.float32]:
    """[GRID, extent]: the share of each pixel in each cell; a cell's row sums to 1, borders may cut pixels."""
    edges = np.linspace(0.0, extent, GRID + 1)
    pixels = np.arange(extent)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.clip(covered, 0.0, 1.0) * (GRID / extent), np.float32)

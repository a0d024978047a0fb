"""NaN and infinity in a base: found while its bytes are at hand, named by tensor and position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hfq.schema.errors import NonFiniteWeightError

__all__ = ["Floats", "NonFinite", "all_finite", "find_non_finite", "non_finite_error", "non_finite_line"]

_BLOCK: Final = 1 << 20  # elements, which stay in a cache
_POSITIVE: Final = 0x7F80
_NEGATIVE: Final = 0xFF80

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float16]


@dataclass(frozen=True)
class NonFinite:
    """What a tensor holds that is no finite number once it is rounded to BF16.

    Attributes:
        position: of the first one, an index per axis.
        value: of the first one as stored: nan, inf, -inf, or a number beyond the range of BF16.
        count: how many there are; of a tensor that is refused, those that had been found by then.
    """

    position: tuple[int, ...]
    value: float
    count: int

    def and_more(self, count: int) -> NonFinite:
        """The same with more of them behind."""
        return NonFinite(self.position, self.value, self.count + count)

    def to_json(self) -> dict[str, Any]:
        """For documents; JSON has no NaN, so that the value is text."""
        return {"position": list(self.position), "value": f"{self.value:g}", "count": self.count}

    @property
    def text(self) -> str:
        """`nan at position [5]`."""
        place = f"{self.value:g} at position {list(self.position)}"
        return f"{place}, which becomes infinite in BF16" if np.isfinite(self.value) else place


def all_finite(bits: npt.NDArray[np.uint16]) -> bool:
    """Whether BF16 values, as bits [n], hold neither NaN nor infinity."""
    for begin in range(0, bits.size, _BLOCK):
        part = bits[begin : begin + _BLOCK]
        # Beyond the largest finite number of either sign: two maxima, which cost a fiftieth of hashing.
        if part.max() >= _NEGATIVE or part.view(np.int16).max() >= _POSITIVE:
            return False
    return True


def find_non_finite(
    bits: npt.NDArray[np.uint16], shape: tuple[int, ...], first: int = 0, stored: Floats | None = None
) -> NonFinite | None:
    """The NaNs and infinities among BF16 values.

    Args:
        bits: consecutive values [n] of a tensor.
        shape: of the whole tensor.
        first: row-major index of `bits[0]` in it.
        stored: the values that were rounded [n]; None: these are they.
    """
    if all_finite(bits):
        return None
    places = np.flatnonzero((bits & 0x7FFF) >= _POSITIVE)
    index = int(places[0])
    value = (bits[index : index + 1].astype(np.uint32) << 16).view(np.float32)[0] if stored is None else stored[index]
    position = tuple(int(axis) for axis in np.unravel_index(first + index, shape)) if shape else ()
    return NonFinite(position, float(value), len(places))


def non_finite_error(where: str, found: NonFinite) -> NonFiniteWeightError:
    """The refusal of a base's tensor."""
    return NonFiniteWeightError(
        "a tensor of the base holds what is not a finite number",
        where=where,
        found=found.text,
        todo="download or repair the checkpoint; to take it as it is, say --allow-non-finite "
        "(Python: allow_non_finite=True)",
    )


def non_finite_line(role: str, found: Mapping[str, NonFinite]) -> str:
    """What is said of an expert whose tensors (name -> what is in them) were taken all the same."""
    name, first = next(iter(found.items()))
    tensors = "1 tensor holds" if len(found) == 1 else f"{len(found)} tensors hold"
    return f"{role}: {tensors} what is not a finite number, taken as it is: {name}, {first.text}"

"""Sums of squares, compiled: the places of a row that `_squares` describes, for both formats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._kernels import F64, float_of, inlined
from ._squares import PLACES

__all__ = ["PLACES", "adder"]


def adder(places: int) -> Callable[..., None]:
    """`add_squares` for so many places: as an argument of the kernel the number would make it slower."""

    @inlined
    def add_squares(n: Any, values: Any, originals: Any, errors: Any, powers: Any) -> None:
        """The squares of n fp32 patterns, whose first stands in the first place, added to the float64 sums [places] of
        their places: of value minus original to `errors`, of the original to `powers`."""
        for first in range(0, n, 2 * places):
            left = min(places, n - first)
            right = min(places, n - first - left)
            value, original = values[first : first + left + right], originals[first : first + left + right]
            error, power = errors[:left], powers[:left]
            # Two at a time: the sums are in memory, and half as many go to and fro.
            for i in range(right):
                low, high = F64(float_of(original[i])), F64(float_of(original[places + i]))
                difference, next_difference = F64(float_of(value[i])) - low, F64(float_of(value[places + i])) - high
                error[i] = (error[i] + difference * difference) + next_difference * next_difference
                power[i] = (power[i] + low * low) + high * high
            for i in range(right, left):
                alone = F64(float_of(original[i]))
                difference = F64(float_of(value[i])) - alone
                error[i] += difference * difference
                power[i] += alone * alone

    return add_squares

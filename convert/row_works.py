"""What passes do with the rows of one tensor; see `scan.RowWork`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

from .plain_site import PlainSite
from .scan import ScannedTensor

__all__ = ["PlainRows"]

_Result = TypeVar("_Result")


class PlainRows(Generic[_Result]):
    """Quantizes plainly; without a `plain` nothing is done."""

    def __init__(self, plain: PlainSite | None, end: Callable[[PlainSite | None, ScannedTensor], _Result]) -> None:
        self._plain, self._end = plain, end

    def feed(self, rows: Tensor) -> None:
        """See `RowWork`."""
        if self._plain is not None:
            self._plain.feed(rows)

    def end(self, tensor: ScannedTensor) -> _Result:
        """See `RowWork`."""
        return self._end(self._plain, tensor)

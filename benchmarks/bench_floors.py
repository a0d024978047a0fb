"""What the figures are held against: floors, an aim, and the committed figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

__all__ = ["REGRESSION", "Bound", "Change", "Row", "bounds_of", "changes", "is_kernel", "key_of", "shortfall"]

Row = Mapping[str, Any]
"""A work: `work`, `elements` (None for a command), `threads`, `seconds`; `against`: other -> its seconds and ratio."""

REGRESSION: Final = 0.2
"""A ratio that is smaller by more than this share is a regression."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """How many times faster ours has to be than another.

    Attributes:
        ratio: the other's seconds over ours.
        aim: missing it is reported, and no failure.
    """

    ratio: float
    aim: bool = False


KERNEL_BOUNDS: Final[Mapping[str, Bound]] = {"eager": Bound(8.0), "copy_": Bound(1 / 3, aim=True)}
COMMAND_BOUNDS: Final[Mapping[str, Mapping[str, Bound]]] = {
    "inspect": {"limit": Bound(1 / 1.15)},
    "convert": {"limit": Bound(1 / 1.5)},
    "statistics": {"plain": Bound(1 / 1.1)},
    "generate tail-aware-hif4": {"bf16": Bound(1 / 1.6)},
    "generate boundary-hif8": {"bf16": Bound(1 / 1.6)},
}


@dataclasses.dataclass(frozen=True)
class Change:
    """A ratio now and in the committed figures."""

    row: Row
    other: str
    now: float
    before: float

    @property
    def is_regression(self) -> bool:
        """Whether it fell by more than `REGRESSION`."""
        return self.now < (1 - REGRESSION) * self.before


def is_kernel(row: Row) -> bool:
    """Whether the row is that of a kernel, not of a command."""
    return row["elements"] is not None


def key_of(row: Row) -> tuple[str, int | None, int]:
    """What makes two rows figures of the same work."""
    return row["work"], row["elements"], row["threads"]


def bounds_of(row: Row) -> Mapping[str, Bound]:
    """Other -> bound, of those that the row was measured against."""
    found = COMMAND_BOUNDS.get(row["work"], {})
    if is_kernel(row) and row["work"].startswith("hif") and not row.get("scaling"):
        found = KERNEL_BOUNDS
    return {other: bound for other, bound in found.items() if other in row["against"]}


def shortfall(row: Row, other: str) -> float | None:
    """The share of the bound that is missing, 0 when it is held; None without a bound."""
    bound = bounds_of(row).get(other)
    if bound is None:
        return None
    return max(0.0, 1 - float(row["against"][other]["ratio"][0]) / bound.ratio)


def changes(rows: Sequence[Row], committed: Sequence[Row]) -> Iterator[Change]:
    """Every ratio that both have, in the order of `rows`."""
    before = {key_of(row): row["against"] for row in committed}
    for row in rows:
        for other, found in row["against"].items():
            old = before.get(key_of(row), {}).get(other)
            if old is not None:
                yield Change(row, other, float(found["ratio"][0]), float(old["ratio"][0]))

"""What every level of a verification reports: a verdict, figures, and for a failure the node or initializer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final, Literal

__all__ = ["Failure", "Level", "Verdict", "finite"]

Verdict = Literal["passed", "failed", "inconclusive", "not applicable"]

_LISTED: Final = 20


@dataclass(frozen=True)
class Failure:
    """One thing that is not as it should be.

    Attributes:
        where: the node, initializer or metadata entry.
        what: one clause.
        expected, found: in words.
    """

    where: str
    what: str
    expected: str | None = None
    found: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For a report; names from a file are cut to a length that any report bears."""
        return {
            "where": self.where[:400],
            "what": self.what[:400],
            "expected": None if self.expected is None else self.expected[:400],
            "found": None if self.found is None else self.found[:400],
        }


@dataclass
class Level:
    """One level of a verification.

    Attributes:
        name: of the level.
        figures: what was measured; numbers, short texts, and lists or tables of them.
        failures: in the order found.
        reason: why the verdict is neither "passed" nor "failed".
        undecided: whether figures, by their own control, decide nothing.
        seconds: wall time.
    """

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    reason: str | None = None
    undecided: bool = False
    seconds: float = 0.0

    @classmethod
    def skipped(cls, name: str, reason: str) -> Level:
        """A level that does not apply, and why."""
        return cls(name, reason=reason)

    @property
    def verdict(self) -> Verdict:
        """Failures weigh most; a reason without them is a level that says nothing."""
        if self.failures:
            return "failed"
        if self.undecided:
            return "inconclusive"
        return "passed" if self.reason is None else "not applicable"

    def fail(self, where: str, what: str, expected: object = None, found: object = None) -> None:
        """Note a failure."""
        texts = [None if value is None else str(value) for value in (expected, found)]
        self.failures.append(Failure(where, what, *texts))

    def to_json(self) -> dict[str, Any]:
        """For a report; of many failures the first few."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "figures": self.figures,
            "failure_count": len(self.failures),
            "failures": [failure.to_json() for failure in self.failures[:_LISTED]],
            "seconds": round(self.seconds, 3),
        }


def finite(value: float) -> float | None:
    """A number as JSON has them; None for NaN and infinity."""
    return value if math.isfinite(value) else None

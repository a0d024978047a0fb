"""What a calibration collects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hfq.schema.errors import UsageError

from .kept_calls import MOST_CALLS

__all__ = ["BY", "CalibrationOptions"]

BY: Final = ("bins", "branch")

_DEFAULT_CALLS: Final = 4
"""12 steps: nearly every one of the high-noise expert of Wan 2.2, which has 13 of 40, and every second or third of the
low-noise expert's. With both branches an analysis of 40 blocks then runs an expert some 700 times."""


@dataclass(frozen=True)
class CalibrationOptions:
    """What is collected.

    Attributes:
        rows: rows per call that enter the histograms; None for all.
        by: extra histogram keys, of "bins" and "branch".
        keep_inputs: rows kept per expert, input group and timestep bin.
        keep_calls: a third of the whole forwards that are kept per expert and guidance branch, spread over its steps;
            None for 4 when rows are kept.
        parts: keep one mergeable calibration per prompt.
        image, last_image: conditioning frames for prompts that name none: a file or "blank".
    """

    rows: int | None = 4096
    by: tuple[str, ...] = ()
    keep_inputs: int = 0
    keep_calls: int | None = None
    parts: bool = False
    image: str | None = None
    last_image: str | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise UsageError("rows is a number from 1, or all", found=self.rows)
        if self.keep_inputs < 0:
            raise UsageError("keep_inputs is a number from 0", found=self.keep_inputs)
        if self.keep_calls is not None and not 0 <= self.keep_calls <= MOST_CALLS:
            raise UsageError(f"keep_calls is a number from 0 to {MOST_CALLS}", found=self.keep_calls)
        unknown = [key for key in self.by if key not in BY]
        if unknown or len(set(self.by)) != len(self.by):
            raise UsageError("not histogram keys", expected="some of " + ", ".join(BY), found=self.by)

    @property
    def kept_calls(self) -> int:
        """`keep_calls`, or its default: errors of whole blocks go with those of single linears."""
        return _DEFAULT_CALLS * (self.keep_inputs > 0) if self.keep_calls is None else self.keep_calls

    @property
    def sampled_calls(self) -> int:
        """Calls per timestep bin and guidance branch that are stored, and hashed, with the statistics: one where rows
        are kept with calls. What more calls are kept for an analysis does not change a calibration's id."""
        return int(self.keep_inputs > 0 and self.kept_calls > 0)

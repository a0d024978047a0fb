"""What a calibration collects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hfq.schema.errors import UsageError

__all__ = ["BY", "CalibrationOptions"]

BY: Final = ("bins", "branch")


@dataclass(frozen=True)
class CalibrationOptions:
    """What is collected.

    Attributes:
        rows: rows per call that enter the histograms; None for all.
        by: extra histogram keys, of "bins" and "branch".
        keep_inputs: rows kept per expert, input group and timestep bin.
        parts: keep one mergeable calibration per prompt.
        image, last_image: conditioning frames for prompts that name none: a file or "blank".
    """

    rows: int | None = 4096
    by: tuple[str, ...] = ()
    keep_inputs: int = 0
    parts: bool = False
    image: str | None = None
    last_image: str | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise UsageError("rows is a number from 1, or all", found=self.rows)
        if self.keep_inputs < 0:
            raise UsageError("keep_inputs is a number from 0", found=self.keep_inputs)
        unknown = [key for key in self.by if key not in BY]
        if unknown or len(set(self.by)) != len(self.by):
            raise UsageError("not histogram keys", expected="some of " + ", ".join(BY), found=self.by)

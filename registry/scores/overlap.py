"""Prompts that a variant was calibrated or chosen on, and is scored on: its scores there flatter it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

__all__ = ["Overlap", "find_overlap"]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Hashes of evaluated prompts that were seen before. `unhashed`: videos whose prompt nobody recorded."""

    prompts: int
    unhashed: int
    calibration: tuple[str, ...]
    selection: tuple[str, ...]

    @property
    def seen(self) -> frozenset[str]:
        return frozenset(self.calibration) | frozenset(self.selection)

    def __str__(self) -> str:
        text = (
            f"of {self.prompts} prompts {len(self.calibration)} are in the calibration "
            f"and {len(self.selection)} in the selection"
        )
        return f"{text}; unknown for {self.unhashed} videos" if self.unhashed else text


def find_overlap(
    evaluated: Iterable[str | None], calibration: Collection[str], selection: Collection[str] = ()
) -> Overlap:
    """Overlap of the prompts of scored videos, one hash (hex SHA-256) or None per video, with earlier uses."""
    videos = list(evaluated)
    prompts = {sha256 for sha256 in videos if sha256 is not None}
    return Overlap(
        prompts=len(prompts),
        unhashed=sum(sha256 is None for sha256 in videos),
        calibration=tuple(sorted(prompts.intersection(calibration))),
        selection=tuple(sorted(prompts.intersection(selection))),
    )

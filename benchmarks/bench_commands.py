"""Rows of whole commands, from the figures that their own scripts wrote: what they take, and over what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from bench_floors import Row
from timing import ratio, spread

__all__ = ["COMMANDS", "Command"]


def calibration_rows(document: Mapping[str, Any]) -> list[Row]:
    """Forwards with statistics against plain ones, repetition by repetition."""
    plain = document["plain"]["seconds"]
    return [
        {
            "work": key,
            "label": label,
            "elements": None,
            "threads": document["machine"]["threads"],
            "seconds": spread(document[key]["seconds"]),
            "against": {"plain": {"seconds": spread(plain), "ratio": ratio(plain, document[key]["seconds"])}},
        }
        for key, label in (
            ("statistics", f"forward of a 14B block with statistics, {document['tokens']:,} tokens"),
            ("with_kept_rows", f"the same, {document['keep_inputs']:,} inputs kept"),
        )
    ]


def conversion_rows(document: Mapping[str, Any]) -> list[Row]:
    """Commands against the limit: SHA-256 of every byte that has to be hashed, and for `convert` the kernel alone."""
    return [
        {
            "work": row["work"],
            "label": row["label"],
            "elements": None,
            "threads": row["threads"],
            "seconds": spread(row["seconds"]),
            "against": {
                "limit": {"seconds": spread(row["limit_seconds"]), "ratio": ratio(row["limit_seconds"], row["seconds"])}
            },
        }
        for row in document["rows"]
    ]


@dataclasses.dataclass(frozen=True)
class Command:
    """A script of whole commands.

    Attributes:
        title: of its table.
        script: in this folder.
        results: the JSON that it writes.
        rows: of that document.
        over: what its rows are divided by, in words.
    """

    title: str
    script: str
    results: str
    rows: Callable[[Mapping[str, Any]], list[Row]]
    over: str


COMMANDS: Final = (
    Command(
        "Commands",
        "conversion.py",
        "conversion.json",
        conversion_rows,
        "SHA-256 of the same bytes, and for `convert` the kernel alone",
    ),
    Command(
        "Calibration statistics", "calibration_cost.py", "calibration-cost.json", calibration_rows, "a plain forward"
    ),
)

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
    """Commands against their limits, run by run: whole processes as a user starts them, then without Python's start."""
    size_gb = document["sizes_bytes"]["files"] / 1e9
    rows: list[Row] = []
    for key, what, suffix in (
        ("command_seconds", "{} of {:.1f} GB", ""),
        ("seconds", "{} of {:.1f} GB, without the start of Python", " after imports"),
    ):
        for name, runs in document["runs"].items():
            seconds, limit = [run[key] for run in runs], [run["limit_seconds"] for run in runs]
            rows.append(
                {
                    "work": name + suffix,
                    "label": what.format(f"hfq {name}", size_gb),
                    "elements": None,
                    "threads": document["threads"],
                    "seconds": spread(seconds),
                    "peak_bytes": max(run["peak_rss_bytes"] for run in runs),
                    "against": {"limit": {"seconds": spread(limit), "ratio": ratio(limit, seconds)}},
                }
            )
    return rows


def generation_rows(document: Mapping[str, Any]) -> list[Row]:
    """Quantized clips of the tiny Wan against BF16 ones, round by round."""
    plain = document["seconds"]["bf16"]
    return [
        {
            "work": f"generate {recipe}",
            "label": f"clip of the tiny Wan, {document['steps']} steps, {recipe}",
            "elements": None,
            "threads": document["threads"],
            "seconds": spread(seconds),
            "against": {"bf16": {"seconds": spread(plain), "ratio": ratio(plain, seconds)}},
        }
        for recipe, seconds in document["seconds"].items()
        if recipe != "bf16"
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
        "SHA-256 of the same bytes, and the kernel alone where it runs",
    ),
    Command(
        "Calibration statistics", "calibration_cost.py", "calibration-cost.json", calibration_rows, "a plain forward"
    ),
    Command("Quantized clips", "generation.py", "generation.json", generation_rows, "a BF16 clip"),
)

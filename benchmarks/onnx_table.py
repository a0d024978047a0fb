"""The tables of docs/onnx.md, made from the figures of `onnx_graphs.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from result_table import replace_tables

__all__ = ["replace_figures", "tables"]

BEGIN: Final = "<!-- figures: begin -->"
END: Final = "<!-- figures: end -->"
COLUMNS: Final = (
    "preset", "export, s", "size, kB", "nodes", "of them ours", "load, ms", "plain", "run, ms", "plain", "ratio",
    "verification",
)  # fmt: skip
TITLES: Final = {"site": "One linear", "block": "One block", "model": "The whole expert"}


def tables(document: Mapping[str, Any]) -> str:
    """A table per part that was measured, in Markdown."""
    parts = []
    for part, scope in document["parts"].items():
        rows = [row for row in document["rows"] if row["part"] == part]
        if part not in document["plain"] or not rows:
            continue
        plain = document["plain"][part]
        first = ["*plain float32*", f"{plain['export_seconds']:.1f}", _kilobytes(plain), str(plain["nodes"])]
        lines = _lines([[*first, *[""] * (len(COLUMNS) - len(first))], *(_row(row) for row in rows)])
        parts.append(f"**{TITLES[part]}** (`{scope}`)\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def replace_figures(page: str, text: str) -> str:
    """A page with the figures between its two marks replaced; see `replace_tables`."""
    return replace_tables(page, text, BEGIN, END)


def _row(row: Mapping[str, Any]) -> list[str]:
    several = f" ({row['graphs']} graphs)" if row["graphs"] > 1 else ""
    return [
        row["preset"],
        f"{row['export_seconds']:.1f}",
        _kilobytes(row) + several,
        str(row["nodes"]),
        str(sum(row["own_nodes"].values())),
        _milliseconds(row["load_ms"]),
        _milliseconds(row["plain_load_ms"]),
        _milliseconds(row["run_ms"]),
        _milliseconds(row["plain_run_ms"]),
        f"{row['run_ms'] / row['plain_run_ms']:.2f}",
        _verdicts(row["levels"]),
    ]


def _verdicts(graphs: Sequence[Mapping[str, str]]) -> str:
    """How many levels passed, over all graphs, and the name of every one that did not."""
    counts = Counter(verdict for levels in graphs for verdict in levels.values())
    applied = sum(counts.values()) - counts["not applicable"]
    words = [f"{counts['passed']} of {applied} passed"]
    for verdict in ("failed", "inconclusive"):
        names = Counter(name for levels in graphs for name, found in levels.items() if found == verdict)
        if names:
            shown = ", ".join(name if count == 1 else f"{count} {name}" for name, count in names.items())
            words.append(f"{verdict}: {shown}")
    return "; ".join(words)


def _kilobytes(row: Mapping[str, Any]) -> str:
    return f"{row['size_bytes'] / 1000:,.0f}"


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]

"""`hfq leaderboard`: the best variants of a base by one recorded metric.

A command of its own and not an option of `list`: its rows are scores of one base, suite, prompt set and way of
generating, its columns say with which prompts a variant was made, and the base stands among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hfq.console import emit, json_option, note
from hfq.registry import open_registry
from hfq.registry.text import display_id, printable

if TYPE_CHECKING:
    from hfq.registry.leaderboard import Leaderboard, Ranked

__all__ = ["leaderboard_command"]


@click.command("leaderboard")
@click.option("--metric", required=True, metavar="NAME", help="Such as subject_consistency or psnr.")
@click.option("--suite", metavar="NAME", help="Who computed it, such as vbench; needed where several did.")
@click.option("--prompt-set", metavar="NAME", help='What was generated; "" for scores that name none.')
@click.option("--base", metavar="ROOT", help="First digits of a bf16 root or of the base's id; needed with several.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many deltas.")
@json_option
def leaderboard_command(
    metric: str, suite: str | None, prompt_set: str | None, base: str | None, limit: int, as_json: bool
) -> None:
    """Rank the deltas of one base by the mean of one metric, with the base among them.

    Scores of clips that were generated with other settings than the base's (guidance, steps, shift, size and the like)
    are counted, not ranked. OVERLAP: how many of the scored prompts the delta was calibrated or selected on. Means over
    different videos are no comparison: `hfq compare A B` pairs them.
    """
    found = open_registry().leaderboard(metric, base, suite=suite, prompt_set=prompt_set, limit=limit)
    emit(found.to_json(), "\n".join(_lines(found)), as_json)
    for group in found.left_out:
        whose = "the base's" if found.reference == "base" else "those of most deltas"
        differences = "; ".join(str(one) for one in group.settings)
        note(f"{group.scores} scores left out, their settings are not {whose}: {printable(differences, 400)}")
    shown = sum(row.rank is not None for row in found.rows)
    if shown < found.total:
        note(f"{shown} of {found.total} deltas shown; --limit shows more")


def _lines(found: Leaderboard) -> list[str]:
    where = f" on {printable(found.prompt_set)}" if found.prompt_set else ""
    base = display_id(found.base_id, "base")
    metric = f"{printable(found.metric)} of {printable(found.metric_suite)}{where}"
    lines = [f"{metric}, {found.direction} is better, {base}"]
    table: list[tuple[str, ...]] = [("RANK", "VARIANT", "RECIPE", "MEAN", "VIDEOS", "ALIASES", "OVERLAP")]
    table += [_cells(row) for row in found.rows]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    for cells in table:
        lines.append("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip())
    doubts = dict.fromkeys(str(one) for row in found.rows for one in row.settings)
    lines += [f"setting      * {printable(line)}" for line in doubts]
    if found.unrecorded:
        lines.append(f"setting      not recorded: {', '.join(found.unrecorded)}")
    return lines


def _cells(row: Ranked) -> tuple[str, ...]:
    return (
        "base" if row.rank is None else str(row.rank),
        str(row.variant),
        "-" if row.recipe is None else printable(row.recipe),
        f"{row.mean:.4f}" + ("*" if row.settings else ""),
        str(row.videos),
        ", ".join(row.aliases) or "-",
        row.overlap or "-",
    )

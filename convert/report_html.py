"""`report.json` as one self-contained HTML page: tables and static SVG plots, no script, nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from hfq.schema.documents import read_document
from hfq.schema.errors import DigestMismatchError, MissingPathError

from .delta import REPORT, Delta
from .delta_inspect import describe_delta, short_id
from .report_onnx import graph_section
from .site_error import block_of
from .svg_plots import block_number, block_ticks, forward_order, plotting, render, to_svg

__all__ = ["render_report"]

_COLOURS: Final = {"high_noise": "#b8432f", "low_noise": "#2f6db8", "single": "#2f6db8"}
_WORST: Final = 15


def render_report(delta: Delta, onnx: Mapping[str, Any] | None = None) -> str:
    """The page of a delta.

    Args:
        onnx: a document `hfq.onnx-report/1`, read and checked; its graphs become a section.

    Raises:
        MissingPathError: the delta has no `report.json`.
        DigestMismatchError: the report, or that of the graphs, is of another delta.
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    path = delta.path / REPORT
    if not path.is_file():
        raise MissingPathError("the delta has no report", where=path, todo="convert again; the id stays the same")
    report = read_document(path, "report")
    if report["delta"] != delta.id:
        raise DigestMismatchError(
            "the report is of another delta", where=path, expected=short_id(delta.id), found=short_id(report["delta"])
        )
    if onnx is not None and onnx["delta"] != delta.id:
        raise DigestMismatchError(
            "the report of the graphs is of another delta",
            expected=short_id(delta.id),
            found=short_id(onnx["delta"]),
            todo="verify the graphs of this delta: hfq verify DELTA --base MODEL --onnx FILE -o OUT",
        )
    with plotting(delta.id):
        figures = [
            {"title": "Error per block", "svg": _block_plot(report["experts"]), "note": _BLOCK_NOTE},
            {"title": "Error per linear", "svg": _site_map(report["experts"]), "note": _SITE_NOTE},
        ]
    return render(
        "report.html.j2",
        figures,
        delta=describe_delta(delta),
        fitted=delta.recipe.needs_inputs,
        short=short_id(delta.id),
        experts=report["experts"],
        worst=_worst(report["experts"]),
        graphs=[] if onnx is None else [graph_section(graph) for graph in onnx["graphs"]],
    )


_BLOCK_NOTE: Final = (
    "Normalised mean squared error: squared difference to the original, summed, over the original's squares. Solid: "
    "the weights. Dashed: the linears' outputs on kept calibration inputs, where the calibration has any."
)
_SITE_NOTE: Final = "Normalised mean squared error of each linear's weight, or of its output where that was measured."


def _block_plot(experts: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.0))
    axes = figure.add_subplot()
    names = plotted_blocks(experts)
    largest = 0.0
    for role, entry in experts.items():
        for kind, style in (("weight_nmse", "-"), ("output_nmse", "--")):
            # A block that is kept is a gap.
            values = [entry["blocks"].get(name, {}).get(kind) for name in names]
            known = [value for value in values if value is not None]
            if known:
                label = f"{role.replace('_', ' ')}, {kind.partition('_')[0]}"
                shown = [np.nan if value is None else value for value in values]
                axes.plot(shown, style, marker="o", markersize=3, color=_COLOURS[role], label=label)
                largest = max(largest, *known)
    axes.set_xticks(*block_ticks(names))
    axes.set_xlim(-0.5, max(0.5, len(names) - 0.5))
    axes.set_xlabel("block")
    axes.set_ylabel("NMSE")
    axes.set_ylim(0, 1.1 * largest if largest > 0 else 1)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    return to_svg(figure)


def plotted_blocks(experts: Mapping[str, Any]) -> list[str]:
    """Every block up to the last one that any expert has quantized, kept ones too, in the order of the model."""
    last: dict[str, int] = {}
    for entry in experts.values():
        for name in entry["blocks"]:
            stack, number = block_number(name)
            if number >= 0:
                last[stack] = max(number, last.get(stack, 0))
    return [f"{stack}.{number}" for stack in sorted(last) for number in range(last[stack] + 1)]


def _site_map(experts: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    shown = {role: entry["sites"] for role, entry in experts.items() if entry["sites"]}
    figure = Figure(figsize=(8.0, 0.5 + 2.6 * max(1, len(shown))))
    for index, (role, sites) in enumerate(shown.items(), 1):
        blocks = sorted({block_of(site) for site in sites}, key=block_number)
        kinds = sorted({site.removeprefix(block_of(site) + ".") for site in sites}, key=forward_order)
        values = np.full((len(kinds), len(blocks)), np.nan)
        for site, entry in sites.items():
            block = block_of(site)
            value = _shown(entry)
            values[kinds.index(site.removeprefix(block + ".")), blocks.index(block)] = (
                np.nan if value is None else value
            )
        axes = figure.add_subplot(len(shown), 1, index)
        # Drawn as shapes: an embedded bitmap would need a looser content policy.
        cells = axes.pcolormesh(values, cmap="viridis")
        axes.invert_yaxis()
        axes.set_yticks([row + 0.5 for row in range(len(kinds))], kinds)
        places, numbers = block_ticks(blocks)
        axes.set_xticks([place + 0.5 for place in places], numbers)
        axes.set_title(role.replace("_", " "), loc="left")
        bar = figure.colorbar(cells, ax=axes, label="NMSE", format="%.1e")
        if bar.solids is not None:
            bar.solids.set_rasterized(False)
    figure.tight_layout()
    return to_svg(figure)


def _shown(entry: Mapping[str, Any]) -> float | None:
    """The error of a linear's output where it was measured, else of its weight; None for a weight of zeros."""
    value: float | None = entry["weight_nmse"] if entry["output_nmse"] is None else entry["output_nmse"]
    return value


def _worst(experts: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"expert": role, "site": site, **entry}
        for role, expert in experts.items()
        for site, entry in expert["sites"].items()
    ]
    rows.sort(key=lambda row: -(_shown(row) or 0.0))
    return rows[:_WORST]

"""`report.json` as one self-contained HTML page: tables and static SVG plots, no script, nothing loaded."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from hfq.schema.documents import read_document
from hfq.schema.errors import DigestMismatchError, MissingDependencyError, MissingPathError

from .delta import REPORT, Delta
from .delta_inspect import describe_delta, short_id
from .keymap import BLOCK_MODULES
from .site_error import block_of

__all__ = ["render_report"]

_COLOURS: Final = {"high_noise": "#b8432f", "low_noise": "#2f6db8", "single": "#2f6db8"}
_WORST: Final = 15


def render_report(delta: Delta) -> str:
    """The page of a delta.

    Raises:
        MissingPathError: the delta has no `report.json`.
        DigestMismatchError: the report is of another delta.
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
    try:
        import jinja2
        import matplotlib as mpl
    except ImportError as error:
        raise MissingDependencyError(
            "the report needs optional packages", found=error, todo="install them: pip install 'hfq[report]'"
        ) from None
    mpl.use("svg")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hfq.convert", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    # Identifiers inside the SVG are derived from this salt: the same report gives the same page.
    with mpl.rc_context({"svg.hashsalt": delta.id, "font.size": 9, "svg.fonttype": "none"}):
        figures = [
            {"title": "Error per block", "svg": _block_plot(report["experts"]), "note": _BLOCK_NOTE},
            {"title": "Error per linear", "svg": _site_map(report["experts"]), "note": _SITE_NOTE},
        ]
    template = environment.get_template("report.html.j2")
    return template.render(
        delta=describe_delta(delta),
        short=short_id(delta.id),
        experts=report["experts"],
        figures=[{**figure, "svg": _markup(figure["svg"])} for figure in figures],
        worst=_worst(report["experts"]),
    )


_BLOCK_NOTE: Final = (
    "Normalised mean squared error: squared difference to the original, summed, over the original's squares. Solid: "
    "the weights. Dashed: the linears' outputs on kept calibration inputs, where the calibration has any."
)
_SITE_NOTE: Final = "Normalised mean squared error of each linear's weight, or of its output where that was measured."


def _markup(svg: str) -> Any:
    import markupsafe

    # The only markup that is not escaped: drawn by matplotlib from numbers and schema-checked names.
    return markupsafe.Markup(svg)


def _number(name: str) -> tuple[str, int]:
    stack, _, index = name.partition(".")
    return stack, int(index) if index.isdigit() else -1


def _forward_order(kind: str) -> tuple[int, str]:
    """Linears of a block in the order of the forward pass; those outside the blocks after them."""
    order = [module.original for module in BLOCK_MODULES]
    return (order.index(kind) if kind in order else len(order), kind)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _block_plot(experts: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.0))
    axes = figure.add_subplot()
    for role, entry in experts.items():
        blocks = sorted((name for name in entry["blocks"] if name != "outside"), key=_number)
        for kind, style in (("weight_nmse", "-"), ("output_nmse", "--")):
            values = [entry["blocks"][name][kind] for name in blocks]
            if blocks and all(value is not None for value in values):
                label = f"{role.replace('_', ' ')}, {kind.partition('_')[0]}"
                colour = _COLOURS[role]
                axes.plot(range(len(blocks)), values, style, marker="o", markersize=3, color=colour, label=label)
    axes.set_xlabel("block")
    axes.set_ylabel("NMSE")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    return _svg(figure)


def _site_map(experts: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    shown = {role: entry["sites"] for role, entry in experts.items() if entry["sites"]}
    figure = Figure(figsize=(8.0, 0.5 + 2.6 * max(1, len(shown))))
    for index, (role, sites) in enumerate(shown.items(), 1):
        blocks = sorted({block_of(site) for site in sites}, key=_number)
        kinds = sorted({site.removeprefix(block_of(site) + ".") for site in sites}, key=_forward_order)
        values = np.full((len(kinds), len(blocks)), np.nan)
        for site, entry in sites.items():
            block = block_of(site)
            value = entry["weight_nmse"] if entry["output_nmse"] is None else entry["output_nmse"]
            values[kinds.index(site.removeprefix(block + ".")), blocks.index(block)] = value
        axes = figure.add_subplot(len(shown), 1, index)
        # Drawn as shapes: an embedded bitmap would need a looser content policy.
        cells = axes.pcolormesh(values, cmap="viridis")
        axes.invert_yaxis()
        axes.set_yticks([row + 0.5 for row in range(len(kinds))], kinds)
        step = max(1, len(blocks) // 20)
        numbers = [name.partition(".")[2] or name for name in blocks[::step]]
        axes.set_xticks([column + 0.5 for column in range(0, len(blocks), step)], numbers)
        axes.set_title(role.replace("_", " "), loc="left")
        bar = figure.colorbar(cells, ax=axes, label="NMSE", format="%.1e")
        if bar.solids is not None:
            bar.solids.set_rasterized(False)
    figure.tight_layout()
    return _svg(figure)


def _worst(experts: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"expert": role, "site": site, **entry}
        for role, expert in experts.items()
        for site, entry in expert["sites"].items()
    ]
    rows.sort(key=lambda row: -(row["output_nmse"] if row["output_nmse"] is not None else row["weight_nmse"]))
    return rows[:_WORST]

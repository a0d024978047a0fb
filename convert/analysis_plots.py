"""The plots of an analysis: experts side by side, on common scales, so that they can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from .svg_plots import block_number, block_ticks, forward_order, to_svg

__all__ = ["activation_profile", "arm_order", "arms_plot", "crest_map", "error_map", "error_profile", "model_profile"]

_Experts = Mapping[str, Mapping[str, Any]]
_Getter = Callable[[Mapping[str, Any]], float | None]

# Told apart by people who see colours differently, and by the marker where they are printed in grey.
_RED, _ORANGE, _BLUE = "#b8432f", "#d68a00", "#2f6db8"
_WIDTH: Final = 9.6
_PANEL_TICKS: Final = 10


def activation_profile(experts: _Experts) -> str:
    """Maximum, 99.9th percentile and rms of the inputs of each block."""
    lines = [("maximum", "max", _RED, "^"), ("p99.9", "p99_9", _ORANGE, "s"), ("rms", "rms", _BLUE, "o")]
    series = [(label, _of("activation", field), colour, marker) for label, field, colour, marker in lines]
    return _profile({role: expert["blocks"] for role, expert in experts.items()}, series, "|x| of the inputs")


def error_profile(experts: _Experts) -> str:
    """NMSE of each block's weights, inputs and outputs of linears."""
    series: list[tuple[str, _Getter, str, str]] = [
        ("outputs", lambda block: block["output_nmse"], _RED, "^"),
        ("inputs", _of("activation", "nmse"), _ORANGE, "s"),
        ("weights", _of("weight", "nmse"), _BLUE, "o"),
    ]
    return _profile({role: expert["blocks"] for role, expert in experts.items()}, series, "NMSE of linears")


def model_profile(experts: _Experts) -> str | None:
    """Isolated and propagated error of each block; None when no expert was run."""
    blocks = {role: expert["model"]["blocks"] for role, expert in experts.items() if expert["model"] is not None}
    if not blocks:
        return None
    series: list[tuple[str, _Getter, str, str]] = [
        ("isolated, of what the block adds", lambda block: block["isolated_contribution"], _RED, "^"),
        ("isolated, of the block's output", lambda block: block["isolated"], _ORANGE, "s"),
        ("propagated to the model's output", lambda block: block["propagated"], _BLUE, "o"),
    ]
    return _profile(blocks, series, "NMSE", lambda block: block["intervals"]["propagated"])


def _of(part: str, field: str) -> _Getter:
    return lambda block: block[part][field]


def _title(role: str) -> str:
    return role.replace("_", " ")


def _profile(
    experts: Mapping[str, Mapping[str, Any]],
    series: Iterable[tuple[str, _Getter, str, str]],
    label: str,
    interval_of: Callable[[Mapping[str, Any]], Sequence[float] | None] = lambda block: None,
) -> str:
    """`interval_of` gives the ends of a bar about the last of the series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 3.1), layout="constrained")
    panels = figure.subplots(1, len(experts), sharey=True, squeeze=False)[0]
    for axes, (role, blocks) in zip(panels, experts.items(), strict=True):
        names = sorted((name for name in blocks if name != "outside"), key=block_number)
        for name, value_of, colour, marker in series:
            # A logarithmic axis has no place for zero, nor for what is not known: the line has a gap there.
            values = [value_of(blocks[block]) or math.nan for block in names]
            axes.plot(values, marker=marker, markersize=3.5, linewidth=1.2, color=colour, label=name)
        for place, (low, high) in enumerate(interval_of(blocks[block]) or (math.nan, math.nan) for block in names):
            axes.plot([place, place], [low or math.nan, high or math.nan], color=_BLUE, linewidth=3, alpha=0.35)
        axes.set_title(_title(role), loc="left")
        axes.set_xlabel("block")
        axes.set_xticks(*block_ticks(names, _PANEL_TICKS))
        axes.grid(alpha=0.3)
    drawn = [value for axes in panels for line in axes.lines for value in line.get_ydata() if not math.isnan(value)]
    if drawn:
        panels[0].set_yscale("log")
        _label_decades(panels[0].yaxis, min(drawn), max(drawn))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
    panels[0].set_ylabel(label)
    return to_svg(figure)


def _label_decades(axis: Any, lowest: float, highest: float) -> None:
    """Label a logarithmic axis so that a range of less than a decade has labels too."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    ratio = highest / lowest
    subs = (1, 1.5, 2, 3, 5, 7) if ratio < 10 else (1, 2, 5) if ratio < 300 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def error_map(experts: _Experts) -> tuple[str, str]:
    """NMSE of every linear of every block, and which it is: of outputs, else of inputs, else of weights."""
    sites = {role: expert["sites"] for role, expert in experts.items()}
    every = [site for named in sites.values() for site in named.values()]
    inputs = {role: expert["inputs"] for role, expert in experts.items()}
    value_of: Callable[[str, Mapping[str, Any]], float | None]
    if all(site["output_nmse"] is not None for site in every):
        what, value_of = "outputs", lambda role, site: site["output_nmse"]
    elif all(group["nmse"] is not None for groups in inputs.values() for group in groups.values()):
        what, value_of = "inputs", lambda role, site: inputs[role][site["input"]]["nmse"]
    else:
        what, value_of = "weights", lambda role, site: site["weight"]["nmse"]
    cells = {
        role: {_cell(name): value_of(role, site) for name, site in named.items() if site["block"] != "outside"}
        for role, named in sites.items()
    }
    return _heat_map(cells, f"NMSE of {what}"), what


def crest_map(experts: _Experts) -> str:
    """Crest factor of every input of every block."""
    cells = {
        role: {_cell(name): group["crest"] for name, group in expert["inputs"].items() if _in_block(name)}
        for role, expert in experts.items()
    }
    return _heat_map(cells, "crest factor of inputs")


def _in_block(name: str) -> bool:
    return name.startswith(("blocks.", "vace_blocks."))


def _cell(name: str) -> tuple[str, str]:
    """(block, kind) of `blocks.7.ffn.0`."""
    stack, index, kind = name.split(".", 2)
    return f"{stack}.{index}", kind


def _heat_map(experts: Mapping[str, Mapping[tuple[str, str], float | None]], label: str) -> str:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    kinds = sorted({kind for cells in experts.values() for _, kind in cells}, key=_input_order)
    positive = [value for cells in experts.values() for value in cells.values() if value]
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.26 * max(1, len(kinds))), layout="constrained")
    panels = figure.subplots(1, len(experts), sharey=True, squeeze=False)[0]
    lowest = min(positive, default=1.0)
    norm = LogNorm(lowest, max(1.01 * lowest, *positive) if positive else 10.0)
    for axes, (role, cells) in zip(panels, experts.items(), strict=True):
        blocks = sorted({block for block, _ in cells}, key=block_number)
        values = np.full((len(kinds), len(blocks)), np.nan)
        for (block, kind), value in cells.items():
            values[kinds.index(kind), blocks.index(block)] = value or np.nan
        # Drawn as shapes: an embedded bitmap would need a looser content policy.
        drawn = axes.pcolormesh(np.ma.masked_invalid(values), cmap="viridis", norm=norm)
        axes.set_facecolor("#dddddd")
        axes.set_title(_title(role), loc="left")
        axes.set_xlabel("block")
        places, numbers = block_ticks(blocks, _PANEL_TICKS)
        axes.set_xticks([place + 0.5 for place in places], numbers)
    panels[0].set_yticks([row + 0.5 for row in range(len(kinds))], kinds)
    panels[0].invert_yaxis()
    bar = figure.colorbar(drawn, ax=list(panels), label=label, pad=0.01)
    _label_decades(bar.ax.yaxis, norm.vmin or 1.0, norm.vmax or 1.0)
    if bar.solids is not None:
        bar.solids.set_rasterized(False)
    return to_svg(figure)


def _input_order(kind: str) -> tuple[int, str]:
    """As `forward_order`, with shared inputs such as `self_attn.qkv` where their first linear is."""
    shared = {"self_attn.qkv": "self_attn.q", "cross_attn.kv": "cross_attn.k", "cross_attn.kv_img": "cross_attn.k_img"}
    return forward_order(shared.get(kind, kind))


def arms_plot(experts: _Experts) -> str | None:
    """NMSE of the model's output when some blocks are kept, with intervals; None when no expert was run."""
    from matplotlib.figure import Figure

    arms = {role: expert["model"]["arms"] for role, expert in experts.items() if expert["model"] is not None}
    if not arms:
        return None
    names = sorted({name for found in arms.values() for name in found}, key=arm_order)
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.28 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(arms), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (role, found) in zip(panels, arms.items(), strict=True):
        for row, name in enumerate(names):
            if name not in found:
                continue
            low, high = found[name]["interval"] or [found[name]["nmse"]] * 2
            colour = "#777777" if name.startswith("random") else _BLUE
            axes.plot([low, high], [row, row], color=colour, linewidth=1.5, solid_capstyle="butt")
            axes.plot([found[name]["nmse"]], [row], "o", color=colour, markersize=5)
        axes.set_title(_title(role), loc="left")
        axes.set_xlabel("NMSE of the model's output")
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(names)), [f"keep {name}" for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[0].set_xlim(left=0)
    panels[0].ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    panels[0].locator_params(axis="x", nbins=6)
    return to_svg(figure)


def arm_order(name: str) -> tuple[int, str]:
    """Sort key: none, first, last, both, then the random controls."""
    kind = "both" if " + " in name else name.partition(" ")[0]
    return ("none", "first", "last", "both", "random").index(kind), name

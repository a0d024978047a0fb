"""`analysis.json` as one self-contained HTML page: tables and static SVG plots, no script, nothing loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from .analysis_plots import (
    activation_profile,
    arm_order,
    arms_plot,
    crest_map,
    error_map,
    error_profile,
    model_profile,
)
from .svg_plots import block_number, plotting, render

__all__ = ["render_analysis"]

_WORST: Final = 20

_ACTIVATIONS: Final = (
    "Inputs of each block's linears, all calls of the calibration pooled. Maximum and rms are over every element, the "
    "percentile over the sampled rows; a gap is a percentile that the calibration cannot answer."
)
_LINEARS: Final = (
    "Normalised mean squared error: squared difference to the original, summed, over the original's squares, of all "
    "linears of a block together. Weights as they are stored; inputs and outputs on the kept rows of the calibration, "
    "where it has any."
)
_MODEL: Final = (
    "One block quantized at a time, on the model calls that the calibration kept. Isolated: the block gets the inputs "
    "of the unquantized model. Its output is input plus what it adds, so the error relative to the output looks "
    "smaller than that of what the block computes. Propagated: the error at the end of the model, with 95 % bootstrap "
    "intervals. Means over the calls, each weighed by what its step moves the latent. Blocks whose ranges of ranks "
    "(table below) overlap cannot be told apart."
)
_ARMS: Final = (
    "All blocks quantized but those that are kept. Weighed mean over the kept calls with 95 % bootstrap intervals; "
    "arms see the same calls, so compare them by the paired differences in the table. Grey: as many blocks, chosen at "
    "random."
)
_CREST: Final = "Largest |x| over the rms of each input; linears that share an input share a row. Grey: not known."


def render_analysis(document: Mapping[str, Any]) -> str:
    """The page of an analysis document.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    experts = {role: document["experts"][role] for role in _roles(document)}
    with plotting(document["id"]):
        errors, what = error_map(experts)
        figures = [
            ("Activations per block", activation_profile(experts), _ACTIVATIONS),
            ("Error of linears per block", error_profile(experts), _LINEARS),
            ("Error per linear", errors, f"NMSE of the {what} of each linear. Grey: no error, or not known."),
            ("Crest factor per input", crest_map(experts), _CREST),
            ("Error of one quantized block", model_profile(experts), _MODEL),
            ("What keeping blocks buys", arms_plot(experts), _ARMS),
        ]
    return render(
        "analysis.html.j2",
        [{"title": title, "svg": svg, "note": note} for title, svg, note in figures if svg is not None],
        document=document,
        experts=experts,
        blocks={role: sorted(expert["blocks"], key=block_number) for role, expert in experts.items()},
        arms={role: _arms(expert) for role, expert in experts.items()},
        worst=_worst(experts),
        unknown={role: _unknown(expert) for role, expert in experts.items()},
    )


def _roles(document: Mapping[str, Any]) -> list[str]:
    """The experts in the order in which they run."""
    return [role for role in ("high_noise", "low_noise", "single") if role in document["experts"]]


def _arms(expert: Mapping[str, Any]) -> list[str]:
    return sorted(expert["model"]["arms"], key=arm_order) if expert["model"] else []


def _worst(experts: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {
            "expert": role,
            "site": name,
            "input": expert["inputs"][site["input"]],
            "weight_nmse": site["weight"]["nmse"],
            "output_nmse": site["output_nmse"],
        }
        for role, expert in experts.items()
        for name, site in expert["sites"].items()
    ]
    rows.sort(key=lambda row: (-(row["output_nmse"] or row["weight_nmse"]), row["site"]))
    return rows[:_WORST]


def _unknown(expert: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures that are null, by field and reason, with the number of inputs or weights."""
    weights = {name: site["weight"] for name, site in expert["sites"].items()}
    rows: list[dict[str, Any]] = []
    for what, entries in (("inputs", expert["inputs"]), ("weights", weights)):
        counts = Counter(reason for entry in entries.values() for reason in entry["reasons"].items())
        rows += [
            {"what": what, "field": field, "reason": reason, "count": count, "of": len(entries)}
            for (field, reason), count in sorted(counts.items())
        ]
    return rows

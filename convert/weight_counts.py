"""How much of a model a recipe quantizes, and how many bits a weight takes then: of the quantized ones, and of all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .architecture import Site
from .recipe import Recipe
from .routing import Route, stages_for
from .site_error import block_of

__all__ = ["Bits", "count_bits", "keep_warnings"]

_LEAST_SHARE: Final = 0.5
"""Of the weights of the blocks' linears: a recipe that quantizes less says so."""

_KEPT_BITS: Final = 16


def keep_warnings(
    recipe: Recipe, routes: Mapping[str, Mapping[str, Route]], sites: Mapping[str, Mapping[str, Site]]
) -> Iterator[str]:
    """One line per expert of whose blocks more weights are kept than quantized, or one for a recipe that quantizes
    nothing at all. An expert for which the recipe has no rule that quantizes is kept on purpose.

    Args:
        routes: role -> site -> route.
        sites: role -> site name -> Site.
    """
    if not any(route.to == "quantize" for found in routes.values() for route in found.values()):
        yield "the recipe quantizes no linear of this model: the delta will be the base itself"
        return
    for role, found in routes.items():
        if not any(rule["to"] == "quantize" and rule.get("expert") in (None, role) for rule in recipe.rules):
            continue
        inside = {name: route for name, route in found.items() if block_of(name) != "outside"}
        quantized = [name for name, route in inside.items() if route.to == "quantize"]
        share = _weights(sites[role], quantized) / max(1, _weights(sites[role], inside))
        if share < _LEAST_SHARE:
            blocks = {block_of(name) for name in inside}
            kept = len(blocks - {block_of(name) for name in quantized})
            yield (
                f"{role}: the recipe keeps {kept} of {len(blocks)} blocks as they are and quantizes "
                f"{100 * share:.0f} % of the weights in the blocks' linears"
            )


def _weights(sites: Mapping[str, Site], names: Iterable[str]) -> int:
    return sum(sites[name].in_features * sites[name].out_features for name in names)


@dataclass(frozen=True)
class Bits:
    """Bits per weight of the packed form.

    Attributes:
        quantized: of the quantized linears: 4.5 for HiFloat4 in whole groups, 8 for HiFloat8, scales included, and 16
            for what stays in BF16 beside it; None where nothing is quantized.
        model: over all tensors of all experts: the same with masks and indices, and 16 for everything that is kept.
    """

    quantized: float | None
    model: float


def count_bits(document: Mapping[str, Any]) -> Bits:
    """The bits of a delta, from its checked `ptq_state.json`."""
    recipe = Recipe.from_document(document["recipe"])
    weights = packed = beside = elements = 0
    for role, expert in document["base"]["experts"].items():
        elements += sum(math.prod(entry["shape"]) for entry in expert["tensors"].values())
        for site, entry in document["sites"][role].items():
            if entry["route"] == "quantize":
                rows, columns = expert["tensors"][f"{site}.weight"]["shape"]
                weights += rows * columns
                of_weight, of_ops = _site_bits(stages_for(recipe, role, site), entry["weight"], rows, columns)
                packed, beside = packed + of_weight, beside + of_ops
    model = packed + beside + _KEPT_BITS * (elements - weights)
    return Bits(packed / weights if weights else None, model / elements)


def _site_bits(
    stages: Sequence[Mapping[str, Any]], weight: Mapping[str, Any], rows: int, columns: int
) -> tuple[int, int]:
    """Bits of the packed weight with what stays in BF16 beside it, and of masks and indices."""
    bits = beside = 0
    for stage in stages:
        if stage["kind"] == "smooth":
            beside += 32 * columns
        elif stage["kind"] == "outlier_columns":
            bits += 16 * rows * int(stage["k"])
            beside += 32 * int(stage["k"])
            columns -= int(stage["k"])
        elif stage["kind"] == "lowrank":
            bits += 16 * int(stage["rank"]) * (rows + columns)
    if weight["format"] == "hif4":
        return bits + rows * -(-columns // 64) * 288, beside
    scales = {"none": 1, "tensor": 1, "row": rows}[weight["scale"]]
    return bits + rows * columns * 8 + scales * 32, beside

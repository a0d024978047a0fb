"""What a delta's schema cannot say: that its parts follow from one another.

The id proves that a document was not edited after it was hashed, not that whoever hashed it was honest. Everything that
can be known without the base is checked here; what needs the base is the work of `verify`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hfq.schema.errors import (
    HfqError,
    InconsistentDeltaError,
    MissingTensorError,
    RecipeError,
    UnexpectedTensorError,
)

from .derive import derive_architecture
from .identity import bf16_root_of
from .op_check import ClipCheck, check_ops, check_sizes
from .recipe import Recipe
from .routing import route_sites, stages_for
from .selection import check_selection
from .site_ops import read_ops

if TYPE_CHECKING:
    from .delta import Delta

__all__ = ["check_content"]


def check_content(delta: Delta) -> None:
    """Check a delta whose schema, id and state file are right.

    Raises:
        InconsistentDeltaError: roots that do not follow from digests, a base that is no whole Wan model, a linear
            without a route, a selection, routes, ops or formats that do not follow from the recipe, a calibration that
            nothing used, or none where one was needed, a recipe that does not fit the delta's own sites.
        MissingTensorError, UnexpectedTensorError, ShapeMismatchError, MaskValueError: ops and state do not fit.
    """
    where = str(delta.path)
    base, sites = delta.document["base"], delta.document["sites"]
    if set(base["experts"]) != set(sites) or ("single" in sites and len(sites) > 1):
        raise InconsistentDeltaError(
            "base and sites name different experts",
            where=where,
            expected=", ".join(base["experts"]),
            found=", ".join(sites),
        )
    linears = {
        role: _check_base(role, expert, base["model_type"], f"{where}: base {role}")
        for role, expert in base["experts"].items()
    }
    for role, named in sites.items():
        for site in sorted(linears[role].symmetric_difference(named)):
            what = "a linear of the base without a route" if site in linears[role] else "a site that the base lacks"
            raise InconsistentDeltaError(what, where=f"{where}: sites {role} {site}")
    try:
        _check_routes(delta.recipe, delta.document["selection"], sites, where)
    except RecipeError as error:
        raise InconsistentDeltaError(error.what, where=f"{where}: {error.where}", found=error.found) from None
    if delta.recipe.needs_calibration != (delta.document["calibration"] is not None):
        raise InconsistentDeltaError(
            "recipe and calibration do not fit",
            where=f"{where}: calibration",
            expected="one" if delta.recipe.needs_calibration else "none",
        )
    _check_prompts(delta.document, where)
    _check_state(delta, where)


def _check_base(role: str, expert: Mapping[str, Any], model_type: str, where: str) -> set[str]:
    """The linears of one expert, from names and shapes that make up one whole model."""
    tensors = expert["tensors"]
    root = bf16_root_of((name, tuple(entry["shape"]), entry["bf16"]) for name, entry in tensors.items())
    if root != expert["bf16_root"]:
        raise InconsistentDeltaError(
            "the base's root does not follow from its digests", where=where, expected=root, found=expert["bf16_root"]
        )
    shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    try:
        architecture = derive_architecture(shapes, {"model_type": model_type}, where)
    except HfqError as error:
        raise InconsistentDeltaError("the base is no whole Wan model", where=error.where, found=error.what) from None
    return {site.name for site in architecture.sites()}


def _check_prompts(document: Mapping[str, Any], where: str) -> None:
    """One calibration has one list of prompts."""
    calibration, selection = document["calibration"], document["selection"]
    analysis = None if selection is None else selection["analysis"]
    if calibration is None or analysis is None or analysis["calibration"] != calibration["id"]:
        return
    if analysis["prompts"] != calibration["prompts"]:
        raise InconsistentDeltaError(
            "the selection and the calibration name other prompts of the same calibration",
            where=f"{where}: selection.analysis.prompts",
            expected=f"{len(calibration['prompts'])} prompts of calibration {calibration['id'][:12]}…",
        )


def _check_routes(
    recipe: Recipe,
    selection: Mapping[str, Any] | None,
    sites: Mapping[str, Mapping[str, Mapping[str, Any]]],
    where: str,
) -> None:
    chosen = check_selection(recipe, sites, selection, where)
    for role, routes in route_sites(recipe, sites, chosen).items():
        for site, route in routes.items():
            entry, place = sites[role][site], f"{where}: sites {role} {site}"
            found = (entry["route"], entry["rule"], entry["reason"])
            if found != (route.to, route.rule, route.reason):
                raise InconsistentDeltaError(
                    "a route that does not follow from the recipe",
                    where=place,
                    expected=f"{route.to} by rule {route.rule} ({route.reason})",
                    found=f"{found[0]} by rule {found[1]} ({found[2]})",
                )
            if route.to == "keep":
                continue
            if entry["weight"] != recipe.weight:
                raise InconsistentDeltaError(
                    "a weight format that is not the recipe's",
                    where=place,
                    expected=dict(recipe.weight),
                    found=entry["weight"],
                )
            check_ops(recipe, stages_for(recipe, role, site), entry["ops"], entry.get("rounded"), place)


def _check_state(delta: Delta, where: str) -> None:
    named = delta.document["state"]["tensors"]
    if delta.state_tensors != named:
        kind = MissingTensorError if delta.state_tensors < named else UnexpectedTensorError
        raise kind(
            "not the number of state tensors that the document names",
            where=where,
            expected=named,
            found=delta.state_tensors,
        )
    quantized = {role: set(delta.quantized(role)) for role in delta.roles}
    for role, site in delta.state_sites:
        if site not in quantized.get(role, ()):
            raise UnexpectedTensorError("a state tensor of no quantized site", where=f"{where}: {role}/{site}")
    clips = ClipCheck()
    for role in delta.roles:
        for site in delta.quantized(role):
            out_features, in_features = delta.base_tensors(role)[f"{site}.weight"]["shape"]
            place = f"{where}: {role} {site}"
            ops = read_ops(
                delta.site(role, site)["ops"], delta.state_outline(role, site), (out_features, in_features), place
            )
            stages = stages_for(delta.recipe, role, site)
            check_sizes(stages, ops, place)
            clips.see(role, site, stages, ops.clip, place)

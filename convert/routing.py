"""Routing: every linear is quantized or kept, exactly once, by a named rule."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hfq.schema.errors import RecipeError, UnmatchedRuleError, UnroutedSiteError

from .recipe import Recipe
from .route_rules import describe_rule
from .selection import Selection, block_index, select_blocks
from .stage_rules import check_order

__all__ = ["Route", "matches", "route_sites", "stages_for"]


@dataclass(frozen=True)
class Route:
    """What happens to one site, and why.

    Attributes:
        to: "quantize" or "keep".
        rule: index of the recipe's rule that decided.
        reason: the pattern that matched, or the selection and the block, and the rule's own words.
    """

    to: str
    rule: int
    reason: str


def matches(entry: Mapping[str, Any], role: str, site: str) -> str | None:
    """The first pattern of a rule or stage that fits, or None. Patterns are shell globs over the whole site name."""
    if entry.get("expert") not in (None, role):
        return None
    for pattern in entry.get("match", ["*"]):
        if fnmatch.fnmatchcase(site, pattern):
            return str(pattern)
    return None


def route_sites(
    recipe: Recipe, sites: Mapping[str, Iterable[str]], selection: Selection | None = None
) -> dict[str, dict[str, Route]]:
    """Route every site of every expert; the first rule that fits decides.

    Args:
        recipe: the recipe whose rules are applied in order.
        sites: role -> site names.
        selection: of the same recipe and sites; None selects now, which no `top-k` rule can.

    Returns:
        role -> site name -> Route, in the order given.

    Raises:
        UnroutedSiteError: a site that no rule fits.
        UnmatchedRuleError: a rule that fits no site, or whose sites are all decided by earlier rules; likewise a
            pattern of a rule or stage that fits nothing, since such a pattern is a misspelt one, and a stage that only
            kept sites fit.
        RecipeError: a rule or stage for an expert that the model does not have; more kept blocks than the recipe
            allows.
        and what `select_blocks` raises, without a selection
    """
    names = {role: list(expert_sites) for role, expert_sites in sites.items()}
    _check_experts(recipe, list(names))
    chosen = select_blocks(recipe, names) if selection is None else selection
    routes: dict[str, dict[str, Route]] = {}
    decided = [0] * len(recipe.rules)
    for role, expert_sites in names.items():
        routes[role] = {}
        for site in expert_sites:
            for index, rule in enumerate(recipe.rules):
                reason = chosen.reason(role, index, site) if "select" in rule else _reason(rule, role, site)
                if reason is not None:
                    routes[role][site] = Route(rule["to"], index, reason)
                    decided[index] += 1
                    break
            else:
                raise UnroutedSiteError(
                    "no rule decides this linear",
                    where=f"recipe {recipe.name}: {role} {site}",
                    todo='add a rule, for example match = ["*"] to = "keep" as the last one',
                )
    for index, count in enumerate(decided):
        _check_patterns(recipe.rules[index], f"recipe {recipe.name}: route {index + 1}", names)
        if count == 0:
            raise UnmatchedRuleError(
                "every linear of this rule is decided by an earlier rule",
                where=f"recipe {recipe.name}: route {index + 1}",
                found=describe_rule(recipe.rules[index]),
                todo="move the rule up or remove it",
            )
    for index, stage in enumerate(recipe.stages):
        _check_stage(stage, f"recipe {recipe.name}: stage {index + 1} ({stage['kind']})", names, routes)
    if recipe.max_kept_blocks is not None:
        _check_cap(recipe.max_kept_blocks, f"recipe {recipe.name}: max_kept_blocks", routes)
    return routes


def _reason(rule: Mapping[str, Any], role: str, site: str) -> str | None:
    """Why a rule with patterns fits a site, or None."""
    pattern, words = matches(rule, role, site), rule.get("reason", "")
    return f"{pattern}: {words}" if pattern is not None and words else pattern


def _check_cap(limit: int, where: str, routes: Mapping[str, Mapping[str, Route]]) -> None:
    """Only the main stack counts: that is what the rules of the challenge, where the cap comes from, call blocks."""
    for role, sites in routes.items():
        kept = {
            block for site, route in sites.items() if route.to == "keep" and (block := block_index(site)) is not None
        }
        if len(kept) > limit:
            raise RecipeError(
                "too many blocks hold a kept linear",
                where=f"{where}: {role}",
                expected=f"at most {limit}",
                found=f"{len(kept)}: {', '.join(map(str, sorted(kept)))}",
            )


def _check_stage(
    stage: Mapping[str, Any], where: str, names: Mapping[str, list[str]], routes: Mapping[str, Mapping[str, Route]]
) -> None:
    _check_patterns(stage, where, names)
    quantized = (
        (role, site) for role, sites in routes.items() for site, route in sites.items() if route.to == "quantize"
    )
    if not any(matches(stage, role, site) for role, site in quantized):
        raise UnmatchedRuleError(
            "a stage that no quantized linear goes through",
            where=where,
            found=", ".join(stage.get("match", ["*"])),
            todo="remove it, or quantize what it matches",
        )


def _check_experts(recipe: Recipe, roles: list[str]) -> None:
    for part in ("route", "stage"):
        for index, entry in enumerate(recipe.document[part]):
            if "expert" in entry and entry["expert"] not in roles:
                raise RecipeError(
                    "the model has no such expert",
                    where=f"recipe {recipe.name}: {part} {index + 1}",
                    expected=" or ".join(roles),
                    found=entry["expert"],
                )


def _check_patterns(entry: Mapping[str, Any], where: str, names: Mapping[str, list[str]]) -> None:
    for pattern in entry.get("match", []):
        alone = {"match": [pattern], **({"expert": entry["expert"]} if "expert" in entry else {})}
        if not any(matches(alone, role, site) for role, sites in names.items() for site in sites):
            raise UnmatchedRuleError(
                "a pattern that matches no linear",
                where=where,
                found=pattern,
                todo="`hfq inspect MODEL --sites` lists the names; a pattern fits a whole one",
            )


def stages_for(recipe: Recipe, role: str, site: str) -> list[Mapping[str, Any]]:
    """The stages that apply to one quantized site, in recipe order.

    Raises:
        StageOrderError: two stages of one kind for the same site, or an order that means nothing.
    """
    chosen = [stage for stage in recipe.stages if matches(stage, role, site) is not None]
    check_order([stage["kind"] for stage in chosen], f"{role} {site}")
    return chosen

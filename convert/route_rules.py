"""The grammar of routing rules: what a recipe may write before any model is known."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from hfq.schema.errors import RecipeError

__all__ = ["SELECTIONS", "check_route_fields", "check_routes", "describe_rule", "with_route_order"]

SELECTIONS: Final = ("blocks", "first+last", "top-k", "random")

_COUNTS: Final = ("first", "last", "k", "seed")


def with_route_order(rule: Mapping[str, Any]) -> dict[str, Any]:
    """The rule as it is stored: a list of blocks rises, and `5.0` is 5, as it is in canonical JSON."""
    normal = {key: _whole(value) if key in _COUNTS else value for key, value in rule.items()}
    if isinstance(normal.get("blocks"), list):
        blocks = [_whole(block) for block in normal["blocks"]]
        # What is no list of numbers is left for the schema to name.
        normal["blocks"] = sorted(blocks) if all(isinstance(block, int) for block in blocks) else blocks
    return normal


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_route_fields(rule: Mapping[str, Any], where: str) -> None:
    """Refuse what the schema would refuse in worse words.

    Raises:
        RecipeError: patterns and a selection in one rule; an unknown selection.
    """
    if "select" not in rule:
        return
    if "match" in rule:
        raise RecipeError(
            "a rule has either patterns or a selection", where=where, found="match and select", todo="write two rules"
        )
    if rule["select"] not in SELECTIONS:
        raise RecipeError("unknown selection", where=where, expected=", ".join(SELECTIONS), found=rule["select"])


def check_routes(document: Mapping[str, Any], where: str) -> None:
    """Check what the schema cannot say about routing rules.

    Raises:
        RecipeError: a block twice in one list; neither a first nor a last block.
    """
    for index, rule in enumerate(document["route"]):
        place = f"{where}: route {index + 1}"
        blocks = rule.get("blocks", [])
        for block, following in pairwise(blocks):
            if block == following:
                raise RecipeError("a block occurs twice", where=place, found=block)
        if rule.get("select") == "first+last" and rule["first"] + rule["last"] == 0:
            raise RecipeError("neither a first nor a last block", where=place, todo="remove the rule")


def describe_rule(rule: Mapping[str, Any], depth: int | None = None) -> str:
    """A rule in a few words: its patterns, or what it selects (of `depth` blocks, where that is known)."""
    among = "" if depth is None else f" of {depth}"
    match rule.get("select"):
        case None:
            return ", ".join(rule["match"])
        case "blocks":
            return "blocks " + ", ".join(map(str, rule["blocks"])) if depth is None else "listed"
        case "first+last":
            ends = [f"{end} {rule[end]}" for end in ("first", "last") if rule[end]]
            return " + ".join(ends) + among
        case "top-k":
            return f"top-{rule['k']} by {rule['score']}"
        case _:
            return f"random {rule['k']}{among}, seed {rule['seed']}"

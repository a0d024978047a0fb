"""Selecting blocks: which blocks a recipe's `select` rules mean in one model, and how a delta proves it.

A selection follows from the recipe, the number of blocks and, for `top-k`, one score per block. A delta stores all
three, so that whoever reads it can select again and compare. Where an analysis says which ranks a block may have, a
delta stores these too, and with them the blocks on either side of the cut that cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfq.schema.errors import (
    HfqError,
    InconsistentDeltaError,
    MissingAnalysisError,
    RecipeError,
)

from .boundary_arms import random_blocks
from .ranking import MEASURED, Ranking, Ranks
from .route_rules import describe_rule

if TYPE_CHECKING:
    from .recipe import Recipe

__all__ = ["Ranking", "Selection", "block_index", "check_selection", "count_blocks", "select_blocks", "tied_blocks"]


@dataclass(frozen=True)
class Selection:
    """What the select rules of a recipe chose in one model.

    Attributes:
        document: as a delta stores it; None when the recipe has no such rule.
        reasons: role -> index of the rule -> chosen block -> why.
        warnings: in words, rules that cut between blocks which cannot be told apart, or trust a weak ranking.
    """

    document: dict[str, Any] | None
    reasons: Mapping[str, Mapping[int, Mapping[int, str]]]
    warnings: Sequence[str] = ()

    @property
    def ranked(self) -> list[str]:
        """Experts in which scores decided."""
        analysis = None if self.document is None else self.document["analysis"]
        return [] if analysis is None else list(analysis["scores"])

    @property
    def prompts(self) -> list[str]:
        """SHA-256 of the prompts that scores were measured on."""
        analysis = None if self.document is None else self.document["analysis"]
        return [] if analysis is None else list(analysis["prompts"])

    def reason(self, role: str, rule: int, site: str) -> str | None:
        """Why a rule selects a site, or None when it does not."""
        block = block_index(site)
        return None if block is None else self.reasons.get(role, {}).get(rule, {}).get(block)


def block_index(site: str) -> int | None:
    """The block of the main stack that a site is in; None outside it, also for blocks of a VACE branch.

    >>> block_index("blocks.37.ffn.2"), block_index("vace_blocks.0.ffn.2")
    (37, None)
    """
    stack, _, rest = site.partition(".")
    index, _, inner = rest.partition(".")
    return int(index) if stack == "blocks" and inner and index.isdecimal() else None


def count_blocks(sites: Iterable[str]) -> int:
    """How many blocks of the main stack these sites are in."""
    return len({block_index(site) for site in sites} - {None})


def select_blocks(recipe: Recipe, sites: Mapping[str, Iterable[str]], ranking: Ranking | None = None) -> Selection:
    """Choose the blocks of every select rule, per expert.

    Args:
        sites: role -> site names of a whole expert.
        ranking: scores, for `top-k` rules.

    Raises:
        MissingAnalysisError: a `top-k` rule without scores, or without those of an expert.
        AnalysisBaseError: scores of a model with another number of blocks.
        RecipeError: a block or a number of blocks that the model does not have; an unknown score.
    """
    rules = [(index, rule) for index, rule in enumerate(recipe.rules) if "select" in rule]
    if not rules:
        return Selection(None, {})
    experts: dict[str, list[dict[str, Any]]] = {}
    reasons: dict[str, dict[int, dict[int, str]]] = {}
    scores: dict[str, dict[str, list[float]]] = {}
    ranks: dict[str, dict[str, Ranks]] = {}
    warnings: list[str] = []
    for role, names in sites.items():
        depth = count_blocks(names)
        experts[role], reasons[role] = [], {}
        for index, rule in rules:
            if rule.get("expert") not in (None, role):
                continue
            where = f"recipe {recipe.name}: route {index + 1}"
            values: list[float] | None = None
            of_blocks: Ranks | None = None
            if rule["select"] == "top-k":
                values = _scores_of(rule, role, depth, ranking, where)
                scores.setdefault(role, {})[rule["score"]] = values
                of_blocks = None if ranking is None else ranking.ranks_of(role, rule["score"], depth, where)
                if of_blocks is not None:
                    ranks.setdefault(role, {})[rule["score"]] = of_blocks
            chosen = _choose(rule, role, depth, values, where)
            parameters = {key: rule[key] for key in ("select", "first", "last", "score", "k", "seed") if key in rule}
            entry = {"rule": index, **parameters, "blocks": chosen}
            if values is not None and ranking is not None:
                tied = tied_blocks(chosen, values, of_blocks)
                warnings += _warnings(rule, role, chosen, tied, ranking)
                if of_blocks is not None:
                    entry["tied"] = tied
            experts[role].append(entry)
            reasons[role][index] = {block: _reason(rule, block, depth, values) for block in chosen}
    analysis: dict[str, Any] | None = None
    if scores and ranking is not None:
        analysis = {
            "id": ranking.id,
            "calibration": ranking.calibration,
            "prompts": list(ranking.prompts),
            "scores": scores,
            # Absent where nothing is known, as in the deltas of analyses that did not say.
            **({"ranks": ranks} if ranks else {}),
        }
    return Selection({"analysis": analysis, "experts": experts}, reasons, warnings)


def tied_blocks(chosen: Sequence[int], values: Sequence[float], ranks: Ranks | None) -> list[int]:
    """Blocks on either side of a cut that cannot be told from one on the other side, rising.

    Two blocks are a tie when their scores are equal or their ranges of ranks overlap.

    Args:
        chosen: one side of the cut.
        values: score of every block.
        ranks: of every block, where they are known.
    """

    def is_tie(left: int, right: int) -> bool:
        if values[left] == values[right]:
            return True
        return ranks is not None and ranks[left][0] <= ranks[right][1] and ranks[right][0] <= ranks[left][1]

    others = set(range(len(values))) - set(chosen)
    pairs = [(block, other) for block in chosen for other in others if is_tie(block, other)]
    return sorted({block for pair in pairs for block in pair})


def _warnings(
    rule: Mapping[str, Any], role: str, chosen: Sequence[int], tied: Sequence[int], ranking: Ranking
) -> list[str]:
    what = f"{role}: top-{rule['k']} by {rule['score']}"
    found = []
    if tied:
        inside = ", ".join(str(block) for block in tied if block in chosen)
        outside = ", ".join(str(block) for block in tied if block not in chosen)
        found.append(
            f"{what} cuts through a tie: the analysis cannot tell the chosen {inside} from {outside}, not chosen"
        )
    if rule["score"] in MEASURED:
        found += [f"{what}: the ranking is weak: {reason}" for reason in ranking.weak.get(role, ())]
    return found


def _scores_of(rule: Mapping[str, Any], role: str, depth: int, ranking: Ranking | None, where: str) -> list[float]:
    if ranking is None:
        raise MissingAnalysisError(
            f"blocks are selected by the score {rule['score']} of an analysis, and there is none",
            where=where,
            todo="analyse once: hfq analyze MODEL --calibration CAL -o ANALYSIS, then --analysis ANALYSIS",
        )
    return ranking.values(role, rule["score"], depth, where)


def _choose(rule: Mapping[str, Any], role: str, depth: int, values: Sequence[float] | None, where: str) -> list[int]:
    """The chosen blocks, rising."""
    if rule["select"] == "blocks":
        beyond = [block for block in rule["blocks"] if block >= depth]
        if beyond:
            raise RecipeError(
                "a block that the model does not have",
                where=f"{where}: {role}",
                expected=f"0 to {depth - 1}",
                found=", ".join(map(str, beyond)),
            )
        return list(rule["blocks"])
    count = rule["first"] + rule["last"] if rule["select"] == "first+last" else rule["k"]
    if count >= depth:
        raise RecipeError(
            "a selection of every block, or of more than there are",
            where=f"{where}: {role}",
            expected=f"fewer than {depth}",
            found=count,
        )
    if rule["select"] == "first+last":
        return [*range(rule["first"]), *range(depth - rule["last"], depth)]
    if values is not None:
        return sorted(sorted(range(depth), key=lambda block: (-values[block], block))[:count])
    return sorted(random_blocks(count, depth, role, rule["seed"]))


def _reason(rule: Mapping[str, Any], block: int, depth: int, values: Sequence[float] | None) -> str:
    score = "" if values is None else f" ({values[block]:.4g})"
    words = rule.get("reason", "")
    return f"{describe_rule(rule, depth)}: block {block}{score}" + (f"; {words}" if words else "")


def check_selection(
    recipe: Recipe, sites: Mapping[str, Iterable[str]], stored: Mapping[str, Any] | None, where: str
) -> Selection:
    """Select again, from the recipe and the scores that a delta stores, and compare with what it says was chosen.

    Raises:
        InconsistentDeltaError: naming the first field that differs.
    """
    analysis = None if stored is None else stored["analysis"]
    ranking = None if analysis is None else Ranking.from_selection(analysis)
    try:
        found = select_blocks(recipe, sites, ranking)
    except HfqError as error:
        raise InconsistentDeltaError(
            error.what, where=f"{where}: selection: {error.where}", found=error.found
        ) from None
    difference = _difference("selection", found.document, stored)
    if difference is not None:
        field_name, expected, claimed = difference
        raise InconsistentDeltaError(
            "a selection that does not follow from the recipe",
            where=f"{where}: {field_name}",
            expected=expected,
            found=claimed,
        )
    return found


def _difference(name: str, expected: Any, found: Any) -> tuple[str, Any, Any] | None:
    """The first field in which two JSON values differ, with both values."""
    if expected == found:
        return None
    if isinstance(expected, dict) and isinstance(found, dict) and set(expected) == set(found):
        return next(
            difference
            for key in sorted(expected)
            if (difference := _difference(f"{name}.{key}", expected[key], found[key])) is not None
        )
    return name, expected, found

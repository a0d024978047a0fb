"""Selecting blocks: which blocks a recipe's `select` rules mean in one model, and how a delta proves it.

A selection follows from the recipe, the number of blocks and, for `top-k`, one score per block. A delta stores all
three, so that whoever reads it can select again and compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hfq.schema.errors import (
    AnalysisBaseError,
    HfqError,
    InconsistentDeltaError,
    MalformedFileError,
    MissingAnalysisError,
    RecipeError,
    WrongRoleError,
)

from .boundary_arms import random_blocks
from .route_rules import describe_rule

if TYPE_CHECKING:
    from .recipe import Recipe

__all__ = ["Ranking", "Selection", "block_index", "check_selection", "count_blocks", "select_blocks"]

_STACK: Final = "blocks."


@dataclass(frozen=True)
class Ranking:
    """One number per block, from an analysis or as a delta stores them.

    Attributes:
        id: of the analysis, 64 hex digits.
        calibration: id of the calibration that was analysed.
        prompts: SHA-256 of each of its prompts.
        scores: role -> score -> value of every block, in the order of the blocks.
        roots: role -> bf16 root of the analysed expert; empty when read from a delta.
        skipped: role -> why errors of whole blocks are missing, where they are.
    """

    id: str
    calibration: str
    prompts: Sequence[str]
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    roots: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_analysis(cls, document: Mapping[str, Any], where: str) -> Ranking:
        """The ranking of a document under `hfq.analysis/1`.

        Raises:
            MalformedFileError: blocks that are not numbered from 0 on; scores of an expert without its root.
        """
        experts, analysed = document["experts"], document["base"]["experts"]
        if set(experts) != set(analysed):
            raise MalformedFileError(
                "base and scores name different experts",
                where=where,
                expected=", ".join(sorted(analysed)),
                found=", ".join(sorted(experts)),
            )
        return cls(
            id=document["id"],
            calibration=document["calibration"]["id"],
            prompts=list(document["calibration"]["prompts"]),
            scores={
                role: {
                    name: _in_order(values, f"{where}: experts/{role}/scores/{name}")
                    for name, values in expert["scores"].items()
                }
                for role, expert in experts.items()
            },
            roots={role: expert["bf16_root"] for role, expert in analysed.items()},
            skipped={role: expert["model_skipped"] for role, expert in experts.items() if expert["model_skipped"]},
        )

    @classmethod
    def from_selection(cls, stored: Mapping[str, Any]) -> Ranking:
        """The ranking that a delta stores, without roots: a delta's base is its own."""
        return cls(stored["id"], stored["calibration"], list(stored["prompts"]), stored["scores"])

    def values(self, role: str, score: str, depth: int, where: str) -> list[float]:
        """One number per block of an expert.

        Raises:
            MissingAnalysisError: the expert was not analysed.
            RecipeError: a score that the analysis does not have; the message lists those that it has.
            AnalysisBaseError: an expert with another number of blocks was analysed.
        """
        if role not in self.scores:
            raise MissingAnalysisError(
                "the analysis does not have this expert",
                where=f"{where}: {role}",
                expected=role,
                found=", ".join(self.scores),
                todo="analyse the whole model: hfq analyze MODEL --calibration CAL -o ANALYSIS, without --role",
            )
        known = self.scores[role]
        if score not in known:
            why = f"errors of whole blocks are missing: {self.skipped[role]}" if role in self.skipped else None
            raise RecipeError(
                "no such score in the analysis",
                where=f"{where}: {role}",
                expected=", ".join(sorted(known)) or "a score",
                found=score,
                todo=why,
            )
        if len(known[score]) != depth:
            raise AnalysisBaseError(
                "the analysis was made with another model",
                where=f"{where}: {role}",
                expected=f"{depth} blocks",
                found=len(known[score]),
            )
        return [float(value) for value in known[score]]

    def check_root(self, role: str, root: str, owner: str) -> None:
        """Compare the bf16 root of an expert with that of the analysed one. `owner` is whose root it is, for people.

        Raises:
            WrongRoleError: it was analysed under another role.
            AnalysisBaseError: it was not analysed at all.
        """
        if self.roots[role] == root:
            return
        for other, known in self.roots.items():
            if known == root:
                raise WrongRoleError(
                    f"these are the weights that were analysed as {other}",
                    where=f"{owner}: {role}",
                    expected=role,
                    found=other,
                    todo=f"give them as {other}; are the two experts exchanged?",
                )
        raise AnalysisBaseError(
            "the analysis was made with another model",
            where=f"{owner}: {role}",
            expected=f"bf16 root {self.roots[role][:12]}…",
            found=f"{root[:12]}…",
            todo="analyse this model: hfq analyze MODEL --calibration CAL -o ANALYSIS",
        )


def _in_order(values: Mapping[str, float], where: str) -> list[float]:
    # -0.0 + 0.0 is 0.0: canonical JSON has no negative zero, and the reasons must be the same when they are read back.
    by_block = {int(name.removeprefix(_STACK)): float(value) + 0.0 for name, value in values.items()}
    if sorted(by_block) != list(range(len(values))):
        raise MalformedFileError("blocks that are not numbered from 0 on", where=where)
    return [by_block[block] for block in range(len(by_block))]


@dataclass(frozen=True)
class Selection:
    """What the select rules of a recipe chose in one model.

    Attributes:
        document: as a delta stores it; None when the recipe has no such rule.
        reasons: role -> index of the rule -> chosen block -> why.
    """

    document: dict[str, Any] | None
    reasons: Mapping[str, Mapping[int, Mapping[int, str]]]

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
    for role, names in sites.items():
        depth = count_blocks(names)
        experts[role], reasons[role] = [], {}
        for index, rule in rules:
            if rule.get("expert") not in (None, role):
                continue
            where = f"recipe {recipe.name}: route {index + 1}"
            values: list[float] | None = None
            if rule["select"] == "top-k":
                values = _scores_of(rule, role, depth, ranking, where)
                scores.setdefault(role, {})[rule["score"]] = values
            chosen = _choose(rule, role, depth, values, where)
            parameters = {key: rule[key] for key in ("select", "first", "last", "score", "k", "seed") if key in rule}
            experts[role].append({"rule": index, **parameters, "blocks": chosen})
            reasons[role][index] = {block: _reason(rule, block, depth, values) for block in chosen}
    analysis: dict[str, Any] | None = None
    if scores and ranking is not None:
        analysis = {
            "id": ranking.id,
            "calibration": ranking.calibration,
            "prompts": list(ranking.prompts),
            "scores": scores,
        }
    return Selection({"analysis": analysis, "experts": experts}, reasons)


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

"""What an analysis says about the blocks of a model: one number per block and score, and the ranks that it may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from hfq.schema.errors import (
    AnalysisBaseError,
    MalformedFileError,
    MissingAnalysisError,
    RecipeError,
    WrongRoleError,
)

__all__ = ["MEASURED", "Ranking", "Ranks"]

_STACK: Final = "blocks."

MEASURED: Final = ("isolated", "isolated_contribution", "propagated")
"""Scores that come from running the model on kept calls."""

_Value = TypeVar("_Value")

Ranks = Sequence[Sequence[int]]
"""Per block the lowest and the highest rank that it may have, 1 for the largest score."""


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
        ranks: role -> score -> ranks of every block, of scores whose uncertainty is known.
        weak: role -> why these ranks are weak, in words.
    """

    id: str
    calibration: str
    prompts: Sequence[str]
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    roots: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    ranks: Mapping[str, Mapping[str, Ranks]] = field(default_factory=dict)
    weak: Mapping[str, Sequence[str]] = field(default_factory=dict)

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
                    name: [
                        # -0.0 + 0.0 is 0.0: canonical JSON has no negative zero, and the reasons must be the same when
                        # they are read back.
                        float(value) + 0.0
                        for value in _in_order(values, f"{where}: experts/{role}/scores/{name}")
                    ]
                    for name, values in expert["scores"].items()
                }
                for role, expert in experts.items()
            },
            roots={role: expert["bf16_root"] for role, expert in analysed.items()},
            skipped={role: expert["model_skipped"] for role, expert in experts.items() if expert["model_skipped"]},
            ranks={role: _ranks(expert, f"{where}: experts/{role}") for role, expert in experts.items()},
            weak={role: _weaknesses(expert["model"]) for role, expert in experts.items() if expert["model"]},
        )

    @classmethod
    def from_selection(cls, stored: Mapping[str, Any]) -> Ranking:
        """The ranking that a delta stores, without roots: a delta's base is its own."""
        scores, ranks = stored["scores"], stored.get("ranks", {})
        return cls(stored["id"], stored["calibration"], list(stored["prompts"]), scores, ranks=ranks)

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

    def ranks_of(self, role: str, score: str, depth: int, where: str) -> Ranks | None:
        """The ranks of the blocks of an expert, or None where nothing is known about them.

        Raises:
            AnalysisBaseError: an expert with another number of blocks was analysed.
        """
        found = self.ranks.get(role, {}).get(score)
        if found is not None and len(found) != depth:
            raise AnalysisBaseError(
                "ranks of a model with another number of blocks",
                where=f"{where}: {role}",
                expected=f"{depth} blocks",
                found=len(found),
                todo="analyse this model: hfq analyze MODEL --calibration CAL -o ANALYSIS",
            )
        return found


def _in_order(values: Mapping[str, _Value], where: str) -> list[_Value]:
    by_block = {int(name.removeprefix(_STACK)): value for name, value in values.items()}
    if sorted(by_block) != list(range(len(values))):
        raise MalformedFileError("blocks that are not numbered from 0 on", where=where)
    return [by_block[block] for block in range(len(by_block))]


def _weaknesses(model: Mapping[str, Any]) -> list[str]:
    sample = model.get("sample")
    if sample is None:
        return ["the analysis does not say how sure its ranks are; analyse again"]
    return list(sample["weak"])


def _ranks(expert: Mapping[str, Any], where: str) -> dict[str, Ranks]:
    """score -> ranks of every block, of an expert of an analysis."""
    blocks = (expert["model"] or {"blocks": {}})["blocks"]
    found: dict[str, Ranks] = {}
    for score in MEASURED:
        known = {name: block["ranks"][score] for name, block in blocks.items() if "ranks" in block}
        if score in expert["scores"] and known:
            found[score] = _in_order(known, f"{where}/model/blocks")
    return found

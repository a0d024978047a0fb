"""Choosing clip headrooms from the errors that the search of every site has left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .clip import BINS

__all__ = ["choose_headrooms", "error_at"]

Floats = npt.NDArray[np.float64]


def choose_headrooms(searches: Mapping[str, Mapping[str, Any]], scope: str) -> dict[str, list[float]]:
    """The headrooms of one site in each expert.

    Args:
        searches: role -> what the stage `clip` found for the site there; all with the same candidates.
        scope: "bin" chooses for each expert and timestep bin, "expert" one for all bins of an expert, "global" one for
            both experts.

    Returns:
        role -> headroom per bin. A bin without kept rows gets the choice over all bins of its expert. Of equal errors
        the candidate nearest to 1 is chosen, then the larger.
    """
    candidates = [float(value) for value in next(iter(searches.values()))["candidates"]]
    whole = {role: _nmse([search["errors"]], [search["powers"]]) for role, search in searches.items()}
    if scope == "global":
        one = _best(np.sum(list(whole.values()), axis=0), candidates)
        return {role: [one] * BINS for role in searches}
    found = {}
    for role, search in searches.items():
        expert = _best(whole[role], candidates)
        found[role] = [expert] * BINS
        if scope == "bin":
            found[role] = [
                _best(np.asarray(errors, dtype=np.float64), candidates) if power > 0 else expert
                for errors, power in zip(search["errors"], search["powers"], strict=True)
            ]
    return found


def _nmse(errors: Sequence[Any], powers: Sequence[Any]) -> Floats:
    """Error over power, pooled over bins: float64 [candidates]."""
    pooled: Floats = np.asarray(errors, dtype=np.float64).sum(axis=(0, 1))
    return pooled / max(float(np.sum(powers)), 1e-300)


def _best(errors: Floats, candidates: Sequence[float]) -> float:
    order = sorted(range(len(candidates)), key=lambda i: (float(errors[i]), abs(candidates[i] - 1.0), -candidates[i]))
    return candidates[order[0]]


def error_at(search: Mapping[str, Any], headroom: Sequence[float]) -> tuple[float, float]:
    """Squared output error and power of one expert's site over all bins, at the chosen headrooms."""
    columns = [search["candidates"].index(value) for value in headroom]
    return sum(errors[column] for errors, column in zip(search["errors"], columns, strict=True)), sum(search["powers"])

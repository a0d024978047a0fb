"""Which blocks an analysis keeps to see what that buys, and how sure the answer is.

The arms are those of Boundary-Protection HiFloat8 (arXiv 2606.00957) as far as they are known: no block kept, the first
two, the last three, both. Its published ablation has no control; here random choices of as many blocks stand beside
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["NONE", "boundary_arms", "compare_arms", "random_blocks"]

NONE: Final = "none"
FIRST: Final = 2
LAST: Final = 3
CONTROLS: Final = 3
"""Random choices: one alone says little about chance."""

_RESAMPLES: Final = 10_000
_LEVELS: Final = (2.5, 97.5)


def random_blocks(count: int, depth: int, role: str, seed: int) -> frozenset[int]:
    """`count` of `depth` blocks, the same on every machine: those with the smallest SHA-256 of a line of ASCII."""

    def rank(block: int) -> bytes:
        return hashlib.sha256(f"hfq.select/1\t{seed}\t{role}\t{block}".encode("ascii")).digest()

    return frozenset(sorted(range(depth), key=rank)[:count])


def boundary_arms(depth: int, role: str) -> dict[str, frozenset[int]]:
    """arm -> blocks that stay unquantized, for an expert of `depth` blocks; arms that would keep every block are left
    out."""
    first, last = frozenset(range(FIRST)), frozenset(range(depth - LAST, depth))
    if depth <= FIRST + LAST:
        return {NONE: frozenset()}
    arms = {
        NONE: frozenset[int](),
        f"first {FIRST}": first,
        f"last {LAST}": last,
        f"first {FIRST} + last {LAST}": first | last,
    }
    for seed in range(CONTROLS):
        arms[f"random {FIRST + LAST}, seed {seed}"] = random_blocks(FIRST + LAST, depth, role, seed)
    return arms


def compare_arms(arms: Mapping[str, frozenset[int]], found: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The arms of an analysis document.

    Args:
        found: arm -> NMSE of the model's output, one per call, in the same order for every arm.

    Returns:
        arm -> kept blocks, NMSE per call and their mean with a 95 % bootstrap interval over calls; and, but for the arm
        `none`, the mean paired difference to that arm with its interval. An interval of one call is None.
    """
    none = np.asarray(found[NONE], dtype=np.float64)
    document: dict[str, Any] = {}
    for name, kept in arms.items():
        values = np.asarray(found[name], dtype=np.float64)
        document[name] = {
            "kept": [f"blocks.{block}" for block in sorted(kept)],
            "calls": values.tolist(),
            "nmse": float(values.mean()),
            "interval": _interval(values),
            "to_none": None
            if name == NONE
            else {"difference": float((values - none).mean()), "interval": _interval(values - none)},
        }
    return document


def _interval(values: npt.NDArray[np.float64]) -> list[float] | None:
    """95 % percentile bootstrap of the mean; every arm draws the same resamples."""
    if len(values) < 2:
        return None
    picks = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    return [float(edge) for edge in np.percentile(values[picks].mean(axis=1), _LEVELS)]

"""Which blocks an analysis keeps to see what that buys, and how sure the answer is.

The arms are those of Boundary-Protection HiFloat8 (arXiv 2606.00957) as far as they are known: no block kept, the first
two, the last three, both. Its published ablation has no control; here random choices of as many blocks stand beside
them. No two arms keep the same blocks: two names of one choice would look like evidence that agrees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from .call_sample import CallSample

__all__ = ["NONE", "boundary_arms", "compare_arms", "random_blocks"]

NONE: Final = "none"
FIRST: Final = 2
LAST: Final = 3
CONTROLS: Final = 3
"""Random choices: one alone says little about chance."""

_MOST_SEEDS: Final = 64
"""A model of few blocks has fewer choices than controls; after so many seeds there is no other one."""


def random_blocks(count: int, depth: int, role: str, seed: int) -> frozenset[int]:
    """`count` of `depth` blocks, the same on every machine: those with the smallest SHA-256 of a line of ASCII."""

    def rank(block: int) -> bytes:
        return hashlib.sha256(f"hfq.select/1\t{seed}\t{role}\t{block}".encode("ascii")).digest()

    return frozenset(sorted(range(depth), key=rank)[:count])


def boundary_arms(depth: int, role: str) -> dict[str, frozenset[int]]:
    """arm -> blocks that stay unquantized, for an expert of `depth` blocks, each choice once.

    Arms that would keep every block are left out, and so are seeds that choose what another arm keeps; the next seeds
    take their place as long as there are other choices.
    """
    first, last = frozenset(range(FIRST)), frozenset(range(depth - LAST, depth))
    if depth <= FIRST + LAST:
        return {NONE: frozenset()}
    arms = {
        NONE: frozenset[int](),
        f"first {FIRST}": first,
        f"last {LAST}": last,
        f"first {FIRST} + last {LAST}": first | last,
    }
    wanted = len(arms) + CONTROLS
    for seed in range(_MOST_SEEDS):
        kept = random_blocks(FIRST + LAST, depth, role, seed)
        if len(arms) < wanted and kept not in arms.values():
            arms[f"random {FIRST + LAST}, seed {seed}"] = kept
    return arms


def compare_arms(
    arms: Mapping[str, frozenset[int]], found: Mapping[str, Sequence[float]], sample: CallSample
) -> dict[str, Any]:
    """The arms of an analysis document.

    Args:
        found: arm -> NMSE of the model's output, one per call, in the same order for every arm.
        sample: of these calls; every arm draws the same resamples.

    Returns:
        arm -> kept blocks, NMSE per call and their mean with a 95 % bootstrap interval; and, but for the arm `none`,
        the mean paired difference to that arm with its interval. An interval of one pair of prompt and step is None.
    """
    none = np.asarray(found[NONE], dtype=np.float64)
    document: dict[str, Any] = {}
    for name, kept in arms.items():
        values = np.asarray(found[name], dtype=np.float64)
        document[name] = {
            "kept": [f"blocks.{block}" for block in sorted(kept)],
            "calls": values.tolist(),
            "nmse": sample.mean(values),
            "interval": sample.interval(values),
            "to_none": None
            if name == NONE
            else {"difference": sample.mean(values - none), "interval": sample.interval(values - none)},
        }
    return document

"""What kept calls say about a whole run: a mean that weighs each by its step, and how far it can be trusted.

A call weighs what its step moves the latent (|d sigma|): an error of the model's output reaches the clip multiplied by
it. The mean is winsorized, so that no quarter of the weight decides alone, as the last steps of a run would, where
every quantizer errs many times more. How sure a mean or a ranking is follows from resampling pairs of prompt and step,
with all guidance branches of a pair together, because these are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .kept_calls import ModelCall

__all__ = ["CallSample", "Floats"]

Floats = npt.NDArray[np.float64]

_RESAMPLES: Final = 2000
_LEVELS: Final = (2.5, 97.5)
_TAIL: Final = 0.25
"""Share of the weight on either side whose values count as the value at that place."""

_ROUNDING: Final = 1e-9
"""Shares that add up to a quarter do so whatever the order of the sum."""

_FEWEST_PAIRS: Final = 6
"""Of prompt and step: with fewer, an interval says more about which calls were kept than about the model."""


class CallSample:
    """Weights of the kept calls of an expert, and which of them are drawn together.

    Args:
        calls: at least one.

    Attributes:
        weights: [calls], sum 1.
        pairs: number of different pairs of prompt and step.
        weak: why a ranking from these calls is weak, in words; empty when it is not.
    """

    def __init__(self, calls: Sequence[ModelCall]) -> None:
        cells = Counter((call.step, call.branch) for call in calls)
        # Several prompts at one step stand for that step together.
        moved = np.array([call.movement / cells[call.step, call.branch] for call in calls], dtype=np.float64)
        self.weights: Floats = moved / moved.sum() if moved.sum() > 0 else np.full(len(calls), 1 / len(calls))
        numbers: dict[tuple[int, str], int] = {}
        self._pair_of = np.array(
            [numbers.setdefault((call.step, call.prompt_sha256), len(numbers)) for call in calls], dtype=np.int64
        )
        self.pairs = len(numbers)
        self.weak = _weaknesses(calls, self.pairs, np.bincount(self._pair_of, self.weights).astype(np.float64))
        random = np.random.default_rng(0)
        # [resamples, calls]: what each call weighs in each resample; the same draws for everything that is compared.
        draws = random.multinomial(self.pairs, np.full(self.pairs, 1 / self.pairs), size=_RESAMPLES)
        resampled = draws[:, self._pair_of] * self.weights
        self._resampled: Floats = resampled[resampled.sum(axis=1) > 0]

    def mean(self, values: Sequence[float] | Floats) -> float:
        """Of one number per call."""
        return float(_winsorized(np.asarray(values, dtype=np.float64), self.weights[None])[0])

    def interval(self, values: Sequence[float] | Floats) -> list[float] | None:
        """95 % percentile bootstrap interval of `mean`; None for a single pair of prompt and step."""
        if self.pairs < 2:
            return None
        found = _winsorized(np.asarray(values, dtype=np.float64), self._resampled)
        return [float(edge) for edge in np.percentile(found, _LEVELS)]

    def ranks(self, values: Sequence[Sequence[float]] | Floats) -> list[list[int]]:
        """Per row the lowest and the highest rank, 1 for the largest mean, that 95 % of the resamples give it.

        Rows whose ranges overlap cannot be told apart. With too few pairs of prompt and step no row can be told from
        any other; rows with equal values share their ranks.

        Args:
            values: [rows, calls].
        """
        table = np.asarray(values, dtype=np.float64)
        if self.pairs < _FEWEST_PAIRS:
            return [[1, len(table)] for _ in table]
        means = np.stack([_winsorized(row, self._resampled) for row in table], axis=1)
        above = (means[:, None, :] > means[:, :, None]).sum(axis=2)
        upto = (means[:, None, :] >= means[:, :, None]).sum(axis=2)
        low = np.percentile(above + 1, _LEVELS[0], axis=0, method="inverted_cdf")
        high = np.percentile(upto, _LEVELS[1], axis=0, method="inverted_cdf")
        return [[int(first), int(last)] for first, last in zip(low, high, strict=True)]


def _winsorized(values: Floats, weights: Floats) -> Floats:
    """[samples]: weighted means of `values` [calls] under `weights` [samples, calls], tails drawn in."""
    order = np.argsort(values, kind="stable")
    rising, share = values[order], weights[:, order]
    share = share / share.sum(axis=1, keepdims=True)
    below = share.cumsum(axis=1)
    low = rising[(below >= _TAIL - _ROUNDING).argmax(axis=1)]
    high = rising[(below >= 1 - _TAIL - _ROUNDING).argmax(axis=1)]
    found: Any = (share * np.clip(rising[None], low[:, None], high[:, None])).sum(axis=1)
    return np.asarray(found, dtype=np.float64)


def _weaknesses(calls: Sequence[ModelCall], pairs: int, shares: Floats) -> list[str]:
    """Why a ranking is weak. `shares` is what each pair of prompt and step weighs."""
    branches: dict[tuple[int, str], set[str]] = {}
    for call in calls:
        branches.setdefault((call.step, call.prompt_sha256), set()).add(call.branch)
    found = []
    if pairs < _FEWEST_PAIRS:
        found.append(f"{pairs} pairs of prompt and step, fewer than {_FEWEST_PAIRS}: no block can be told from another")
    known = {call.branch for call in calls}
    if any(of_pair != known for of_pair in branches.values()):
        found.append("the guidance branches were kept at different steps")
    effective = 1 / float((shares**2).sum())
    if pairs >= _FEWEST_PAIRS > 2 * effective:
        found.append(f"the kept steps move the latent so differently that they count like {effective:.0f} of {pairs}")
    return found

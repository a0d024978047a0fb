"""What plain rounding of one block, or of all blocks but a few, does to a transformer, on a calibration's kept calls.

Per block and call there are three errors, all normalised mean squared errors (sum of squared differences over sum of
squares, in float64):

- `isolated`: of the block's output, when its linears are quantized and its input is the unquantized model's. A block
  adds to the residual stream that it reads, so its output is mostly its input and this number is small whatever the
  block does;
- `isolated_contribution`: the same differences over what the block adds, output minus input;
- `propagated`: of the whole model's output, when this block alone is quantized.

Weights and activations are rounded as a recipe without stages does it, by the linear that a delta would put there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from hfq.schema.errors import UsageError

from .figures import nmse
from .kept_calls import ModelCall
from .progress import Progress, Silent
from .rounded_transformer import Forward, RoundedTransformer

__all__ = ["ArmErrors", "ErrorFigures", "arms_errors", "block_errors"]

_CHUNK: Final = 1 << 22


@dataclass(frozen=True)
class ErrorFigures:
    """Normalised mean squared errors of one block on one call, from 0.

    Attributes:
        isolated: of the block's output, relative to that output.
        isolated_contribution: of the block's output, relative to what the block adds to its input.
        propagated: of the model's output, when this block alone is quantized.
    """

    isolated: float
    isolated_contribution: float
    propagated: float


class ArmErrors(tuple[float, ...]):
    """Normalised mean squared errors of the model's output, one per call, in the order of the calls.

    Attributes:
        nmse: pooled over the calls, which weights each by its output's sum of squares.
    """

    nmse: float

    @classmethod
    def of(cls, sums: Sequence[tuple[float, float]]) -> ArmErrors:
        """From the sums of squares of every call: of the differences, and of the unquantized output."""
        made = cls(nmse(error, power) for error, power in sums)
        made.nmse = nmse(math.fsum(error for error, _ in sums), math.fsum(power for _, power in sums))
        return made


def block_errors(
    transformer: nn.Module,
    calls: Sequence[ModelCall],
    weight: Mapping[str, Any],
    activation: Mapping[str, Any],
    progress: Progress | None = None,
) -> dict[str, list[ErrorFigures]]:
    """Error of every block of the main stack when it alone is quantized.

    Per call the model runs once, then once more block by block with, behind each block, the rest of the model on the
    quantized block's output: about depth / 2 forwards in all. Activations in memory are those of one call and do not
    grow with the depth. Blocks of a VACE branch stay as they are.

    Args:
        transformer: a diffusers Wan transformer, not quantized; as before afterwards, whatever happens.
        calls: at least one, of this expert.
        weight, activation: tables of a recipe, normalised.

    Returns:
        `blocks.0`, `blocks.1` ... in the order of the forward -> errors of every call, in the order of `calls`.

    Raises:
        UsageError: no call, or not a transformer that can be quantized.
        CalibrationBaseError: calls of another model.
        NonFiniteActivationError: the model, or a quantized block, gives numbers that are not finite.
        NonFiniteWeightError
    """
    model, shown = RoundedTransformer(transformer, weight, activation), progress or Silent()
    model.check(calls)
    found: dict[str, list[ErrorFigures]] = {f"blocks.{index}": [] for index in range(len(model.blocks))}
    shown.start("errors of blocks", len(calls) * len(model.blocks), "blocks")
    try:
        with torch.no_grad():
            for call in calls:
                for index, errors in _Walk(model, call).run(shown):
                    found[f"blocks.{index}"].append(errors)
    finally:
        shown.finish()
    return found


def arms_errors(
    transformer: nn.Module,
    calls: Sequence[ModelCall],
    weight: Mapping[str, Any],
    activation: Mapping[str, Any],
    arms: Mapping[str, Collection[int]],
    progress: Progress | None = None,
) -> dict[str, ArmErrors]:
    """Error of the model's output when all blocks of the main stack are quantized but those that an arm keeps.

    Args:
        transformer, calls, weight, activation: as for `block_errors`.
        arms: name -> indices of the blocks that stay unquantized.

    Returns:
        name -> error of every call, in the order of `calls` for every arm, so that differences can be paired.

    Raises:
        UsageError: also for a block that the model does not have.
        CalibrationBaseError, NonFiniteActivationError, NonFiniteWeightError: as for `block_errors`
    """
    model, shown = RoundedTransformer(transformer, weight, activation), progress or Silent()
    model.check(calls)
    for name, kept in arms.items():
        if not set(kept) <= set(range(len(model.blocks))):
            raise UsageError(
                "a block that the model does not have",
                where=name,
                expected=f"0 to {len(model.blocks) - 1}",
                found=sorted(kept),
            )
    sums: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    shown.start("errors of arms", len(calls) * len(arms), "forwards")
    try:
        with torch.no_grad():
            for call in calls:
                exact = model.run(call)
                power = _squares(exact)
                for name, kept in arms.items():
                    with model.wrapped(functools.partial(model.quantize_but, frozenset(kept))):
                        found = model.run(call, f"all but {sorted(kept)}")
                    sums[name].append((_squares(found, exact), power))
                    shown.advance()
    finally:
        shown.finish()
    return {name: ArmErrors.of(found) for name, found in sums.items()}


def _squares(x: Tensor, minus: Tensor | None = None) -> float:
    """Sum of squares in float64, of a tensor or of a difference, without a float64 copy of either."""
    left, right = x.reshape(-1), None if minus is None else minus.reshape(-1)
    total = 0.0
    for begin in range(0, left.numel(), _CHUNK):
        part = left[begin : begin + _CHUNK].double()
        if right is not None:
            part -= right[begin : begin + _CHUNK].double()
        total += float(part.square_().sum())
    return total


class _Walk:
    """One call through the model, block by block.

    The rest of the model behind a block is run by the model's own forward: the blocks before are skipped, the block
    itself gives what it was told to, so that nothing of diffusers' code around the blocks is repeated here.
    """

    def __init__(self, model: RoundedTransformer, call: ModelCall) -> None:
        self._model, self._call = model, call
        self._given: tuple[int, Tensor] | None = None
        self._walking = False
        self._found: list[tuple[int, ErrorFigures]] = []
        self._exact: Tensor | None = None
        self._progress: Progress = Silent()

    def run(self, progress: Progress) -> list[tuple[int, ErrorFigures]]:
        """(block, errors) of every block."""
        self._progress = progress
        self._exact = self._model.run(self._call)
        with self._model.wrapped(self._wrap):
            self._walking = True
            self._model.run(self._call)
        return self._found

    def _wrap(self, index: int, original: Forward) -> Forward:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self._given is None:
                output = original(hidden_states, *args, **kwargs)
                if self._walking:
                    again = functools.partial(original, hidden_states, *args, **kwargs)
                    self._visit(index, again, hidden_states, output)
                return output
            start, given = self._given
            if index < start:
                return hidden_states
            return given if index == start else original(hidden_states, *args, **kwargs)

        return forward

    def _visit(self, index: int, again: Callable[[], Tensor], x: Tensor, output: Tensor) -> None:
        assert self._exact is not None
        with self._model.quantized(index):
            quantized = again()
        error = _squares(quantized, output)
        self._given = index, quantized
        try:
            end = self._model.run(self._call, f"blocks.{index}")
        finally:
            self._given = None
        errors = ErrorFigures(
            isolated=nmse(error, _squares(output)),
            isolated_contribution=nmse(error, _squares(output, x)),
            propagated=nmse(_squares(end, self._exact), _squares(self._exact)),
        )
        self._found.append((index, errors))
        self._progress.advance()

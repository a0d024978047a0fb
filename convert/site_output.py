"""The output of one quantized site on sample rows, in fp32: what clip searches with and what the report measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .ops import Op
from .weights import quantize_activation

__all__ = ["RowOutputs", "SiteOutput", "even_indices", "evenly"]


class SiteOutput:
    """One site on one set of input rows; the ops run once, whatever is tried after them.

    Args:
        ops: bound to the site's weight.
        operand: quantized weight, fp32 [out_features, in_features'].
        activation: options of the activation quantizer.
        inputs: BF16 [rows, in_features].
    """

    def __init__(self, ops: Sequence[Op], operand: Tensor, activation: Mapping[str, Any], inputs: Tensor) -> None:
        self._operand, self._activation = operand, activation
        x, self._branches = inputs, torch.zeros(())
        for op in ops:
            # At run time a branch reads the input in the module's dtype.
            branch = op.branch(x.to(torch.bfloat16), torch.float32)
            if branch is not None:
                self._branches = self._branches + branch
            x = op.on_activation(x)
        self._x = x

    def at(self, headroom: float = 1.0) -> Tensor:
        """The output without bias, fp32 [rows, out_features]."""
        quantized = quantize_activation(self._x, self._activation, headroom).float()
        return quantized @ self._operand.T + self._branches


class RowOutputs:
    """Squared errors of the outputs of a site without ops, from rows of its weight as they come.

    Args:
        inputs: BF16 [n, in_features].
        activation: options of the activation quantizer.
    """

    def __init__(self, inputs: Tensor, activation: Mapping[str, Any]) -> None:
        self._exact, self._quantized = inputs.float(), quantize_activation(inputs, activation).float()
        self._sums: list[Tensor] = []

    def add(self, weight: Tensor, operand: Tensor) -> None:
        """The next rows: of the original, BF16 [rows, in_features], and quantized, fp32 [rows, in_features]."""
        exact = (self._exact @ weight.float().T).double()
        difference = (self._quantized @ operand.T).double().sub_(exact)
        self._sums.append(torch.stack([difference.square_().sum(dim=0), exact.square_().sum(dim=0)]))

    def sums(self) -> tuple[float, float]:
        """Sums of squares of quantized minus original output, and of the original."""
        error, power = torch.cat(self._sums, dim=1).tolist()
        self._sums.clear()
        return math.fsum(error), math.fsum(power)


def even_indices(count: int, limit: int) -> Tensor:
    """int64: at most `limit` of the indices below `count`, evenly spaced."""
    chosen = min(limit, count)
    return torch.arange(chosen) * count // max(1, chosen)


def evenly(inputs: Tensor, rows: int) -> Tensor:
    """At most `rows` rows of `inputs` [n, in_features], evenly spaced."""
    return inputs[even_indices(inputs.shape[0], rows)]

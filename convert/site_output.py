"""The output of one quantized site on sample rows, in fp32: what clip searches with and what the report measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .ops import Op
from .weights import quantize_activation

__all__ = ["SiteOutput", "evenly"]


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


def evenly(inputs: Tensor, rows: int) -> Tensor:
    """At most `rows` rows of `inputs` [n, in_features], evenly spaced."""
    count = min(rows, inputs.shape[0])
    return inputs[torch.arange(count) * inputs.shape[0] // max(1, count)]

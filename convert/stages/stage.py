"""What a recipe stage takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfq.convert.architecture import Site
from hfq.convert.calibration import GroupStatistics
from hfq.convert.ops import Op
from hfq.convert.recipe import Recipe
from hfq.convert.weights import QuantizedWeight

__all__ = ["Stage", "StageInput", "StageResult", "pooled_rows"]


@dataclass(frozen=True)
class StageInput:
    """One site as a stage sees it.

    Attributes:
        site: name and sizes.
        base: the base's weight, BF16 [out_features, in_features].
        weight: as the stages before have left it: BF16 or fp32 [out_features, in_features'].
        ops: of the stages before, bound to the weight.
        quantized: codes that a stage before has chosen, or, for a stage after the weight is done, its plain ones.
        statistics: of the site's input; None when the recipe needs none.
        edges: timestep edges of the expert's bins; None without a calibration.
        recipe: formats of weight and activation.
        options: the stage's table in the recipe, normalised.
        where: expert and site, for error messages.
    """

    site: Site
    base: Tensor
    weight: Tensor
    ops: Sequence[Op]
    quantized: QuantizedWeight | None
    statistics: GroupStatistics | None
    edges: tuple[float, float] | None
    recipe: Recipe
    options: Mapping[str, Any]
    where: str

    def channels(self, values: Tensor) -> Tensor:
        """Magnitudes per input channel of the linear, float64 [in_features], as the ops before have left them."""
        for op in self.ops:
            values = op.on_channels(values)
        return values

    def carrying(self, channels: Tensor) -> Tensor:
        """Which channels carry anything, bool [in_features], as the ops before have left them."""
        for op in self.ops:
            channels = op.on_carrying(channels)
        return channels

    def activation(self, rows: Tensor) -> Tensor:
        """Input rows BF16 [rows, in_features] as the ops before leave them."""
        for op in self.ops:
            rows = op.on_activation(rows)
        return rows


@dataclass(frozen=True)
class StageResult:
    """What a stage adds to a site.

    Attributes:
        op: the runtime op, as in `ops` of a delta; None when the stage leaves the site as it is.
        state: tensors to store, by local name.
        quantized: the weight's codes, from a stage that chooses them.
        search: what a choice that waits for other sites is made from.
        rounded: why a stage that chooses codes has left the weight to plain rounding.
    """

    op: Mapping[str, Any] | None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    quantized: QuantizedWeight | None = None
    search: Mapping[str, Any] | None = None
    rounded: str | None = None


Stage = Callable[[StageInput], StageResult]


def pooled_rows(statistics: GroupStatistics, limit: int) -> Tensor:
    """The rows of `GroupStatistics.first_rows` as one, BF16 [rows, in_features]."""
    bins = statistics.first_rows(limit)
    return torch.cat(bins) if bins else torch.empty(0, statistics.channels, dtype=torch.bfloat16)

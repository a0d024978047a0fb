"""What a recipe stage takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hfq.convert.architecture import Site
from hfq.convert.calibration import GroupStatistics

__all__ = ["Stage", "StageInput", "StageResult"]


@dataclass(frozen=True)
class StageInput:
    """One site as a stage sees it.

    Attributes:
        site: name and sizes.
        weight: [out_features, in_features], as the stages before have left it.
        statistics: of the site's input; None when no stage of the recipe needs any.
        options: the stage's table in the recipe, normalised.
        where: expert and site, for error messages.
    """

    site: Site
    weight: Tensor
    statistics: GroupStatistics | None
    options: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class StageResult:
    """What a stage adds to a site.

    Attributes:
        state: tensors to store, by local name.
        op: the runtime op that consumes them, as in `ops` of a delta.
    """

    state: Mapping[str, Tensor]
    op: Mapping[str, Any]


Stage = Callable[[StageInput], StageResult]

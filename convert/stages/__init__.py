"""Recipe stages: one file each, one function from a site to the state and the runtime op that it adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hfq.convert.stages.clip import clip
from hfq.convert.stages.gptq import gptq
from hfq.convert.stages.lowrank import lowrank
from hfq.convert.stages.outlier_columns import outlier_columns
from hfq.convert.stages.rotate import rotate
from hfq.convert.stages.smooth import smooth
from hfq.convert.stages.stage import Stage, StageInput, StageResult

__all__ = ["STAGES", "StageInput", "StageResult"]

STAGES: Final[Mapping[str, Stage]] = {
    "smooth": smooth,
    "outlier_columns": outlier_columns,
    "rotate": rotate,
    "lowrank": lowrank,
    "gptq": gptq,
    "clip": clip,
}
"""A recipe's `kind` -> what computes it."""

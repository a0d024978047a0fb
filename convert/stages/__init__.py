"""Recipe stages: one file each, one function from a site to the state and the runtime op that it adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hfq.convert.stages import smooth as _smooth
from hfq.convert.stages.stage import Stage, StageInput, StageResult

__all__ = ["OPS", "STAGES", "StageInput", "StageResult"]

STAGES: Final[Mapping[str, Stage]] = {"smooth": _smooth.smooth}
"""A recipe's `kind` -> what computes it."""

OPS: Final[Mapping[str, Mapping[str, Any]]] = {"smooth": _smooth.OP}
"""A recipe's `kind` -> the runtime op that it leaves in the delta."""

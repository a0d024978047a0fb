"""`lowrank`: a low-rank branch in BF16 that reads the unquantized input, and what it leaves of the weight.

    y = Q(x) Q(w - up down)^T + (x down^T) up^T        up down = the best approximation of w of that rank

w and x as the stages before have left them (SVDQuant, arXiv 2411.05007; timestep-aware SVDQuant-GPTQ, 2605.27003). A
singular value decomposition is not the same on every machine, so the factors are stored; what they leave of the weight
is re-derived, rank by rank in fp32.
"""

from __future__ import annotations

from hfq.convert.stages.stage import StageInput, StageResult
from hfq.convert.threads import single_thread
from hfq.convert.truncated_svd import low_rank_factors

__all__ = ["lowrank"]


def lowrank(given: StageInput) -> StageResult:
    """State `lowrank_down` BF16 [rank, in_features'], `lowrank_up` BF16 [out_features, rank]."""
    with single_thread():
        down, up = low_rank_factors(given.weight.float(), int(given.options["rank"]))
    return StageResult(
        {"op": "lowrank", "down": "lowrank_down", "up": "lowrank_up"}, {"lowrank_down": down, "lowrank_up": up}
    )

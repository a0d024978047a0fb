"""`clip`: the headroom on the activation's group maximum that serves each timestep bin best.

The search measures the linear's output on kept input rows of the bin, quantized as it will run (weight, branch and
ops), against the original linear's: normalised mean squared error, in every bin for every candidate. What is chosen
from these errors depends on the scope, which may join experts, so that it is chosen when all sites are done
(`hfq.convert.clip_choice`). Timestep-aware SVDQuant-GPTQ (arXiv 2605.27003) does this for MXFP4 below 1; in HiFloat4,
which has no code above the group maximum, the useful range lies around 1.
"""

from __future__ import annotations

from typing import Any

import torch

from hfq.convert.clip import BINS
from hfq.convert.site_output import SiteOutput
from hfq.convert.stages.stage import StageInput, StageResult
from hfq.convert.threads import single_thread

__all__ = ["clip"]


def clip(given: StageInput) -> StageResult:
    """No state; `search` holds squared output errors [bins][candidates] and powers [bins], 0 in a bin without rows."""
    assert given.statistics is not None
    assert given.quantized is not None
    assert given.edges is not None
    candidates = [float(value) for value in given.options["candidates"]]
    operand = given.quantized.dequantize(torch.float32)
    errors: list[list[float]] = []
    powers: list[float] = []
    with single_thread():
        for index in range(BINS):
            rows = given.statistics.inputs.get(index)
            if rows is None or not len(rows):
                errors.append([0.0] * len(candidates))
                powers.append(0.0)
                continue
            rows = rows[: int(given.options["rows"])]
            exact = rows.float() @ given.base.float().T
            output = SiteOutput(given.ops, operand, given.recipe.activation, rows)
            errors.append([float((output.at(h) - exact).double().square_().sum()) for h in candidates])
            powers.append(float(exact.double().square_().sum()))
    search: dict[str, Any] = {"candidates": candidates, "errors": errors, "powers": powers}
    return StageResult({"op": "clip", "edges": list(given.edges)}, search=search)

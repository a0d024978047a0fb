"""What a conversion would do and take, from headers alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .analyze import Analysis
from .calibration import Calibration
from .checkpoint import Checkpoint
from .conversion_plan import STATISTICS_HELD, Plan, plan_conversion
from .delta_inspect import routing_table
from .progress import Progress, Silent
from .prompts import Prompt
from .recipe import Recipe
from .scan_pass import weights_at_once
from .site_costs import Speed, measure_speed, measuring_seconds, site_seconds, stage_bytes, trying_seconds
from .threads import thread_count

__all__ = ["dry_run"]

_KEPT_BYTES: Final = 150
_SITE_BYTES: Final = 550
_TENSOR_BYTES: Final = 160
_RUNTIME_BYTES: Final = 650_000_000  # Python, torch, numba, chunks, documents
# Reading from memory takes a tenth of hashing; from a disk it may take longer than everything else.
_READING: Final = 0.1
_START_S: Final = 2.0


def dry_run(
    checkpoint: Checkpoint,
    recipe: str | os.PathLike[str] | Recipe | Mapping[str, Any],
    calibration: str | os.PathLike[str] | Calibration | None = None,
    progress: Progress | None = None,
    *,
    analysis: str | os.PathLike[str] | Analysis | None = None,
    evaluation_prompts: Sequence[Prompt] | None = None,
) -> dict[str, Any]:
    """What `quantize` would do: recipe, routing, warnings, predicted delta size, peak memory and time. Of the base it
    reads headers, and with a calibration the small tensors and one linear, to see that it is the base of that.

    Raises:
        what `plan_conversion` raises
    """
    plan = plan_conversion(
        checkpoint,
        recipe,
        calibration,
        progress or Silent(),
        analysis=analysis,
        evaluation_prompts=evaluation_prompts,
    )
    speed, threads = measure_speed(), thread_count()
    state = documents = peak = 0
    busy = 0.0
    for role, routes in plan.routes.items():
        peak = max(peak, _working_bytes(plan, role, threads) + _statistics_bytes(plan, role, threads))
        for site, route in routes.items():
            documents += _KEPT_BYTES
            if route.to == "quantize":
                documents += _SITE_BYTES
                found, stages = plan.sites[role][site], plan.stages(role, site)
                state += stage_bytes(stages, found)[0]
                busy += site_seconds(stages, found, speed)
                if (role, found.input_group) in plan.use.measured:
                    busy += measuring_seconds(found, speed)
                if (role, site) in plan.use.tried:
                    busy += trying_seconds(stages, found, speed)
    base = weights = 0
    for role, expert in checkpoint.experts.items():
        sizes = {name: 2 * math.prod(expert.info(name).shape) for name in expert.names}
        base, documents = base + sum(sizes.values()), documents + _TENSOR_BYTES * len(sizes)
        held = sorted((size for name, size in sizes.items() if plan.needs_whole(role, name)), reverse=True)
        weights = max(weights, sum(held[: weights_at_once(threads, held[0])]) if held else 0)
    return {
        "recipe": plan.recipe.name,
        "routing": routing_table(plan.routes),
        "warnings": list(plan.warnings),
        "sparse": plan.use.sparse_counts(),
        "rounded": plan.use.rounded_counts(),
        "delta_bytes": state + documents,
        "base_bytes": base,
        "threads": threads,
        "seconds": round(_wall_seconds(checkpoint, busy, speed, threads), 1),
        "peak_bytes": _RUNTIME_BYTES + weights + peak,
    }


def _working_bytes(plan: Plan, role: str, threads: int) -> int:
    """What works on weights take at one time: as many as there are threads, while the memory allows it."""
    costs = sorted(plan.working_bytes(role).values(), reverse=True)[:threads]
    return max(max(costs, default=0), min(sum(costs), plan.memory_bytes))


def _statistics_bytes(plan: Plan, role: str, threads: int) -> int:
    """The input groups that are held, and a copy of the kept rows for each thread."""
    if plan.calibration is None or role not in plan.use.calibrated:
        return 0
    plans = (plan.calibration.plan(role, group) for group in plan.calibration.groups(role))
    sizes = sorted(sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in found.tensors()) for found in plans)
    return sum(sizes[-STATISTICS_HELD:]) + threads * max(sizes, default=0)


def _wall_seconds(checkpoint: Checkpoint, busy: float, speed: Speed, threads: int) -> float:
    """Time with the files in memory: files and tensors are hashed, and one file is one stream."""
    sizes = [size for expert in checkpoint.experts.values() for _, size in expert.file_sizes()]
    hashing = (2 + _READING) * sum(sizes) / speed.hash_bytes
    return _START_S + max((hashing + busy) / threads, max(sizes) / speed.hash_bytes)

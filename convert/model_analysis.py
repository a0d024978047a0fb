"""What quantizing one block, or all but a few, does to a whole expert: run on the calls that a calibration kept.

Unlike the figures per linear this needs the transformer in memory, so it is left out, with the reason, where that
cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from .architecture import Architecture
from .block_errors import BlockErrors, ErrorFigures, arms_errors, block_errors
from .boundary_arms import boundary_arms, compare_arms
from .expert_analysis import Formats
from .kept_calls import ModelCall
from .progress import Progress
from .transformer import memory_bytes

__all__ = ["analyze_model", "available_bytes", "needed_bytes", "obstacle"]

_BF16: Final = 2
_RUNTIME_BYTES: Final = 450_000_000
_CACHED_BYTES: Final = 256_000_000
"""Quantized weights that `block_errors` keeps between calls."""

_NARROW: Final = 24
_WIDE: Final = 4
"""Activations of the model's and of the feed-forward's width that are alive at once, of the model's run and of the run
inside it from one block on; some of them are fp32, which counts twice."""

_MEMINFO: Final = Path("/proc/meminfo")


def needed_bytes(architecture: Architecture, calls: Sequence[ModelCall]) -> int:
    """Memory that the errors of a model take, estimated: the transformer in BF16, one block's weights again while they
    are quantized, and the activations of the largest call."""
    block = _BF16 * sum(site.in_features * site.out_features for site in architecture.sites() if site.block == 0)
    latents = [call.inputs["hidden_states"] for call in calls]
    elements = [math.prod(x.shape[2:]) for x in latents if isinstance(x, Tensor)]
    tokens = max(elements) // math.prod(architecture.patch_size)
    per_token: int = _BF16 * (_NARROW * architecture.dim + _WIDE * architecture.ffn_dim)
    # Codes, values, and what the encoder makes of the largest weight on the way.
    return memory_bytes(architecture) + 4 * block + _CACHED_BYTES + tokens * per_token + _RUNTIME_BYTES


def available_bytes() -> int | None:
    """Memory that can be had without swapping, in bytes; None where the system does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def obstacle(architecture: Architecture, calls: Sequence[ModelCall]) -> str | None:
    """Why the errors of the whole model cannot be measured here, or None when they can."""
    if not calls:
        return "the calibration kept no model calls (hfq calibrate --keep-calls N)"
    needed, available = needed_bytes(architecture, calls), available_bytes()
    if available is not None and needed > available:
        return f"the model needs about {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free"
    return None


def analyze_model(
    transformer: nn.Module, role: str, depth: int, calls: Sequence[ModelCall], formats: Formats, progress: Progress
) -> dict[str, Any]:
    """`model` of an expert under `hfq.analysis/1`: isolated and propagated error per block, and the boundary arms.

    Args:
        transformer: the expert, from `build_transformer`.
        depth: its blocks.

    Raises:
        CalibrationBaseError, NonFiniteActivationError, and what `block_errors` raises
    """
    found = block_errors(transformer, calls, formats.weight, formats.activation, progress)
    arms = boundary_arms(depth, role)
    values = arms_errors(transformer, calls, formats.weight, formats.activation, arms, progress)
    return {
        "calls": [
            {"step": call.step, "t": call.t, "branch": call.branch, "bin": call.bin, "prompt": call.prompt_sha256}
            for call in calls
        ],
        "blocks": _blocks(found),
        "arms": compare_arms(arms, values),
    }


def _blocks(found: BlockErrors) -> dict[str, Any]:
    return {
        name: {**_figures(block), "bins": {str(index): _figures(part) for index, part in block.bins.items()}}
        for name, block in found.blocks.items()
    }


def _figures(errors: ErrorFigures) -> dict[str, float]:
    return {
        "isolated": errors.isolated,
        "isolated_contribution": errors.isolated_contribution,
        "propagated": errors.propagated,
    }

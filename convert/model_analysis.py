"""What quantizing one block, or all but a few, does to a whole expert: run on the calls that a calibration kept.

Every figure is a mean over the calls, weighed by what their steps move the latent, with an interval; every block has
the range of ranks that it may have.

Unlike the figures per linear this needs the transformer in memory, so it is left out, with the reason, where that
cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor, nn

from .architecture import Architecture
from .block_errors import ErrorFigures, arms_errors, block_errors
from .boundary_arms import boundary_arms, compare_arms
from .call_sample import CallSample, Floats
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

_FIGURES: Final = ("isolated", "isolated_contribution", "propagated")

_TODO: Final = "calibrate with --keep-calls 4 or more, and several prompts"

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
    sample = CallSample(calls)
    for reason in sample.weak:
        progress.note(f"warning: {role}: the ranking of blocks is weak: {reason} ({_TODO})")
    return {
        "calls": [
            {"step": call.step, "t": call.t, "branch": call.branch, "bin": call.bin, "prompt": call.prompt_sha256,
             "movement": call.movement}
            for call in calls
        ],
        "sample": {"pairs": sample.pairs, "weak": sample.weak},
        "blocks": _blocks(found, calls, sample),
        "arms": compare_arms(arms, values, sample),
    }  # fmt: skip


def _blocks(
    found: Mapping[str, Sequence[ErrorFigures]], calls: Sequence[ModelCall], sample: CallSample
) -> dict[str, Any]:
    tables = {name: _table(found, name) for name in _FIGURES}
    ranks = {name: sample.ranks(table) for name, table in tables.items()}
    bins = {index: [n for n, call in enumerate(calls) if call.bin == index] for index in {call.bin for call in calls}}
    samples = {index: CallSample([calls[n] for n in numbers]) for index, numbers in bins.items()}
    return {
        block: {
            **{name: sample.mean(table[row]) for name, table in tables.items()},
            "bins": {
                str(index): {name: samples[index].mean(table[row, bins[index]]) for name, table in tables.items()}
                for index in sorted(bins)
            },
            "intervals": {name: sample.interval(table[row]) for name, table in tables.items()},
            "ranks": {name: ranks[name][row] for name in tables},
        }
        for row, block in enumerate(found)
    }


def _table(found: Mapping[str, Sequence[ErrorFigures]], name: str) -> Floats:
    """[blocks, calls]"""
    return np.array([[getattr(errors, name) for errors in of_block] for of_block in found.values()], dtype=np.float64)

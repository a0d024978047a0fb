"""What a calibration will take, from sizes alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .architecture import Architecture
from .calibration_options import CalibrationOptions
from .generation import GenerationSettings
from .histogram import BINS
from .kept_calls import spread_counts
from .pipeline_plan import ModelPlan
from .schedule import ExpertSchedule
from .transformer import memory_bytes

__all__ = ["Estimate", "estimate", "input_groups"]

_INT32: Final = 4
_BF16: Final = 2
_PER_CALL: Final = 4 + 8
"""Bytes per channel and call: maximum in float32, sum of squares in float64."""

_INT64: Final = 8
_FLOAT32: Final = 4
_CLIP_TOKENS: Final = 257
"""Image tokens of the CLIP encoder of Wan 2.1."""


@dataclass(frozen=True)
class Estimate:
    """What a calibration will take.

    Attributes:
        statistics_bytes: memory of the statistics and kept calls of one prompt, all experts.
        calls_bytes: of it, kept calls.
        model_bytes: memory of the transformers.
        disk_bytes: on disk at the end of the run, before finished parts are removed.
        forwards: of a transformer, all prompts.
        tokens: of one forward.
        forward_flops: of one forward.
    """

    statistics_bytes: int
    calls_bytes: int
    model_bytes: int
    disk_bytes: int
    forwards: int
    tokens: int
    forward_flops: float


def input_groups(architecture: Architecture) -> dict[str, tuple[str, int]]:
    """group -> (first site of the group, its width), in the order of the forward pass."""
    groups: dict[str, tuple[str, int]] = {}
    for site in architecture.sites():
        groups.setdefault(site.input_group, (site.name, site.in_features))
    return groups


def call_bytes(plan: ModelPlan, settings: GenerationSettings, dtype_bytes: int) -> int:
    """Bytes of a kept call: latents, text, timestep, and image or control inputs where the model takes them."""
    architecture = plan.architecture
    tokens = plan.sizes.tokens(settings, architecture.patch_size)
    pixels = tokens * math.prod(architecture.patch_size)
    elements = architecture.in_channels * pixels
    elements += (settings.max_sequence_length or architecture.text_len) * architecture.text_dim
    if architecture.image_dim is not None:
        elements += image_tokens(architecture) * architecture.image_dim
    if architecture.vace_blocks:
        elements += (architecture.vace_in_channels or 0) * pixels + architecture.vace_blocks
    # TI2V has a timestep per token: a given first frame is not noise.
    timestep = tokens * _FLOAT32 if architecture.model_type == "ti2v" else _INT64
    return elements * dtype_bytes + timestep


def estimate(
    plan: ModelPlan,
    settings: GenerationSettings,
    schedules: Mapping[str, ExpertSchedule],
    options: CalibrationOptions,
    prompts: int,
    *,
    dtype_bytes: int = _BF16,
) -> Estimate:
    """Predict memory, disk and work; `dtype_bytes` is the size of a number in the dtype in which the model runs."""
    architecture = plan.architecture
    channels = sum(width for _, width in input_groups(architecture).values())
    statistics = calls = merged_calls = 0
    for schedule in schedules.values():
        keys = len(schedule.histogram_keys(options.by))
        bins = len({call.bin for call in schedule.calls})
        per_channel = keys * (BINS + 1) * _INT32 + len(schedule.calls) * _PER_CALL + bins * options.keep_inputs * _BF16
        statistics += channels * per_channel
        for cell in Counter((call.bin, call.branch) for call in schedule.calls).values():
            calls += min(options.sampled_calls, cell)
            merged_calls += min(options.sampled_calls, cell * prompts)
        branches = len({call.branch for call in schedule.calls})
        for count in spread_counts(schedule, options.kept_calls).values():
            calls += branches * min(1, count)
            merged_calls += branches * min(prompts, count)
    each = call_bytes(plan, settings, dtype_bytes)
    tokens = plan.sizes.tokens(settings, architecture.patch_size)
    # Every prompt's part lies on disk until they are joined: that is also what a resumed run continues from.
    return Estimate(
        statistics_bytes=statistics + calls * each,
        calls_bytes=calls * each,
        model_bytes=memory_bytes(architecture) * len(plan.roles),
        disk_bytes=statistics * (prompts + 1) + (calls * prompts + merged_calls) * each,
        forwards=prompts * settings.steps * len(settings.branches),
        tokens=tokens,
        forward_flops=forward_flops(architecture, tokens),
    )


def forward_flops(architecture: Architecture, tokens: int) -> float:
    """Floating-point operations of the blocks' linears and self-attentions in one forward."""
    linear = sum(site.in_features * site.out_features for site in architecture.sites() if site.in_block)
    attention = 2 * (architecture.num_layers + architecture.vace_blocks) * tokens * architecture.dim
    return 2.0 * tokens * (linear + attention)


def image_tokens(architecture: Architecture) -> int:
    """Tokens of the image embedding of a model with an image branch."""
    return architecture.image_tokens or _CLIP_TOKENS

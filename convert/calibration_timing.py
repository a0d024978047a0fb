"""How long a calibration takes: some forwards of the model's own shape on this machine, with the statistics, scaled up.

No weight of the checkpoint is read: what a product takes does not depend on its numbers, so random ones do. A small
model runs whole at the size that was asked for. Of a large one a single block runs, over as many tokens as a few
seconds allow; its time is scaled by the number of operations, that of the statistics by the numbers they look at.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from .architecture import Architecture
from .calibrate import collector_of
from .calibration_estimate import Estimate, forward_flops, image_tokens, input_groups
from .calibration_options import CalibrationOptions
from .generation import GenerationSettings
from .pipeline_plan import ModelPlan
from .progress import Silent
from .schedule import Call, expert_schedules
from .transformer import empty_transformer, keeps_fp32, memory_bytes, set_tensor

__all__ = ["RunTime", "measure_run_time"]

_WHOLE_BYTES: Final = 256_000_000
"""A model up to this size runs with all its blocks."""

_FORWARD_S: Final = 2.0
"""A forward with fewer operations than this time has at the speed of matrix products runs at its full size."""

_MEASURE_S: Final = 4.0
_STEPS: Final = 20
_PASSES: Final = 3
"""Times that a byte of statistics is hashed, written or read again: in its part, checked, and in the result."""


@dataclass(frozen=True)
class RunTime:
    """How long a run will take.

    Attributes:
        seconds: in all, without reading the weights, the text encoder and offloading.
        forward_s, statistics_s: of one forward, and of its statistics.
        basis: what was measured, in words.
    """

    seconds: float
    forward_s: float
    statistics_s: float
    basis: str


def measure_run_time(
    plan: ModelPlan,
    settings: GenerationSettings,
    options: CalibrationOptions,
    expected: Estimate,
    *,
    device: str,
    dtype: torch.dtype,
) -> RunTime:
    """Measure for a few seconds and scale to the whole run.

    Args:
        expected: of the run, from `estimate`.

    Raises:
        UnsupportedModelError, MissingDependencyError
        torch.OutOfMemoryError: the device has no room for one block.
    """
    whole = plan.architecture
    measured = whole if memory_bytes(whole) <= _WHOLE_BYTES else _one_block(whole)
    grid = _grid(plan, settings)
    rate = _matmul_rate(device, whole)
    while math.prod(grid) > 256 and forward_flops(measured, math.prod(grid)) > rate * _FORWARD_S:
        largest = grid.index(max(grid))
        grid = (*grid[:largest], grid[largest] // 2, *grid[largest + 1 :])
    tokens = math.prod(grid)
    found = _measure(measured, grid, settings, options, device, dtype)
    forward_s = found.forward_s * expected.forward_flops / forward_flops(measured, tokens)
    numbers = expected.tokens * _channels(whole) / (tokens * _channels(measured))
    statistics_s = found.statistics_s * numbers
    writing_s = _PASSES * expected.disk_bytes / _hash_rate()
    size = "all blocks" if measured is whole else f"one of {whole.num_layers + whole.vace_blocks} blocks"
    scaled = "" if measured is whole and tokens == expected.tokens else ", scaled by operations"
    return RunTime(
        found.start_s + expected.forwards * (forward_s + statistics_s) + writing_s,
        forward_s,
        statistics_s,
        f"{found.forwards} forwards of {size} with random weights over {tokens} of {expected.tokens} tokens on {device}"
        f"{scaled}",
    )


def _one_block(whole: Architecture) -> Architecture:
    if whole.vace_blocks:
        return replace(whole, num_layers=1, vace_blocks=1, vace_layers=(0,))
    return replace(whole, num_layers=1)


def _grid(plan: ModelPlan, settings: GenerationSettings) -> tuple[int, ...]:
    """Patches in time, height and width."""
    sizes = ((settings.frames - 1) // plan.sizes.temporal + 1, settings.height // plan.sizes.spatial,
             settings.width // plan.sizes.spatial)  # fmt: skip
    return tuple(max(1, size // patch) for size, patch in zip(sizes, plan.architecture.patch_size, strict=True))


def _channels(architecture: Architecture) -> int:
    return sum(width for _, width in input_groups(architecture).values())


@dataclass(frozen=True)
class _Measured:
    forwards: int
    start_s: float
    forward_s: float
    statistics_s: float


def _measure(
    architecture: Architecture,
    grid: tuple[int, ...],
    settings: GenerationSettings,
    options: CalibrationOptions,
    device: str,
    dtype: torch.dtype,
) -> _Measured:
    model = _random_transformer(architecture, device, dtype)
    times = [1000.0 * (1 - step / _STEPS) for step in range(_STEPS)]
    schedule = expert_schedules(times, ["single"], None, settings.branches)["single"]
    inputs = _inputs(architecture, grid, settings, device, dtype)
    collector = collector_of({"single": model}, architecture, {"single": schedule}, times, settings, options, Silent())
    collector.begin("0" * 64)

    def run(call: Call) -> float:
        started = time.perf_counter()
        with model.cache_context(call.branch):  # type: ignore[operator]
            model(**inputs(call.t), return_dict=False)
        _synchronize(device)
        return time.perf_counter() - started

    with collector.attached(), torch.no_grad():
        # The first forward compiles and allocates: that happens once in a run, too.
        first_s = run(schedule.calls[0])
        collector.settle()
        before = collector.seconds
        spent: list[float] = []
        for call in schedule.calls[1:]:
            spent.append(run(call))
            if sum(spent) > _MEASURE_S:
                break
        inside_s = collector.seconds - before
        collector.settle()
    statistics_s = (collector.seconds - before) / len(spent)
    forward_s = (sum(spent) - inside_s) / len(spent)
    return _Measured(len(spent), max(0.0, first_s - forward_s - statistics_s), forward_s, statistics_s)


def _random_transformer(architecture: Architecture, device: str, dtype: torch.dtype) -> nn.Module:
    model = empty_transformer(architecture)
    noise = 0.02 * torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    for name, parameter in list(model.named_parameters()):
        kept = torch.float32 if keeps_fp32(model, name) else dtype
        count = parameter.numel()
        value = noise.to(kept).repeat(-(-count // noise.numel()))[:count].view(parameter.shape)
        set_tensor(model, name, value.to(device))
    return model.to(device).eval()


def _inputs(
    architecture: Architecture, grid: tuple[int, ...], settings: GenerationSettings, device: str, dtype: torch.dtype
) -> Callable[[float], dict[str, Any]]:
    """The arguments of a forward, as the pipelines give them, for a timestep."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    latent = [count * patch for count, patch in zip(grid, architecture.patch_size, strict=True)]
    fixed = {
        "hidden_states": random(1, architecture.in_channels, *latent),
        "encoder_hidden_states": random(
            1, settings.max_sequence_length or architecture.text_len, architecture.text_dim
        ),
    }
    if architecture.image_dim is not None:
        images = 2 if architecture.model_type == "flf2v" else 1
        fixed["encoder_hidden_states_image"] = random(
            images, image_tokens(architecture) // images, architecture.image_dim
        )
    if architecture.vace_blocks:
        fixed["control_hidden_states"] = random(1, architecture.vace_in_channels or 0, *latent)

    def inputs(t: float) -> dict[str, Any]:
        # Of a given first frame every token has a timestep.
        shape = (1, math.prod(grid)) if architecture.model_type == "ti2v" else (1,)
        return {**fixed, "timestep": torch.full(shape, t, device=device)}

    return inputs


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _repeated(work: Callable[[], object], device: str, seconds: float) -> float:
    """Times per second that something is done, after once without counting."""
    work()
    _synchronize(device)
    started, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - started < seconds:
        work()
        _synchronize(device)
        count += 1
    return count / (time.perf_counter() - started)


def _matmul_rate(device: str, architecture: Architecture) -> float:
    """Floating-point operations per second of BF16 products of the model's widths."""
    rows = 512 if device == "cpu" else 8192
    left = torch.ones(rows, architecture.dim, dtype=torch.bfloat16, device=device)
    right = torch.ones(architecture.dim, architecture.ffn_dim, dtype=torch.bfloat16, device=device)
    return _repeated(lambda: left @ right, device, 0.3) * 2.0 * rows * architecture.dim * architecture.ffn_dim


def _hash_rate() -> float:
    """Bytes per second of SHA-256, which takes longer than the disk's share."""
    data = bytes(1 << 24)
    return _repeated(lambda: hashlib.sha256(data).digest(), "cpu", 0.1) * len(data)

"""Calibration statistics by compiled kernels: large inputs on a CPU, with the bits of the eager path.

How numbers are added is part of a calibration's identity. torch adds the rows of [rows, channels] in an order that its
number of threads does not change, and which the kernels follow, where the number of channels is a multiple of 32; the
inputs of all released models are. The rest is for the eager path.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hfq.formats._compiled import run_ranges, runs_compiled

from .histogram import Histogram, keys_of_bf16, too_many_samples

__all__ = ["observe", "observes"]

_LEAST: Final = 1 << 17
"""Elements from which a call of its own is cheaper than waiting for others."""

_LANES: Final = 32


def observes(x: Tensor) -> bool:
    """Whether `observe` takes this input BF16 [rows, channels]."""
    return x.numel() >= _LEAST and x.shape[1] % _LANES == 0 and runs_compiled(x, x)


def observe(x: Tensor, sampled: Tensor, largest: Tensor, squares: Tensor, histogram: Histogram) -> None:
    """Add the rows of a call to its statistics, in place. Threads of torch share the channels.

    Args:
        x: BF16 [rows, channels].
        sampled: int64, rising: the rows that enter the histogram.
        largest: float32 [channels], largest |x| of the call.
        squares: float64 [channels], sum of squares of the call.
        histogram: of the same channels.

    Raises:
        CalibrationRangeError: more samples than a bin can count; the histogram is then useless.
    """
    # Loading numba takes a second, which a command that calibrates nothing does not pay.
    from . import statistics_kernels as kernels

    rows, channels = x.shape
    given: tuple[Any, ...] = (
        x.contiguous().view(torch.int16).view(-1).numpy().view(np.uint16), rows, channels, sampled.numpy(),
        keys_of_bf16(x.device).numpy(), largest.numpy(), squares.numpy(),
        histogram.top.numpy(), histogram.counts.view(-1).numpy(),
    )  # fmt: skip

    kernel: Any = kernels.observe

    def work(first: int, last: int) -> bool:
        over: bool = kernel(*given, first, last)
        return over

    if any(run_ranges(work, -(-channels // kernels.BLOCK), x.numel())):
        raise too_many_samples()

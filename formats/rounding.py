"""Rounding fp32 to bf16: nearest, ties to even, with integers alone, so that every machine gives the same bits.

Subnormals are kept, overflow becomes infinity, every NaN becomes 7FC0.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._compiled import kernels, run_ranges, runs_compiled
from ._layout import patterns
from ._operand import round_bits_to_bf16
from ._tiles import as_matrix, bits_of, checked, tiles

__all__ = ["round_into", "round_to_bf16"]


def round_to_bf16(x: Tensor) -> Tensor:
    """`x` [..., K] (bf16, fp32 or fp16) rounded to bf16, contiguous, outside autograd; bf16 comes back as it is.

    Raises:
        UnsupportedDtypeError, UnsupportedShapeError: `x` has another dtype or no axis.
    """
    x = checked(x)
    if x.dtype == torch.bfloat16:
        return x
    if torch.compiler.is_compiling():  # which makes tiles of its own
        return _halves(round_bits_to_bf16(bits_of(x.to(torch.float32).contiguous())))
    out = torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    if x.dtype == torch.float32 and x.is_contiguous() and runs_compiled(x, out):
        round_into(patterns(x), patterns(out))
    elif x.numel():
        matrix, rows = as_matrix(x), as_matrix(out)
        for tile in tiles(matrix):
            rows[tile] = _halves(round_bits_to_bf16(bits_of(matrix[tile].to(torch.float32).contiguous())))
    return out


def _halves(bits: Tensor) -> Tensor:
    """The bf16 values of fp32 patterns whose lower half is zero."""
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


def round_into(source: Any, out: Any) -> None:
    """fp32 patterns uint32 [n], contiguous numpy, rounded into bf16 patterns uint16 [n]; compiled."""
    source, out = source.view(np.uint32), out.view(np.uint16)
    run_ranges(functools.partial(kernels("rounding_kernels").round_words, source, out), source.size, source.size)

"""NVFP4 quantize-dequantize, for comparison tables only: 16 E2M1 values, one E4M3 scale, one fp32 scale per tensor.

Source: NVIDIA, "Introducing NVFP4 for efficient and accurate low-precision inference" (2025), and the two-level
scaling of arXiv 2509.25149.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ._e2m1 import E2M1_MAX, round_to_e2m1
from ._tiles import as_matrix, checked, groups_of, tiles, ungrouped

__all__ = ["qdq"]

BLOCK: Final = 16  # values that share one E4M3 scale, adjacent on the last axis
E4M3_MAX: Final = 448.0
E4M3_MIN: Final = 2.0**-9  # smallest subnormal; a block scale never rounds to zero


def qdq(x: Tensor, *, tensor_scale: bool = True) -> Tensor:
    """Quantize and dequantize `x` [..., K] (bf16, fp32 or fp16) in blocks of 16; a short last block counts as zeros.

    Args:
        x: any strides. A block with NaN or infinity becomes NaN; with `tensor_scale` so does every other block.
        tensor_scale: map the tensor's amax to 6 * 448 first; without it block scales may underflow or saturate.

    Returns:
        A new tensor with the shape and dtype of `x`, outside autograd.

    Raises:
        UnsupportedDtypeError, UnsupportedShapeError: `x` has another dtype or no axis.
    """
    x = checked(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return out
    matrix, rows = as_matrix(x), as_matrix(out)
    whole = torch.ones((), dtype=torch.float32, device=x.device)
    if tensor_scale:
        whole = x.abs().amax().to(torch.float32) / (E2M1_MAX * E4M3_MAX)
        whole = whole.where(whole != 0, 1.0)
    for r, c in tiles(matrix, multiple=BLOCK):
        blocks = groups_of(matrix[r, c], BLOCK)
        scale = blocks.abs().amax(-1, keepdim=True) / (E2M1_MAX * whole)
        # torch's cast turns what exceeds 448 into NaN, so the clamp comes first.
        scale = scale.clamp(E4M3_MIN, E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32) * whole
        rows[r, c] = ungrouped(round_to_e2m1(blocks / scale) * scale, matrix[r, c])
    return out

"""HiFloat8: quantize tensors to one byte per value, fast, on any device, optionally with a power-of-two scale.

The format is in `hif8_spec`, the readable conversion in `hif8_reference`, the bytes in `hif8_bytes`. Two twins of the
reference do the work and agree with it bit for bit: `hif8_compiled` large tensors on a CPU, `hif8_eager` the rest.

Conversion: the nearest of {0, all finite values, infinity placed at 1.5 * 2^15}, ties away from zero.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from . import hif8_compiled, hif8_eager
from ._compiled import runs_compiled
from ._operand import Operand, checked_dtype, operand_of
from ._tiles import as_matrix, power_of_two
from .hif8_bytes import Hif8Tensor
from .hif8_eager import codes_table, exponents_of_amax, rounded_table
from .hif8_spec import NonFinite, Scaling, checked_option

__all__ = ["Hif8Tensor", "qdq", "quantize"]


def quantize(
    x: Tensor,
    *,
    scale: Scaling = "none",
    saturate: bool = False,
    nonfinite: NonFinite = "refuse",
    divisor: Tensor | None = None,
    through: torch.dtype | None = None,
) -> Hif8Tensor:
    """Encode `x` (bf16, fp32 or fp16, at least one axis): code = HiF8(x / scale).

    Args:
        x: any strides; fp16 is widened to fp32.
        scale: "none" casts directly; "tensor" and "row" (along the last axis) divide by 2^ceil(log2(amax / 15)), which
            puts the largest magnitude at the top of the range that keeps three mantissa bits. A tensor or row of
            zeros has scale 1; no scale is below 2^-126.
        saturate: overflow goes to +-2^15 instead of infinity, NaN to zero (the paper's saturating mode).
        nonfinite: "refuse" raises for NaN or infinity in `x`; "encode" gives them their codes and leaves them out of
            amax. Either way a large finite value may overflow to infinity when it is neither scaled nor saturated.
        divisor: fp32 [K]; `x` is divided by it in fp32, rounded once, before anything else sees it.
        through: torch.bfloat16: `x` is rounded to it first, nearest even.

    Returns:
        Codes and scale on the device of `x`. The same bits for any strides, device, thread count and tensor size.

    Raises:
        UnsupportedDtypeError, UnsupportedShapeError: `x` has another dtype or no axis; `divisor` is not fp32.
        NonFiniteError: `nonfinite="refuse"` and what is quantized holds NaN or infinity; it names the first position.
        UnknownOptionError: `scale` or `nonfinite` is not one of its words.
        MalformedTensorError: `divisor` has another shape or device.

    Source: arXiv 2409.16626v2, section 3.1 (conversion); the scale is this package's own.
    """
    checked_option("scale", scale, get_args(Scaling))
    checked_option("nonfinite", nonfinite, get_args(NonFinite))
    operand = operand_of(x, divisor=divisor, through=through)
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    compiled = runs_compiled(x, codes)
    exponents = _exponents(operand, scale, compiled)
    arguments = (operand, exponents, as_matrix(codes), saturate, nonfinite == "refuse")
    if not (compiled and hif8_compiled.encode(*arguments, codes_table(x.device, saturate))):
        hif8_eager.encode(*arguments)
    return Hif8Tensor(codes, _scale_of(x, exponents, scale), scale)


def qdq(
    x: Tensor,
    *,
    scale: Scaling = "none",
    saturate: bool = False,
    factor: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Quantize and dequantize: the values of `quantize(x, ..., nonfinite="encode").dequantize(x.dtype)`.

    Made for activations: nothing is checked and nothing waits for the device. NaN stays NaN and infinity stays
    infinity, unless `saturate` says otherwise.

    Args:
        factor: fp32 [K]; `x` is multiplied by it in fp32, rounded once, before anything else sees it.
        dtype: of the result, bf16, fp32 or fp16; that of `x` when None.

    Returns:
        A new tensor, contiguous, with the shape of `x`, outside autograd.

    Raises:
        as `quantize`, but never NonFiniteError.
    """
    if torch.compiler.is_compiling():
        found: Tensor = torch.ops.hfq.hif8_qdq(x.detach(), factor, scale, saturate, dtype or x.dtype)
        return found
    checked_option("scale", scale, get_args(Scaling))
    operand = operand_of(x, factor=factor)
    out = torch.empty(x.shape, dtype=x.dtype if dtype is None else checked_dtype(dtype), device=x.device)
    compiled = runs_compiled(x, out)
    exponents = _exponents(operand, scale, compiled)
    if compiled:
        hif8_compiled.qdq(operand, exponents, as_matrix(out), saturate, rounded_table(x.device, saturate))
    else:
        hif8_eager.qdq(operand, exponents, as_matrix(out), saturate)
    return out


@torch.library.custom_op(
    "hfq::hif8_qdq",
    mutates_args=(),
    schema="(Tensor x, Tensor? factor, str scale, bool saturate, ScalarType dtype) -> Tensor",
)
def _qdq_op(x: Tensor, factor: Tensor | None, scale: Scaling, saturate: bool, dtype: torch.dtype) -> Tensor:
    """`qdq` as one step that a compiler cannot look into: fused with its neighbours it would lose roundings."""
    return qdq(x, scale=scale, saturate=saturate, factor=factor, dtype=dtype)


@_qdq_op.register_fake
def _qdq_shape(x: Tensor, factor: object, scale: str, saturate: bool, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def _exponents(operand: Operand, scaling: Scaling, compiled: bool) -> Tensor | None:
    if scaling == "none":
        return None
    amax = (hif8_compiled if compiled else hif8_eager).largest_magnitudes(operand)
    return exponents_of_amax(amax, scaling)


def _scale_of(x: Tensor, exponents: Tensor | None, scaling: Scaling) -> Tensor:
    if exponents is None:
        return torch.ones((), dtype=torch.float32, device=x.device)
    return power_of_two(exponents).reshape((*x.shape[:-1], 1) if scaling == "row" else ())

"""HiFloat4: quantize tensors to 4-bit codes in groups of 64, fast, on any device.

The format and its constants are in `hif4_spec`, the readable conversion in `hif4_reference`, the bytes in
`hif4_bytes`. Two twins of the reference do the work and agree with it bit for bit: `hif4_compiled` large tensors on a
CPU, `hif4_eager` the rest.

The conversion of one group, rounding as written and nowhere else ("fp32" and "bf16" round to nearest even):

    1  v16[k] = max |x| over 4;  v8[j] = max over 8;  vmax = max over 64
    2  sf     = bf16(fp32(fp32(vmax * headroom) * bf16(1/7)))
    3  sf     = clip(sf, 2^-48, 1.5 * 2^15)
    4  E6M2   = sf to 2 mantissa bits, half to even
    5  rec    = bf16(1 / E6M2)
    6  lv2[j] = fp32(v8[j] * rec) >= 4
    7  lv3[k] = fp32(v16[k] * rec) / 2^lv2[k div 2] >= 2
    8  m[i]   = fp32(|x[i]| / 2^(lv2 + lv3) * rec)
    9  q[i]   = min(floor(4m) + [4m - floor(4m) >= 1/2], 7)
   10  code   = (8 if x[i] < 0 else 0) | q[i]
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import hif4_compiled, hif4_eager
from ._compiled import runs_compiled
from ._operand import checked_dtype, operand_of
from ._tiles import as_matrix
from .errors import MalformedTensorError
from .hif4_bytes import Hif4Tensor, pack_codes, pack_scale, unpack_codes, unpack_scale
from .hif4_eager import reciprocals
from .hif4_spec import (
    CODE_BYTES,
    GROUP,
    PROFILES,
    NonFinite,
    Profile,
    checked_rules,
)

__all__ = [
    "GROUP",
    "PROFILES",
    "Hif4Tensor",
    "Profile",
    "pack_codes",
    "pack_scale",
    "qdq",
    "quantize",
    "quantize_under",
    "reciprocals",
    "unpack_codes",
    "unpack_scale",
]


def quantize(
    x: Tensor,
    *,
    profile: str = "ref",
    scale_search: bool = False,
    headroom: float = 1.0,
    nonfinite: NonFinite = "refuse",
    divisor: Tensor | None = None,
    through: torch.dtype | None = None,
) -> Hif4Tensor:
    """Encode `x` [..., K] (bf16, fp32 or fp16) in groups of 64 along the last axis; a short last group counts as zeros.

    Args:
        x: any strides; fp16 is widened to fp32. -0 becomes +0, a negative that rounds to zero becomes -0.
        profile: which public implementation's roundings to follow, see `hif4_spec.Profile`.
        scale_search: per group, take the E6M2 code within +-2 of the rule's whose squared error is smallest. Flags and
            codes follow from each tried scale by the same rules. Errors are summed in binary64 in index order; ties go
            to the smaller offset, then to the lower code.
        headroom: factor of the group peak in step 2, rounded to fp32; above 1 the peak saturates less.
        nonfinite: "refuse", "propagate" or "nan-group", see `hif4_spec.NonFinite`.
        divisor: fp32 [K]; `x` is divided by it in fp32, rounded once, and quantized from there.
        through: torch.bfloat16: `x` is rounded to it first, nearest even.

    Returns:
        Codes and scales on the device of `x`. The same bits for any strides, device, thread count and tensor size.

    Raises:
        UnsupportedDtypeError, UnsupportedShapeError: `x` has another dtype or no axis; `divisor` is not fp32.
        NonFiniteError: `nonfinite="refuse"` and what is quantized holds NaN or infinity; it names the first position.
        UnknownProfileError, UnknownOptionError, InvalidHeadroomError: an argument has no meaning.
        MalformedTensorError: `divisor` has another shape or device.

    Source: arXiv 2602.11287v2 (format and conversion); profiles from the public implementations.
    """
    rules = checked_rules(profile, headroom, nonfinite)
    operand = operand_of(x, divisor=divisor, through=through)
    shape = (*x.shape[:-1], -(-x.shape[-1] // GROUP))
    codes = torch.empty((*shape[:-1], shape[-1] * CODE_BYTES), dtype=torch.uint8, device=x.device)
    words = torch.empty(shape, dtype=torch.int32, device=x.device)
    if x.numel():
        arguments = (operand, rules, as_matrix(codes), as_matrix(words), scale_search)
        if not (runs_compiled(x, codes) and hif4_compiled.encode(*arguments)):
            hif4_eager.encode(*arguments)
    return Hif4Tensor(codes, words.view(torch.uint32), x.shape, profile)


def qdq(
    x: Tensor,
    *,
    profile: str = "ref",
    headroom: float = 1.0,
    nonfinite: NonFinite = "propagate",
    factor: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Quantize and dequantize: the values of `quantize(x, ...).dequantize()`, without the bytes between.

    Made for activations: with the default `nonfinite` nothing is checked and nothing waits for the device.

    Args:
        factor: fp32 [K]; `x` is multiplied by it in fp32, rounded once, and quantized from there.
        dtype: of the result, bf16, fp32 or fp16; that of `x` when None.

    Returns:
        A new tensor, contiguous, with the shape of `x`, outside autograd. Exact in bf16 and fp32; in fp16 values are
        rounded to nearest even and may overflow to infinity. Zero signs are those of `quantize`.

    Raises:
        as `quantize`.
    """
    if torch.compiler.is_compiling():
        found: Tensor = torch.ops.hfq.hif4_qdq(x.detach(), factor, profile, headroom, nonfinite, dtype or x.dtype)
        return found
    rules = checked_rules(profile, headroom, nonfinite)
    operand = operand_of(x, factor=factor)
    out = torch.empty(x.shape, dtype=x.dtype if dtype is None else checked_dtype(dtype), device=x.device)
    if x.numel():
        arguments = (operand, rules, as_matrix(out))
        if not (runs_compiled(x, out) and hif4_compiled.qdq(*arguments)):
            hif4_eager.qdq(*arguments)
    return out


@torch.library.custom_op(
    "hfq::hif4_qdq",
    mutates_args=(),
    schema="(Tensor x, Tensor? factor, str profile, float headroom, str nonfinite, ScalarType dtype) -> Tensor",
)
def _qdq_op(
    x: Tensor, factor: Tensor | None, profile: str, headroom: float, nonfinite: NonFinite, dtype: torch.dtype
) -> Tensor:
    """`qdq` as one step that a compiler cannot look into: fused with its neighbours it would lose roundings."""
    return qdq(x, profile=profile, headroom=headroom, nonfinite=nonfinite, factor=factor, dtype=dtype)


@_qdq_op.register_fake
def _qdq_shape(x: Tensor, factor: object, profile: str, headroom: float, nonfinite: str, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


def quantize_under(x: Tensor, words: Tensor, *, profile: str = "ref", divisor: Tensor | None = None) -> Hif4Tensor:
    """Encode `x` [..., K] (bf16, fp32 or fp16) under given scale words: steps 8-10, scale and flags from the words.

    Args:
        words: uint32 [..., ceil(K / 64)], layout A; of another tensor, or chosen by another rule. Under the words of
            `quantize(x)` the codes are those of `quantize(x)`; magnitudes above a flag's range saturate.
        divisor: as in `quantize`.

    Raises:
        as `quantize`, and MalformedTensorError: words of another shape or dtype, or one that is NaN.
    """
    rules = checked_rules(profile, 1.0, "refuse")
    operand = operand_of(x, divisor=divisor)
    shape = (*x.shape[:-1], -(-x.shape[-1] // GROUP))
    if words.dtype != torch.uint32 or tuple(words.shape) != shape:
        raise MalformedTensorError(
            "not scale words of this tensor",
            expected=f"uint32 {list(shape)}",
            found=f"{words.dtype} {list(words.shape)}",
        )
    codes = torch.empty((*shape[:-1], shape[-1] * CODE_BYTES), dtype=torch.uint8, device=x.device)
    if x.numel():
        arguments = (operand, rules, as_matrix(codes), as_matrix(words.view(torch.int32)))
        if not (runs_compiled(x, codes) and hif4_compiled.encode_under(*arguments)):
            hif4_eager.encode_under(*arguments)
    return Hif4Tensor(codes, words, x.shape, profile)

"""Quantizing one site's weight in the format that a recipe names, and the digest of the result."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from hfq.formats import hif4, hif8
from hfq.formats.errors import NonFiniteError
from hfq.formats.hif8_spec import INFINITY as HIF8_INFINITY
from hfq.schema.errors import NonFiniteWeightError

from .exact import rounded
from .finite import all_finite
from .tensor_bytes import tensor_bytes

__all__ = [
    "NUMERICS",
    "QuantizedWeight",
    "check_finite",
    "quantize_activation",
    "quantize_weight",
    "site_digest",
    "stored_bits",
]

NUMERICS: Final = 1
"""Version of the arithmetic that re-derives a site; it changes when any restored bit would."""

_PART: Final = 1 << 18
_ADVICE: Final = 'keep this site (a route with to = "keep") or repair the checkpoint'

QuantizedWeight = hif4.Hif4Tensor | hif8.Hif8Tensor

# A digest is of little-endian bytes; torch stores the machine's own.
assert sys.byteorder == "little"


def check_finite(weight: Tensor, where: str, *, first_row: int = 0) -> None:
    """Check a weight [out_features, in_features] before anything is computed from it.

    Args:
        first_row: of the whole weight, where `weight` is a part of its rows.

    Raises:
        NonFiniteWeightError: NaN or infinity; the message names the first position.
    """
    if weight.dtype == torch.bfloat16 and all_finite(weight.contiguous().view(torch.uint16).reshape(-1).numpy()):
        return
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        row, *rest = (int(index) for index in (~finite).nonzero()[0])
        raise NonFiniteWeightError(
            "a weight is not a finite number",
            where=where,
            found=f"value {float(weight[(row, *rest)])} at position {[first_row + row, *rest]}",
            todo=_ADVICE,
        )


def quantize_weight(
    weight: Tensor, options: Mapping[str, Any], where: str, *, divisor: Tensor | None = None, first_row: int = 0
) -> QuantizedWeight:
    """Encode a weight [out_features, in_features], BF16 or fp32, groups or rows along in_features.

    Args:
        options: a recipe's `weight` table, normalised.
        where: expert and site, for the error message.
        divisor: fp32 [in_features]: the weight divided by it, rounded once to fp32, is what is encoded.
        first_row: as in `check_finite`.

    Raises:
        NonFiniteWeightError: NaN or infinity, or a number so large that the format would make it infinite; the message
            names site and position.
    """
    try:
        if options["format"] == "hif4":
            search = bool(options["scale_search"])
            return hif4.quantize(weight, profile=options["profile"], scale_search=search, divisor=divisor)
        encoded = hif8.quantize(weight, scale=options["scale"], saturate=options["saturate"], divisor=divisor)
    except NonFiniteError as error:
        if divisor is None:
            check_finite(weight, where, first_row=first_row)
        raise NonFiniteWeightError("a weight is not a finite number", where=where, found=error, todo=_ADVICE) from None
    # A scale puts the largest magnitude far below what overflows.
    if options["scale"] == "none" and _has_infinity(encoded.codes):
        overflow = (encoded.codes & 0x7F) == HIF8_INFINITY
        row, column = (int(index) for index in overflow.nonzero()[0])
        if divisor is not None:
            weight = weight.float() / divisor
        raise NonFiniteWeightError(
            "a weight beyond the format's range would become infinite",
            where=where,
            found=f"value {float(weight[row, column])} at position {[first_row + row, column]}",
            todo='use scale = "row" or saturate = true',
        )
    return encoded


def _has_infinity(codes: Tensor) -> bool:
    # In parts: the temporaries stay in a cache.
    return any(bool(((part & 0x7F) == HIF8_INFINITY).any()) for part in codes.reshape(-1).split(_PART))


def quantize_activation(
    x: Tensor, options: Mapping[str, Any], headroom: float = 1.0, factor: Tensor | None = None
) -> Tensor:
    """Quantize-dequantize an activation [..., in_features], BF16 or fp32; the result is BF16, exactly.

    Args:
        options: a recipe's `activation` table, normalised.
        headroom: factor of the group maximum, HiFloat4 only.
        factor: fp32 [in_features]; what is quantized is `x` times it, rounded once to fp32.
    """
    if options["format"] == "hif4":
        return hif4.qdq(x, profile=options["profile"], headroom=headroom, factor=factor, dtype=torch.bfloat16)
    if options["format"] == "hif8":
        scale, saturate = options["scale"], options["saturate"]
        return hif8.qdq(x, scale=scale, saturate=saturate, factor=factor, dtype=torch.bfloat16)
    return rounded(x if factor is None else x.float() * factor)


def format_line(options: Mapping[str, Any], shape: tuple[int, ...]) -> bytes:
    """`format<TAB>profile<TAB>shape<LF>`; HiFloat8 has scale and overflow rules where HiFloat4 has a profile."""
    if options["format"] == "hif4":
        profile = str(options["profile"])
    else:
        profile = str(options["scale"]) + ("-saturate" if options["saturate"] else "")
    return f"{options['format']}\t{profile}\t{','.join(map(str, shape))}\n".encode()


def site_digest(weight: QuantizedWeight, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of a restored site: format line, codes row-major, scales little-endian, state tensors by name."""
    digest = hashlib.sha256(format_line(options, tuple(weight.shape)))
    digest.update(tensor_bytes(weight.codes))
    digest.update(tensor_bytes(weight.scale))
    for name in sorted(state):
        digest.update(tensor_bytes(state[name]))
    return digest.hexdigest()


def stored_bits(weight: QuantizedWeight) -> int:
    """Bits that codes and scales take."""
    return 8 * sum(part.numel() * part.element_size() for part in (weight.codes, weight.scale))

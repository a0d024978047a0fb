"""Restoring one site: from the base's BF16 weight and the delta's state to the quantized operand, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfq.formats import hif4
from hfq.formats.errors import MalformedTensorError
from hfq.schema.errors import CodesError, DigestMismatchError

from .code_difference import decode_codes, decode_words
from .delta import Delta
from .ops import ALL, MaskOp, Op
from .site_ops import SiteOps, read_ops
from .weights import QuantizedWeight, quantize_weight, site_digest, stored_bits

__all__ = [
    "RestoredSite",
    "check_site_digest",
    "effective_weight",
    "restore_site",
    "restore_weight",
    "sole_mask",
    "transform_weight",
]


@dataclass(frozen=True)
class RestoredSite:
    """A quantized site.

    Attributes:
        weight: codes and scales, [out_features, in_features]; fewer columns when some are kept beside it.
        ops: what happens to the input before quantization.
        digest: of codes, scales and state.
    """

    weight: QuantizedWeight
    ops: SiteOps
    digest: str

    def operand(self) -> Tensor:
        """The quantized weight's values, BF16 [out_features, in_features'], in the basis of the input after the ops."""
        return self.weight.dequantize(torch.bfloat16)

    def bits(self) -> int:
        """Bits of the packed form: codes, scales, and what the ops keep of the weight in BF16."""
        return stored_bits(self.weight) + sum(op.kept_bits() for op in self.ops.ops)

    def effective(self) -> Tensor:
        """The weight in the original basis, fp32 [out_features, in_features]: what the linear multiplies by."""
        return effective_weight(self.weight.dequantize(torch.float32), self.ops.ops)


def effective_weight(values: Tensor, ops: Sequence[Op], rows: slice = ALL) -> Tensor:
    """Rows of an operand [rows, in_features'] taken back through the ops: fp32 [rows, in_features]."""
    for op in reversed(ops):
        values = op.on_effective(values, rows)
    return values


def sole_mask(ops: Sequence[Op]) -> Tensor | None:
    """The mask, fp32 [in_features], of a chain that is one mask: what the formats divide by without a copy."""
    return ops[0].mask if len(ops) == 1 and isinstance(ops[0], MaskOp) else None


def transform_weight(weight: Tensor, ops: Sequence[Op]) -> Tensor:
    """A BF16 weight after the ops, ready to be quantized: BF16 when there are none, else fp32. Binds the ops to it."""
    for op in ops:
        op.bind(weight)
        weight = op.on_weight(weight)
    return weight


def restore_weight(weight: Tensor, ops: SiteOps, options: Mapping[str, Any], where: str) -> QuantizedWeight:
    """Codes and scales of a site from the base's BF16 weight [out_features, in_features].

    Args:
        options: the recipe's `weight` table, normalised.

    Raises:
        NonFiniteWeightError
        CodesError: stored codes that are none of this site.
    """
    divisor = sole_mask(ops.ops)
    transformed = weight if divisor is not None else transform_weight(weight, ops.ops)
    plain = quantize_weight(transformed, options, where, divisor=divisor)
    if ops.codes is None:
        return plain
    assert isinstance(plain, hif4.Hif4Tensor)
    if ops.codes.scale is not None:
        words = decode_words(ops.codes.scale, plain.scale, where)
        try:
            plain = hif4.quantize_under(transformed, words, profile=plain.profile, divisor=divisor)
        except MalformedTensorError as error:
            raise CodesError("stored scale words that are none", where=where, found=error) from None
    codes = decode_codes(ops.codes.codes, plain, where)
    return hif4.Hif4Tensor(codes, plain.scale, plain.shape, plain.profile)


def restore_site(delta: Delta, role: str, site: str, weight: Tensor) -> RestoredSite:
    """Re-derive a site.

    Args:
        weight: the base's weight rounded to BF16, [out_features, in_features], on the CPU.

    Raises:
        DigestMismatchError: the result is not what the delta's author had.
        MissingTensorError, UnexpectedTensorError, ShapeMismatchError, CodesError: state that does not fit.
        NonFiniteWeightError
    """
    entry = delta.site(role, site)
    where = f"{role} {site}"
    state = delta.state(role, site)
    ops = read_ops(entry["ops"], state, (int(weight.shape[0]), int(weight.shape[1])), where)
    quantized = restore_weight(weight, ops, entry["weight"], where)
    digest = site_digest(quantized, entry["weight"], state)
    check_site_digest(delta, role, site, digest)
    return RestoredSite(quantized, ops, digest)


def check_site_digest(delta: Delta, role: str, site: str, digest: str) -> None:
    """Raises DigestMismatchError: a restored site's digest is not the delta's."""
    named = delta.site(role, site)["digest"]
    if digest != named:
        raise DigestMismatchError(
            "the restored site is not the delta's",
            where=f"{role} {site}",
            expected=f"{named[:12]}…",
            found=f"{digest[:12]}…",
            todo="`hfq verify DELTA --base MODEL` compares every site",
        )

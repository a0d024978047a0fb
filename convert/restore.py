"""Restoring one site: from the base's BF16 weight and the delta's state to the quantized operand, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfq.schema.errors import DigestMismatchError

from .delta import Delta
from .ops import WeightOp, read_ops
from .weights import QuantizedWeight, quantize_weight, site_digest

__all__ = ["RestoredSite", "restore_site", "transform_weight"]


@dataclass(frozen=True)
class RestoredSite:
    """A quantized site.

    Attributes:
        weight: codes and scales, [out_features, in_features].
        ops: what happens to the input before quantization, in order.
        activation: options of the activation quantizer.
        digest: of codes, scales and state.
    """

    weight: QuantizedWeight
    ops: Sequence[WeightOp]
    activation: Mapping[str, Any]
    digest: str

    def operand(self) -> Tensor:
        """The quantized weight's values, BF16 [out_features, in_features], in the basis of the masked input."""
        return self.weight.dequantize(torch.bfloat16)

    def effective(self) -> Tensor:
        """The weight in the original basis, fp32 [out_features, in_features]: what the linear multiplies by."""
        values = self.weight.dequantize(torch.float32)
        for op in reversed(self.ops):
            values = op.on_effective(values)
        return values


def transform_weight(weight: Tensor, ops: Sequence[WeightOp]) -> Tensor:
    """A BF16 weight after the ops, ready to be quantized: BF16 when there are none, else fp32."""
    for op in ops:
        weight = op.on_weight(weight)
    return weight


def restore_site(delta: Delta, role: str, site: str, weight: Tensor) -> RestoredSite:
    """Re-derive a site.

    Args:
        weight: the base's weight rounded to BF16, [out_features, in_features], on the CPU.

    Raises:
        DigestMismatchError: the result is not what the delta's author had.
        MissingTensorError, UnexpectedTensorError, ShapeMismatchError: state that does not fit.
        NonFiniteWeightError
    """
    entry = delta.site(role, site)
    where = f"{role} {site}"
    state = delta.state(role, site)
    ops, activation = read_ops(entry["ops"], state, int(weight.shape[1]), where)
    quantized = quantize_weight(transform_weight(weight, ops), entry["weight"], where)
    digest = site_digest(quantized, entry["weight"], state)
    if digest != entry["digest"]:
        raise DigestMismatchError(
            "the restored site is not the delta's",
            where=where,
            expected=f"{entry['digest'][:12]}…",
            found=f"{digest[:12]}…",
            todo="`hfq verify DELTA --base MODEL` compares every site",
        )
    return RestoredSite(quantized, ops, activation, digest)

"""Runtime ops: what a delta says happens to a site's weight once and to its input at every call.

An op is a pair of functions that undo each other's effect on the product, so that before quantization the linear's
output is unchanged. Restoring applies the same ops in the same order, from stored tensors, with arithmetic that no
library or thread count changes: elementwise fp32, rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hfq.schema.errors import (
    InconsistentDeltaError,
    MaskValueError,
    MissingTensorError,
    ShapeMismatchError,
    UnexpectedTensorError,
)

__all__ = ["MaskOp", "WeightOp", "read_ops"]


class WeightOp(Protocol):
    """An op that changes weight and input together."""

    def on_weight(self, weight: Tensor) -> Tensor:
        """The weight [out, in] as it is quantized: fp32."""

    def on_activation(self, x: Tensor) -> Tensor:
        """The input [..., in] as it is quantized: fp32."""

    def on_effective(self, weight: Tensor) -> Tensor:
        """Take a quantized weight back to the original basis: fp32."""


@dataclass(frozen=True)
class MaskOp:
    """Channel mask: `x * m` and `w / m`, each rounded once to fp32.

    Attributes:
        mask: fp32 [in_features], positive normal numbers.
    """

    mask: Tensor

    def on_weight(self, weight: Tensor) -> Tensor:
        """`w / m`."""
        return weight.float() / self.mask

    def on_activation(self, x: Tensor) -> Tensor:
        """`x * m`."""
        return x.float() * self.mask

    def on_effective(self, weight: Tensor) -> Tensor:
        """`w_q * m`."""
        return weight.float() * self.mask


def read_ops(
    ops: Sequence[Mapping[str, Any]], state: Mapping[str, Tensor], in_features: int, where: str
) -> tuple[list[WeightOp], Mapping[str, Any]]:
    """Build a site's ops from a delta.

    Args:
        ops: the site's `ops`; the last one, and no other, is `qdq`.
        state: the site's tensors by local name.

    Returns:
        ops on weight and input in order, and the options of the activation quantizer.

    Raises:
        MissingTensorError, UnexpectedTensorError, ShapeMismatchError, MaskValueError, InconsistentDeltaError
    """
    kinds = [op["op"] for op in ops]
    if kinds.count("qdq") != 1 or kinds[-1] != "qdq":
        raise InconsistentDeltaError("the ops do not end with one qdq", where=where, found=", ".join(kinds))
    built: list[WeightOp] = []
    left = set(state)
    for op in ops[:-1]:
        name = str(op["tensor"])
        if name not in state:
            raise MissingTensorError("a tensor that an op needs is not there", where=f"{where}: {name}")
        if name not in left:
            raise InconsistentDeltaError("two ops use one tensor", where=f"{where}: {name}")
        left.remove(name)
        built.append(MaskOp(_checked_mask(state[name], in_features, f"{where}: {name}")))
    if left:
        raise UnexpectedTensorError("a state tensor that no op consumes", where=f"{where}: {min(left)}")
    return built, {key: value for key, value in ops[-1].items() if key != "op"}


def _checked_mask(mask: Tensor, in_features: int, where: str) -> Tensor:
    if mask.dtype != torch.float32 or tuple(mask.shape) != (in_features,):
        raise ShapeMismatchError(
            "not a mask of this site",
            where=where,
            expected=f"float32 [{in_features}]",
            found=f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}",
        )
    # Subnormal numbers are flushed to zero on some devices: a mask of them would divide by zero there.
    good = torch.isfinite(mask) & (mask >= torch.finfo(torch.float32).smallest_normal)
    if not bool(good.all()):
        first = int((~good).nonzero()[0])
        raise MaskValueError(
            "a mask value that cannot be divided by",
            where=f"{where}[{first}]",
            expected="a positive normal number",
            found=float(mask[first]),
        )
    return mask

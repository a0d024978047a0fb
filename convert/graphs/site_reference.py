"""One quantized site in torch, float32, as every level compares with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfq.convert.checkpoint import Checkpoint
from hfq.convert.delta import Delta
from hfq.convert.linear import QuantizedLinear
from hfq.convert.restore import RestoredSite, restore_site

from .reference import FixedBin

__all__ = ["ReferenceSite"]


class ReferenceSite:
    """A site as the delta restores it from its base.

    Args:
        bin: timestep bin of the graph, None when it has none.

    Attributes:
        site: original Wan name.
        restored: codes, scales, ops.
        linear: the linear in float32, in that bin.

    Raises:
        DigestMismatchError, and what reading the base raises.
    """

    def __init__(self, delta: Delta, base: Checkpoint, role: str, site: str, bin: int | None) -> None:
        expert = base.experts[role]
        weight = expert.read_bf16(f"{site}.weight")
        self.site = site
        self.restored: RestoredSite = restore_site(delta, role, site, weight)
        source = nn.Linear(int(weight.shape[1]), int(weight.shape[0]), device="meta")
        source.bias = nn.Parameter(expert.read_bf16(f"{site}.bias").float(), requires_grad=False)
        self.linear = QuantizedLinear(
            self.restored, source, role=role, site=site, clock=FixedBin(role, bin or 0)
        ).eval()

    @property
    def headrooms(self) -> tuple[float, ...]:
        """Of the activation quantizer, per timestep bin; one where all are the same."""
        clip = self.restored.ops.clip
        return (1.0,) if clip is None else clip.headroom

    def before_quantizer(self, x: Tensor) -> Tensor:
        """The input [..., in_features] as the quantizer gets it: BF16, through the ops; float32 [..., in_features']."""
        x = x.to(torch.bfloat16)
        for op in self.restored.ops.ops:
            x = op.on_activation(x)
        return x.float()

    @torch.no_grad()
    def quantized_input(self, x: Tensor) -> Tensor:
        """The input [..., in_features] as it is multiplied, float32 [..., in_features']."""
        return self.linear.quantize_input(x).float()

    @torch.no_grad()
    def output(self, x: Tensor) -> Tensor:
        """The linear's output [..., out_features], float32."""
        y: Tensor = self.linear(x)
        return y

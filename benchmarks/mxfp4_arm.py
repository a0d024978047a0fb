"""MXFP4 on a loaded pipeline, simulated: no delta, the linears of the blocks are replaced in memory.

What the authors of timestep-aware SVDQuant-GPTQ (arXiv 2605.27003) have released is MXFP4 with these parameters: group
32; weight scale by the OCP rule, from the uncompensated weight; activation scale 2^ceil(log2(amax / 6)); a max mask
with alpha 0.5; rank 16; GPTQ with damp 0.01, inputs quantized, no act-order; clip 1.0, or for self_attn and ffn a
search per timestep bin over clip ratios times exponent offsets. GPTQ's column block (128 there) decides speed alone
while scales are static. Different here: both guidance branches are calibrated, Hessians and search have kept rows of
all calibration prompts in place of all rows of some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from result_arms import Mxfp4Options
from torch import Tensor, nn

from hfq.convert.architecture import Site
from hfq.convert.calibration import Calibration, GroupStatistics
from hfq.convert.checkpoint import Checkpoint
from hfq.convert.clip import BINS, TimestepClock
from hfq.convert.gptq import hessian, inverse_factor, quantize_columns
from hfq.convert.keymap import to_diffusers
from hfq.convert.ops import LowRankOp, MaskOp, Op
from hfq.convert.stages.smooth import channel_mask
from hfq.convert.stages.stage import pooled_rows
from hfq.convert.truncated_svd import low_rank_factors
from hfq.formats._e2m1 import round_to_e2m1
from hfq.formats._tiles import power_of_two

__all__ = [
    "CANDIDATES",
    "Mxfp4Linear",
    "Mxfp4Rounder",
    "apply_mxfp4",
    "exponents",
    "qdq",
    "quantize_site",
    "search_bin",
]

GROUP: Final = 32
BITS: Final = 4.25  # a code, and an eighth of a byte per value for the scale
TOKENS: Final = 4096
CANDIDATES: Final = tuple((clip, offset) for clip in (1.0, 0.9, 0.8, 0.7, 0.6) for offset in (0, -1, 1))
"""(clip ratio, exponent offset), in the order in which ties are decided."""

# The released code has an epsilon of 1e-8 on both sides and no clamp; the mask has to stay a normal fp32 number.
MASK: Final = {"alpha": 0.5, "activation_floor": 1e-8, "weight_floor": 1e-8, "mask_min": 1e-30, "mask_max": 1e30}


def exponents(x: Tensor, *, clip: float = 1.0, offset: int = 0, ceil: bool) -> Tensor:
    """Scale exponents, int32 [..., K / 32, 1], of x fp32 [..., K], K a multiple of 32.

    Args:
        clip: factor of the group maximum.
        offset: added to the exponent.
        ceil: the smallest scale under which the clipped maximum does not saturate (`ceil(log2(amax / 6))`), in place of
            OCP's `floor(log2 amax) - 2`.
    """
    amax = x.unflatten(-1, (-1, GROUP)).abs().amax(dim=-1, keepdim=True) * clip
    # amax = m 2^e with m in [0.5, 1); 6 is 0.75 * 2^3.
    mantissa, exponent = torch.frexp(amax)
    above = (mantissa > 0.75).to(torch.int32) if ceil else 0
    return (exponent.to(torch.int32) - 3 + above + offset).clamp(-126, 126)


def qdq(x: Tensor, *, clip: float = 1.0, offset: int = 0, ceil: bool = True) -> Tensor:
    """Quantize and dequantize x [..., K], K a multiple of 32, with the scales of `exponents`: fp32 [..., K]."""
    x = x.float()
    exponent = exponents(x, clip=clip, offset=offset, ceil=ceil)
    groups = x.unflatten(-1, (-1, GROUP))
    return (round_to_e2m1(groups * power_of_two(-exponent)) * power_of_two(exponent)).flatten(-2)


class Mxfp4Rounder:
    """A rounder for `quantize_columns`: scales are those of the weight before any compensation.

    Args:
        weight: fp32 [out_features, in_features], in_features a multiple of 32.

    Attributes:
        group: columns that share a scale.
        values: fp32 [in_features, out_features], what was rounded so far.
    """

    group = GROUP

    def __init__(self, weight: Tensor) -> None:
        self._exponent = exponents(weight, ceil=False).squeeze(-1).T.contiguous()
        self.values = torch.zeros_like(weight.T, memory_format=torch.contiguous_format)

    def begin(self, block: Tensor, index: int) -> _Columns:
        """The rounder of the group `index`; its current weights [32, out_features] do not change static scales."""
        start = index * GROUP
        return _Columns(self._exponent[index], self.values[start : start + GROUP])


class _Columns:
    """Rounds the columns of one group."""

    def __init__(self, exponent: Tensor, values: Tensor) -> None:
        self._scale, self._inverse, self._values = power_of_two(exponent), power_of_two(-exponent), values

    def round(self, column: Tensor, j: int) -> Tensor:
        """Column j of the group, fp32 [out_features], rounded."""
        self._values[j] = round_to_e2m1(column * self._inverse) * self._scale
        return self._values[j]


class Mxfp4Linear(nn.Module):
    """A linear with the product `Q(x) W_q^T + b` behind its ops, plus the branches of the ops.

    Args:
        source: its bias and dtype are used.
        operand: quantized weight, fp32 [out_features, in_features]; BF16 holds it exactly.
        ops: of the site, in order.
        site: original Wan name.
        clips: (clip ratio, exponent offset) per timestep bin; one entry serves all bins.
        clock: tells the bin; None with one entry.
    """

    def __init__(
        self,
        source: nn.Linear,
        operand: Tensor,
        ops: Sequence[Op],
        *,
        site: str,
        clips: Sequence[tuple[float, int]] = ((1.0, 0),),
        clock: TimestepClock | None = None,
    ) -> None:
        super().__init__()
        self.site, self.clips, self.clock = site, tuple(clips), clock
        self.operand, self.bias = operand.to(source.weight.dtype), source.bias
        self.ops = nn.ModuleList(ops)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features] in the dtype of the linear that was replaced."""
        clip, offset = self.clips[0 if self.clock is None else self.clock.consult(self.site)]
        x, dtype, branches = x.to(torch.bfloat16), self.operand.dtype, []
        for op in cast("list[Op]", list(self.ops)):
            branch = op.branch(x, dtype)
            if branch is not None:
                branches.append(branch)
            x = op.on_activation(x)
        product = F.linear(qdq(x, clip=clip, offset=offset).to(dtype), self.operand, self.bias)
        for branch in branches:
            product = product + branch
        return product


def quantize_site(
    base: Tensor, statistics: GroupStatistics | None, options: Mxfp4Options, where: str
) -> tuple[Tensor, list[Op]]:
    """Operand fp32 [out_features, in_features] and ops of one linear.

    Args:
        base: BF16 [out_features, in_features].
        statistics: of its input; None when the options need none.
        where: expert and site, for messages.

    Raises:
        HessianError
    """
    weight, ops = base.float(), list[Op]()
    if options.smooth:
        assert statistics is not None
        largest = weight.abs().amax(dim=0).double().numpy()
        mask = channel_mask(largest, statistics.channel_max().numpy(), MASK)
        ops.append(MaskOp(torch.from_numpy(mask)))
        weight = ops[-1].on_weight(weight)
    if options.rank:
        ops.append(LowRankOp(*low_rank_factors(weight, options.rank)))
        weight = ops[-1].on_weight(weight)
    if options.damp is None:
        return qdq(weight, ceil=False), ops
    assert statistics is not None
    inputs = qdq(_through(ops, pooled_rows(statistics, TOKENS)))
    rounder = Mxfp4Rounder(weight)
    quantize_columns(weight, inverse_factor(hessian(inputs), options.damp, where), rounder)
    return rounder.values.T.contiguous(), ops


def search_bin(operand: Tensor, x: Tensor) -> tuple[float, int]:
    """The candidate with the smallest squared error of the output on rows x fp32 [rows, in_features] after the ops.

    The output with exact activations and the same operand is what it is compared with; a branch is in both.
    """
    errors = {}
    for clip, offset in CANDIDATES:
        error = (qdq(x, clip=clip, offset=offset) - x) @ operand.T
        errors[clip, offset] = float(error.double().square().sum())
    return min(CANDIDATES, key=lambda candidate: errors[candidate])


def _through(ops: Sequence[Op], rows: Tensor) -> Tensor:
    for op in ops:
        rows = op.on_activation(rows)
    return rows.float()


def apply_mxfp4(pipeline: Any, checkpoint: Checkpoint, calibration: Calibration, options: Mxfp4Options) -> float:
    """Replace every linear in the blocks of both experts.

    Args:
        pipeline: a diffusers Wan pipeline with the checkpoint's weights.
        calibration: of the checkpoint, with kept inputs.

    Returns:
        Bits per weight of the blocks, the branch in BF16 included.

    Raises:
        HessianError
    """
    bits = weights = 0.0
    for role, module in (("high_noise", pipeline.transformer), ("low_noise", pipeline.transformer_2)):
        early, late = calibration.document["schedule"][role]["edges"]
        clock = TimestepClock(role, (early, late))
        if options.search:
            clock.install(module)
        expert = checkpoint.experts[role]
        for site in expert.sites:
            if site.in_block:
                base = expert.read_bf16(f"{site.name}.weight")
                found = calibration.read(role, site.input_group)
                linear = _quantized(module, site, base, found, options, clock)
                bits += BITS * base.numel() + sum(op.kept_bits() for op in cast("list[Op]", list(linear.ops)))
                weights += base.numel()
    return bits / weights


def _quantized(
    module: nn.Module, site: Site, base: Tensor, found: GroupStatistics, options: Mxfp4Options, clock: TimestepClock
) -> Mxfp4Linear:
    operand, ops = quantize_site(base, found, options, f"{clock.role} {site.name}")
    parent, _, leaf = to_diffusers(f"{site.name}.weight").removesuffix(".weight").rpartition(".")
    source = module.get_submodule(f"{parent}.{leaf}")
    assert isinstance(source, nn.Linear), site.name
    # The released search leaves cross-attention out.
    if options.search and ".cross_attn." not in site.name:
        # A schedule of few steps leaves bins without rows; no step of it will ask for them.
        rows = [found.inputs.get(index) for index in range(BINS)]
        clips = [CANDIDATES[0] if own is None else search_bin(operand, _through(ops, own)) for own in rows]
        linear = Mxfp4Linear(source, operand, ops, site=site.name, clips=clips, clock=clock)
    else:
        linear = Mxfp4Linear(source, operand, ops, site=site.name)
    setattr(module.get_submodule(parent), leaf, linear)
    return linear

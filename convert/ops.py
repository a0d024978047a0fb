"""Runtime ops: what a delta says happens to a site's weight once and to its input at every call.

An op changes weight and input so that the linear's output stays what it was, before quantization: by undoing on one
side what it does on the other, or by a branch of its own beside the quantized product. Restoring applies the same ops
in the same order, from stored tensors, with arithmetic that no library or thread count changes: elementwise fp32, each
written step rounded once.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from .exact import ExactBuffers, fp32_of, rounded
from .hadamard import rotate, rotation_signs, unrotate
from .truncated_svd import add_low_rank, subtract_low_rank

__all__ = ["ALL", "ColumnsOp", "LowRankOp", "MaskOp", "Op", "RotateOp"]

ALL: Final = slice(None)
"""All rows of a weight."""


class Op(ExactBuffers):
    """An op on weight and input; the widths of both may differ before and after it."""

    def bind(self, weight: Tensor) -> None:
        """Take from the weight [out, in], as the ops before have left it, what the op needs of it at run time."""

    def on_weight(self, weight: Tensor) -> Tensor:
        """The weight [out, in] after the op: fp32 [out, in']."""
        raise NotImplementedError

    def on_activation(self, x: Tensor) -> Tensor:
        """The input [..., in] after the op: fp32 or the dtype of x, [..., in']."""
        raise NotImplementedError

    def on_effective(self, weight: Tensor, rows: slice = ALL) -> Tensor:
        """Take rows of a weight [out, in'] back to what they were before the op: fp32 [rows, in]."""
        raise NotImplementedError

    def on_channels(self, values: Tensor) -> Tensor:
        """Magnitudes per input channel, float64 [in], after the op; only for ops that leave channels apart."""
        raise NotImplementedError

    def on_carrying(self, carrying: Tensor) -> Tensor:
        """Which channels carry anything, bool [in], after the op: bool [in']."""
        return carrying

    def branch(self, x: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What the op adds to the product, [..., out] in `dtype`, from the input before it; None for most."""
        return None

    def kept_bits(self) -> int:
        """Bits of the weight's parts that stay in BF16."""
        return 0


class MaskOp(Op):
    """Channel mask: `x * m` and `w / m`, each rounded once to fp32.

    Args:
        mask: fp32 [in_features], positive normal numbers.
    """

    mask_bits: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.hold("mask_bits", mask)

    @property
    def mask(self) -> Tensor:
        """fp32 [in_features]."""
        return fp32_of(self.mask_bits)

    def on_weight(self, weight: Tensor) -> Tensor:
        """`w / m`."""
        return weight.float() / self.mask

    def on_activation(self, x: Tensor) -> Tensor:
        """`x * m`."""
        return x.float() * self.mask

    def on_effective(self, weight: Tensor, rows: slice = ALL) -> Tensor:
        """`w_q * m`."""
        return weight.float() * self.mask

    def on_channels(self, values: Tensor) -> Tensor:
        """`a * m`."""
        return values * self.mask.double()


class RotateOp(Op):
    """Block Hadamard rotation with seeded signs: `x R` and `w R`, R orthogonal.

    Args:
        block: 64, 128 or 256; a divisor of in_features.
        seed: of the signs, see `hfq.convert.hadamard`.
        in_features: width.
    """

    signs: Tensor

    def __init__(self, block: int, seed: int, in_features: int) -> None:
        super().__init__()
        self.block, self.seed = block, seed
        self.hold("signs", rotation_signs(seed, in_features).to(torch.int8))

    def on_weight(self, weight: Tensor) -> Tensor:
        """`w R`."""
        return rotate(weight.float(), self.signs.float(), self.block)

    def on_activation(self, x: Tensor) -> Tensor:
        """`x R`."""
        return rotate(x.float(), self.signs.float(), self.block)

    def on_carrying(self, carrying: Tensor) -> Tensor:
        """All channels of a block that has one."""
        return carrying.reshape(-1, self.block).any(dim=1).repeat_interleave(self.block)

    def on_effective(self, weight: Tensor, rows: slice = ALL) -> Tensor:
        """`w_q R^T`."""
        return unrotate(weight.float(), self.signs.float(), self.block)


class ColumnsOp(Op):
    """Outlier columns: k input channels are multiplied in BF16 beside the quantized product, which has the others.

    Args:
        columns: int32 [k], rising.
        in_features: width before the op.
    """

    columns: Tensor
    rest: Tensor
    kept: Tensor | None

    def __init__(self, columns: Tensor, in_features: int) -> None:
        super().__init__()
        self.hold("columns", columns)
        others = torch.ones(in_features, dtype=torch.bool)
        others[columns.long()] = False
        self.hold("rest", others.nonzero().squeeze(1).to(torch.int32))
        self.hold("kept", None)

    def bind(self, weight: Tensor) -> None:
        """Keep the weight's chosen columns, BF16 [out, k]."""
        self.kept = weight.index_select(1, self.columns).to(torch.bfloat16)

    def on_weight(self, weight: Tensor) -> Tensor:
        """The other columns, in their order."""
        return weight.index_select(1, self.rest)

    def on_activation(self, x: Tensor) -> Tensor:
        """The other channels, in their order."""
        return x.index_select(-1, self.rest)

    def on_carrying(self, carrying: Tensor) -> Tensor:
        """The other channels."""
        return carrying.index_select(0, self.rest)

    def on_effective(self, weight: Tensor, rows: slice = ALL) -> Tensor:
        """Quantized and kept columns in their places."""
        assert self.kept is not None
        whole = torch.empty(
            weight.shape[0], len(self.rest) + len(self.columns), dtype=torch.float32, device=weight.device
        )
        whole[:, self.rest.long()] = weight.float()
        whole[:, self.columns.long()] = self.kept[rows].float()
        return whole

    def on_channels(self, values: Tensor) -> Tensor:
        """The other channels'."""
        return values[self.rest.long()]

    def branch(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The chosen channels in BF16, times the kept columns."""
        assert self.kept is not None
        chosen = rounded(x.index_select(-1, self.columns))
        return F.linear(chosen.to(dtype), self.kept.to(dtype))

    def kept_bits(self) -> int:
        """16 for each element of the kept columns."""
        assert self.kept is not None
        return 16 * self.kept.numel()


class LowRankOp(Op):
    """Low-rank branch: `x down^T up^T` beside the quantized product of what the branch leaves of the weight.

    Args:
        down: BF16 [rank, in_features].
        up: BF16 [out_features, rank].
    """

    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.hold("down", down)
        self.hold("up", up)

    def on_weight(self, weight: Tensor) -> Tensor:
        """`w - up down`, rank by rank in fp32."""
        return subtract_low_rank(weight.float(), self.down.bfloat16(), self.up.bfloat16())

    def on_activation(self, x: Tensor) -> Tensor:
        """The input itself."""
        return x

    def on_effective(self, weight: Tensor, rows: slice = ALL) -> Tensor:
        """`w_q + up down`."""
        return add_low_rank(weight.float(), self.down.bfloat16(), self.up[rows].bfloat16())

    def branch(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The unquantized input through both factors, in `dtype`."""
        return F.linear(F.linear(x.to(dtype), self.down.to(dtype)), self.up.to(dtype))

    def kept_bits(self) -> int:
        """16 for each element of the factors."""
        return 16 * (self.down.numel() + self.up.numel())

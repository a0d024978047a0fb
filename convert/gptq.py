"""GPTQ (arXiv 2210.17323): weight columns rounded one after the other, each correcting the errors of those before it.

With inputs x the squared error of the outputs is tr((W - Q) H (W - Q)^T), H = 2/n sum x x^T. Columns are rounded in
their order; a column's error, weighted by the inverse of H, is taken out of the columns that are still to come. One
block of columns is one scale group of the format, whose scale is chosen when the block starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from hfq.formats import hif4
from hfq.formats.hif4_frozen import FrozenGroup, codes_of_levels
from hfq.schema.errors import HessianError

from .threads import check_stopped

__all__ = ["ColumnRounder", "Hif4Rounder", "InverseFactor", "Rounder", "hessian", "inverse_factor", "proxy_error",
           "quantize_columns"]  # fmt: skip

_ROWS: Final = 1024
_LEAF: Final = 64
_TRIES: Final = 10
"""Times that the damping is added, as in the released code of arXiv 2605.27003."""


def hessian(inputs: Tensor) -> Tensor:
    """H = 2/n X^T X in fp32: inputs [n, K] of any floating dtype -> fp32 [K, K]."""
    found = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float32)
    for begin in range(0, inputs.shape[0], _ROWS):
        rows = inputs[begin : begin + _ROWS].float()
        found.addmm_(rows.T, rows)
    return found.mul_(2.0 / max(1, inputs.shape[0]))


@dataclass(frozen=True)
class InverseFactor:
    """The upper Cholesky factor of the damped Hessian's inverse.

    Attributes:
        upper: fp32 [K, K], upper triangular, with H^-1 = upper^T upper.
        damp: what was added to the diagonal, relative to its mean.
        dead: bool [K], channels that never carried anything; their weights become zero.
    """

    upper: Tensor
    damp: float
    dead: Tensor


def inverse_factor(h: Tensor, damp: float, where: str) -> InverseFactor:
    """Damp a Hessian and factor its inverse.

    With J the reversal of the order, J H J = L L^T and R = J L J is upper triangular with H = R R^T, so that U = R^-1
    has H^-1 = U^T U: one factorisation and one triangular inverse instead of the inverse and a factorisation of it.

    Args:
        h: fp32 [K, K], symmetric; used up.
        damp: share of the mean diagonal that is added to it; added again when the factorisation fails, up to 10 times.
        where: expert and site, for the error message.

    Raises:
        HessianError: no factorisation even so, or a Hessian that is not finite.
    """
    diagonal = h.diagonal()
    dead = diagonal == 0
    mean = float(diagonal[~dead].mean()) if not bool(dead.all()) else 1.0
    diagonal[dead] = mean
    for attempt in range(1, _TRIES + 1):
        diagonal += damp * mean
        lower, info = torch.linalg.cholesky_ex(h.flip(0, 1))
        if int(info) == 0 and bool(torch.isfinite(lower.diagonal()).all()):
            upper = h.copy_(lower.flip(0, 1))
            del lower
            _invert_upper(upper)
            return InverseFactor(upper, attempt * damp, dead)
        del lower
    raise HessianError(
        "the Hessian of the kept inputs cannot be factored",
        where=where,
        found=f"damping {_TRIES * damp:g} of its mean diagonal did not help",
        todo="use a larger `damp`, or calibrate with more --keep-inputs",
    )


def _invert_upper(matrix: Tensor) -> None:
    """Invert an upper triangular fp32 [n, n] in place, half by half: half the time of solving for the identity."""
    half = matrix.shape[0] // 2
    if half < _LEAF:
        unit = torch.eye(matrix.shape[0], dtype=matrix.dtype)
        matrix.copy_(torch.linalg.solve_triangular(matrix, unit, upper=True))
        return
    left, right, corner = matrix[:half, :half], matrix[half:, half:], matrix[:half, half:]
    _invert_upper(left)
    _invert_upper(right)
    corner.copy_((left @ corner).neg_() @ right)


class ColumnRounder(Protocol):
    """Rounds the columns of one group."""

    def round(self, column: Tensor, index: int) -> Tensor:
        """The value that stands for a column fp32 [out] of the group: fp32 [out]."""


class Rounder(Protocol):
    """A number format, as the loop sees it; it keeps what it has chosen.

    Attributes:
        group: columns that share a scale.
    """

    group: int

    def begin(self, block: Tensor, index: int) -> ColumnRounder:
        """Choose the scale of group `index` from its columns as they stand: fp32 [group, out], contiguous by column."""


def quantize_columns(weight: Tensor, factor: InverseFactor, rounder: Rounder) -> None:
    """Round a weight [out, K] column by column; the rounder holds the result.

    Args:
        weight: fp32 or BF16; not changed.
        factor: of the Hessian [K, K] of its inputs.
    """
    # A copy in any case: the transpose of some weights is contiguous already, and columns are changed in place.
    w = weight.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    upper = factor.upper
    w[factor.dead] = 0.0
    for begin in range(0, w.shape[0], rounder.group):
        check_stopped()
        end = min(begin + rounder.group, w.shape[0])
        block = w[begin:end]
        columns = rounder.begin(block, begin // rounder.group)
        errors = torch.empty_like(block)
        for j in range(end - begin):
            row = upper[begin + j]
            value = columns.round(block[j], j)
            torch.sub(block[j], value, out=errors[j]).div_(row[begin + j])
            if begin + j + 1 < end:
                block[j + 1 :].addr_(row[begin + j + 1 : end], errors[j], alpha=-1.0)
        if end < w.shape[0]:
            w[end:].addmm_(upper[begin:end, end:].T, errors, alpha=-1.0)


class Hif4Rounder:
    """HiFloat4 for `quantize_columns`.

    Args:
        out_features, in_features: of the weight.
        profile: numerics profile.
        scale_search: choose each group's scale by squared error, see `hif4.quantize`.
        words: uint32 [out, groups], scale words to use instead of choosing them when a group starts.
    """

    group = hif4.GROUP

    def __init__(
        self,
        out_features: int,
        in_features: int,
        *,
        profile: str = "ref",
        scale_search: bool = False,
        words: Tensor | None = None,
    ) -> None:
        self._profile, self._scale_search, self._given = profile, scale_search, words
        groups = -(-in_features // hif4.GROUP)
        self._levels = torch.zeros(in_features, out_features, dtype=torch.int8)
        self._words = torch.zeros(groups, out_features, dtype=torch.int32)

    def begin(self, block: Tensor, index: int) -> ColumnRounder:
        """Scale words of a group: given, or those of its columns as they stand."""
        if self._given is None:
            columns = block.T.contiguous()
            quantized = hif4.quantize(columns, profile=self._profile, scale_search=self._scale_search)
            words = quantized.scale.view(torch.int32)[:, 0].contiguous()
        else:
            words = self._given.view(torch.int32)[:, index].contiguous()
        self._words[index] = words
        return _Hif4Columns(FrozenGroup(words.view(torch.uint32), self._profile), self._levels[index * hif4.GROUP :])

    def result(self) -> hif4.Hif4Tensor:
        """The weight's codes and scale words [out, K]."""
        words = self._words.T.contiguous().view(torch.uint32)
        shape = torch.Size((self._levels.shape[1], self._levels.shape[0]))
        return hif4.Hif4Tensor(codes_of_levels(self._levels.T.contiguous()), words, shape, self._profile)


class _Hif4Columns:
    def __init__(self, group: FrozenGroup, levels: Tensor) -> None:
        self._group, self._levels = group, levels

    def round(self, column: Tensor, index: int) -> Tensor:
        levels = self._group.round(column, index)
        self._levels[index] = levels
        return self._group.values(levels, index)


def proxy_error(weight: Tensor, quantized: Tensor, h: Tensor) -> float:
    """tr((W - Q) H (W - Q)^T) in float64: what GPTQ makes small. Weights [out, K], Hessian [K, K]."""
    difference = weight.double() - quantized.double()
    return float(((difference @ h.double()) * difference).sum())

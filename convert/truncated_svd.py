"""Low-rank branch of a weight: factors by truncated SVD, and the product of the factors taken out or put back.

The factors are stored, since no two libraries agree on the bits of an SVD. What they leave of the weight is
re-derived, and so is summed in arithmetic that every machine repeats bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hfq.schema.errors import NonFiniteWeightError, RecipeError, UsageError

from .bf16 import to_bf16
from .threads import check_stopped

__all__ = ["add_low_rank", "low_rank_factors", "subtract_low_rank"]

_FULL_SIDE: Final = 512  # up to here a full float64 SVD takes a fraction of a second
_FULL_SHARE: Final = 4  # a subspace soon as wide as a quarter of the matrix saves nothing
_OVERSAMPLING: Final = 8  # Halko, Martinsson and Tropp (arXiv 0909.4061) recommend 5 to 10
_PASSES: Final = 60
_SETTLED: Final = 1e-6
_SPENT: Final = 1e-4  # overlap with the space so far; two orthogonalisations in fp32 leave 1e-6
_ROUNDING: Final = 1e-12  # of the whole energy: an fp32 product's own error, squared and rounded up
_TEST_VERSION: Final = "hfq.lowrank/1"
_ALIGNMENT: Final = 64  # bytes, of torch's own allocations
_CHUNK: Final = 1 << 18  # elements: a chunk and its product stay in cache
_DEVICE_CHUNK: Final = 1 << 26  # elsewhere a launch costs more than memory traffic


def low_rank_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation of rank r, with weight ≈ U S V^T ≈ up @ down.

    The branch keeps `up = U sqrt(S)` and `down = sqrt(S) V^T`, each rounded to BF16. In every column of U the component
    of largest magnitude, the first of equals, is positive. A zero weight has zero factors.

    A weight with a side of at most 512, or of less than four times the rank and the oversampling, gets a full SVD in
    float64. Any other is projected on a block Krylov space in fp32, see `_leading_subspace`, and the SVD in float64 is
    that of the projection. Before the factors are rounded, the Frobenius norm of what they leave is at most 1e-3 above
    the least possible, relative to that, or 1e-6 relative to the norm of the weight itself where that is more.

    The same bits from every call on one CPU type with one version of torch and one number of threads, which the caller
    fixes: a BLAS sums in another order on two threads. Runs on the CPU.

    Args:
        weight: fp32 [out_features, in_features].
        rank: 1 to min(out_features, in_features).

    Returns:
        down BF16 [rank, in_features], up BF16 [out_features, rank].

    Raises:
        RecipeError: a rank out of range.
        NonFiniteWeightError: NaN or infinity in the weight.
        UsageError: not an fp32 matrix.

    Source: SVDQuant (arXiv 2411.05007); block Krylov iteration of Musco and Musco (arXiv 1504.05477).
    """
    if weight.dtype != torch.float32 or weight.ndim != 2:
        raise UsageError("not a weight", expected="float32 [out, in]", found=f"{weight.dtype} {list(weight.shape)}")
    out_features, in_features = weight.shape
    side = min(out_features, in_features)
    if not 1 <= rank <= side:
        raise RecipeError("a rank that the weight cannot have", expected=f"1 to {side}", found=rank)
    weight = _aligned(weight)
    energy = _energy(weight)
    if energy == 0:
        return (
            torch.zeros(rank, in_features, dtype=torch.bfloat16),
            torch.zeros(out_features, rank, dtype=torch.bfloat16),
        )
    if side <= _FULL_SIDE or side < _FULL_SHARE * (rank + _OVERSAMPLING):
        left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank].T
    else:
        left, values, right = _leading_triplets(weight, rank, energy)
    root = values.sqrt() * _signs(left)
    down, up = (right * root).T, left * root
    return to_bf16(down.float()), to_bf16(up.float())


def subtract_low_rank(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """`weight - up @ down`, rank by rank: fp32 [out_features, in_features], a new tensor without gradient.

    For r = 0, 1 ... the product `up[:, r] x down[r, :]` and then the difference are each rounded once to fp32. The
    product of two BF16 numbers is exact in fp32 unless it is nearly subnormal or overflows.

    Args:
        weight: fp32 [out_features, in_features].
        down: BF16 [rank, in_features].
        up: BF16 [out_features, rank].

    Raises:
        UsageError: dtypes or shapes that do not fit.
    """
    return _accumulate(weight, down, up, torch.sub)


def add_low_rank(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """`weight + up @ down`, in the order and with the roundings of `subtract_low_rank`, which it undoes up to rounding.

    Args, result and errors as for `subtract_low_rank`.
    """
    return _accumulate(weight, down, up, torch.add)


def _accumulate(weight: Tensor, down: Tensor, up: Tensor, step: Callable[..., Tensor]) -> Tensor:
    _check(weight, down, up)
    total = weight.detach().clone(memory_format=torch.contiguous_format)
    rows = max(1, (_CHUNK if weight.device.type == "cpu" else _DEVICE_CHUNK) // max(1, weight.shape[1]))
    vectors = down.detach().float()
    buffer = torch.empty(min(rows, weight.shape[0]), weight.shape[1], dtype=torch.float32, device=weight.device)
    for chunk, factors in zip(total.split(rows), up.detach().split(rows), strict=True):
        product, columns = buffer[: len(chunk)], factors.float()
        for r, vector in enumerate(vectors):
            # Two calls, because addcmul and addr may fuse, and a fused product is not rounded where it underflows.
            torch.mul(columns[:, r : r + 1], vector, out=product)
            step(chunk, product, out=chunk)
    return total


def _check(weight: Tensor, down: Tensor, up: Tensor) -> None:
    dtypes = (weight.dtype, down.dtype, up.dtype)
    if dtypes != (torch.float32, torch.bfloat16, torch.bfloat16):
        raise UsageError("dtypes of another product", expected="float32, bfloat16, bfloat16", found=dtypes)
    fits = weight.ndim == down.ndim == up.ndim == 2 and down.shape[0] == up.shape[1]
    if not fits or weight.shape != (up.shape[0], down.shape[1]):
        raise UsageError(
            "low-rank factors that do not fit the weight",
            expected="[out, in], [rank, in], [out, rank]",
            found=f"{list(weight.shape)}, {list(down.shape)}, {list(up.shape)}",
        )


def _aligned(weight: Tensor) -> Tensor:
    """`weight` on the CPU as torch would have allocated it: a BLAS may order its sums by address and stride."""
    weight = weight.detach().cpu().contiguous()
    return weight.clone() if weight.data_ptr() % _ALIGNMENT else weight


def _energy(weight: Tensor) -> float:
    """Sum of squares, in float64, a few rows at a time.

    Raises:
        NonFiniteWeightError
    """
    rows = max(1, _CHUNK // weight.shape[1])
    total = 0.0
    for begin in range(0, weight.shape[0], rows):
        chunk = weight[begin : begin + rows].double()
        found = float(chunk.square().sum())
        # No square of an fp32 number overflows float64.
        if not np.isfinite(found):
            row, column = (int(index) for index in (~torch.isfinite(chunk)).nonzero()[0])
            raise NonFiniteWeightError(
                "a weight that has no SVD",
                where=f"[{begin + row}, {column}]",
                expected="finite numbers",
                found=float(chunk[row, column]),
            )
        total += found
    return total


def _leading_triplets(weight: Tensor, rank: int, energy: float) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, rank], S [rank] falling, V [in, rank], float64, from the leading subspace of the shorter side."""
    tall = weight.shape[0] >= weight.shape[1]
    basis, image = _leading_subspace(weight if tall else weight.T, rank, energy)
    far, values, turn = torch.linalg.svd(image, full_matrices=False)
    near = basis @ turn.T
    return (far, values, near) if tall else (near, values, far)


def _leading_subspace(matrix: Tensor, rank: int, energy: float) -> tuple[Tensor, Tensor]:
    """The best `rank` directions of a block Krylov space of M^T M, float64 [n, rank], and their images M x [m, rank].

    The space starts from a fixed matrix of random signs and grows by one block a pass, orthogonal to all before; unlike
    the last power of M^T M alone, all of them together soon find the edge of a spectrum without gaps. It is done when a
    pass adds to the energy that the best directions capture less than 1e-6 of it and less than 1e-6 of what they leave.
    """
    side = matrix.shape[1]
    width = rank + _OVERSAMPLING
    block = _test_matrix(side, width)
    bases, images = block[:, :0], block.new_empty(matrix.shape[0], 0, dtype=torch.float64)
    gram = images.new_empty(0, 0)
    captured = 0.0
    for _ in range(min(_PASSES, side // width)):
        check_stopped()
        # Twice, because what one pass leaves of a block that is nearly spent is rounding, not orthogonal to anything.
        for _ in range(2):
            block = torch.linalg.qr(block - bases @ (bases.T @ block)).Q
        # Columns of a spent block (the space holds all that M^T M can reach) are rounding, at worst old directions.
        block = block[:, (bases.T @ block).square().sum(0) < _SPENT**2]
        if not block.shape[1]:
            break
        image = matrix @ block
        bases, images = torch.cat([bases, block], 1), torch.cat([images, image.double()], 1)
        border = images.T @ images[:, -block.shape[1] :]
        gram = torch.cat([torch.cat([gram, border[: -block.shape[1]]], 1), border.T], 0)
        before, captured = captured, float(torch.linalg.eigvalsh(gram)[-rank:].sum())
        if captured - before <= max(_SETTLED * min(captured, energy - captured), _ROUNDING * energy):
            break
        # Of size one, lest a product of three weights leave the range of fp32.
        block = matrix.T @ (image / image.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    directions = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
    return bases.double() @ directions, images @ directions


def _test_matrix(rows: int, columns: int) -> Tensor:
    """Signs, fp32 [rows, columns], from the bits of SHAKE-256 over one ASCII line, most significant first, 0 for +1."""
    line = f"{_TEST_VERSION}\t{rows}\t{columns}".encode("ascii")
    stream = hashlib.shake_256(line).digest(-(-rows * columns // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=rows * columns)
    return torch.from_numpy(1 - 2 * bits.astype(np.float32)).view(rows, columns)


def _signs(left: Tensor) -> Tensor:
    """+1 or -1 for each column [rank], so that its component of largest magnitude, the first of equals, is positive."""
    vectors = left.numpy()
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return torch.from_numpy(np.where(largest < 0, -1.0, 1.0))

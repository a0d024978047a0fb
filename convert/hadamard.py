"""Block Hadamard rotation with seeded signs, in arithmetic that every machine repeats bit for bit.

The Sylvester matrix H_b is never formed: butterflies of stride 1, 2, 4 ... b/2 apply it with additions alone, and one
multiplication makes it orthogonal. A block of 64 is one HiF4 group, so that no outlier reaches another group's scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hfq.schema.errors import UsageError

__all__ = ["rotate", "rotation_signs", "unrotate"]

_SIGNS_VERSION: Final = "hfq.rotate/1"
_SCALES: Final = {64: 0.125, 128: float.fromhex("0x1.6a09e6p-4"), 256: 0.0625}
"""1 / sqrt(block), rounded to fp32."""
_TILE: Final = 1 << 17  # elements: three fp32 buffers of a tile stay in cache, and calls cost less than arithmetic
_DEVICE_TILE: Final = 1 << 26  # elsewhere a launch costs more than memory traffic


def rotation_signs(seed: int, in_features: int) -> Tensor:
    """The signs that precede a rotation, fp32 [in_features] of +1 and -1.

    Counters n = 0, 1, 2 ... give the ASCII lines `hfq.rotate/1<TAB>seed<TAB>in_features<TAB>n`, numbers in decimal, no
    line end. The SHA-256 digests of the lines, one after the other, are read as bits, the most significant bit of
    each byte first: bit i is 0 where sign i is +1, 1 where it is -1.
    """
    digests = (
        hashlib.sha256(f"{_SIGNS_VERSION}\t{seed}\t{in_features}\t{n}".encode("ascii")).digest()
        for n in range(-(-in_features // 256))
    )
    bits = np.unpackbits(np.frombuffer(b"".join(digests), dtype=np.uint8), count=in_features)
    return torch.from_numpy(1 - 2 * bits.astype(np.float32))


def rotate(x: Tensor, signs: Tensor, block: int) -> Tensor:
    """`H_b (s * x) / sqrt(b)` for each block of b channels: fp32 [..., K], a new contiguous tensor without gradient.

    Signs, butterflies (a + b, a - b) of stride 1, 2, 4 ..., then one product with fp32(1 / sqrt(b)); each sum,
    difference and product is rounded once to fp32. Strides, device, threads and leading dimensions change no bit.

    Args:
        x: fp32 [..., K].
        signs: fp32 [K], +1 or -1, see `rotation_signs`.
        block: 64, 128 or 256; a divisor of K.

    Raises:
        UsageError: another dtype, block or width.

    Source: Sylvester's construction of H_b; random signs as in QuaRot (arXiv 2404.00456).
    """
    _check(x, signs, block)
    if torch.compiler.is_compiling():
        found: Tensor = torch.ops.hfq.rotate(x.detach(), signs, block)
        return found
    rotated = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for rows, target in _tiles(x, rotated, block):
        torch.mul(rows, signs, out=target)
        _transform(target, block)
    return rotated


@torch.library.custom_op("hfq::rotate", mutates_args=(), schema="(Tensor x, Tensor signs, int block) -> Tensor")
def _rotate_op(x: Tensor, signs: Tensor, block: int) -> Tensor:
    """`rotate` as one step of a model that is being compiled."""
    return rotate(x, signs, block)


@_rotate_op.register_fake
def _rotate_shape(x: Tensor, signs: Tensor, block: int) -> Tensor:
    return torch.empty(x.shape, dtype=torch.float32, device=x.device)


def unrotate(x: Tensor, signs: Tensor, block: int) -> Tensor:
    """The inverse of `rotate` up to rounding: the same butterflies and scale, then the signs.

    Args, result and errors as for `rotate`.
    """
    _check(x, signs, block)
    restored = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for rows, target in _tiles(x, restored, block):
        target.copy_(rows)
        _transform(target, block)
        target.mul_(signs)
    return restored


def _check(x: Tensor, signs: Tensor, block: int) -> None:
    if block not in _SCALES:
        raise UsageError("no block of a rotation", expected="64, 128 or 256", found=block)
    if x.dtype != torch.float32 or signs.dtype != torch.float32:
        raise UsageError("a rotation of another dtype", expected="float32", found=f"{x.dtype} and {signs.dtype}")
    width = x.shape[-1] if x.ndim else 0
    if not width or width % block:
        raise UsageError("a width that the rotation's block does not divide", expected=f"k * {block}", found=width)
    if signs.shape != (width,):
        raise UsageError("not one sign for each channel", expected=[width], found=list(signs.shape))


def _tiles(x: Tensor, out: Tensor, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of `x` and of `out`, [n, K] each, a tile at a time."""
    width = x.shape[-1]
    source, target = x.detach().reshape(-1, width), out.view(-1, width)
    rows = max(1, (_TILE if x.device.type == "cpu" else _DEVICE_TILE) // width)
    return zip(source.split(rows), target.split(rows), strict=True)


def _transform(tile: Tensor, block: int) -> None:
    """Apply H_b / sqrt(b) in place to each block of `tile` [n, K], contiguous.

    With the place in the block as the leading dimension, the operands of every stride are long contiguous runs.
    """
    blocks = tile.view(-1, block)
    count = blocks.shape[0]
    here = torch.empty(block, count, dtype=torch.float32, device=tile.device)
    there = torch.empty_like(here)
    here.copy_(blocks.t())
    stride = 1
    while stride < block:
        shape = (block // (2 * stride), 2, stride, count)
        pairs, done = here.view(shape), there.view(shape)
        torch.add(pairs[:, 0], pairs[:, 1], out=done[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=done[:, 1])
        here, there, stride = there, here, 2 * stride
    blocks.copy_(here.t())
    tile.mul_(_SCALES[block])

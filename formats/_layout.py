"""Tensors as the arrays that compiled kernels take: contiguous, aligned, in whole groups; copies where they are not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ._operand import Operand

__all__ = ["action_of", "flat", "halves_and_words", "is_wide", "mask_runs", "patterns", "pieces", "runs"]

COPIED: Final = 1 << 20  # elements of a copy: memory stays bounded, and the threads have something to share
ALIGNMENT: Final = 8  # bytes: a run of four bf16 values is one 64-bit word

KEEP, DIVIDE, MULTIPLY = 0, 1, 2


def pieces(
    tensors: Sequence[Tensor], out: Tensor | None, multiple: int
) -> Iterator[tuple[slice, list[Tensor], Tensor | None]]:
    """Matrices of the same shape, some rows at a time, as kernels take them; all rows at once where nothing is copied.

    Args:
        tensors: bf16, fp32 or fp16 [rows, K].
        out: the same, to be written: what is written into its piece lands in it when the next one is asked for.
        multiple: K is padded to it, with zeros.
    """
    given = [*tensors] if out is None else [*tensors, out]
    rows, columns = given[0].shape
    width = -(-columns // multiple) * multiple
    plain = all(_plain(tensor, width) for tensor in given)
    height = rows if plain else max(1, COPIED // width)
    for top in range(0, rows, height):
        own = slice(top, min(top + height, rows))
        parts = [_piece(tensor[own], width, filled=True) for tensor in tensors]
        if out is None:
            yield own, parts, None
            continue
        written = _piece(out[own], width, filled=False)
        yield own, parts, written
        if written.data_ptr() != out[own].data_ptr():
            out[own] = written[:, :columns]


def _plain(matrix: Tensor, width: int) -> bool:
    aligned = matrix.is_contiguous() and matrix.data_ptr() % ALIGNMENT == 0
    return aligned and matrix.shape[1] == width and matrix.dtype != torch.float16


def _piece(part: Tensor, width: int, *, filled: bool) -> Tensor:
    if _plain(part, width):
        return part
    wide = torch.float32 if part.dtype == torch.float16 else part.dtype
    copy = torch.zeros((part.shape[0], width), dtype=wide, device="cpu")
    if filled:
        copy[:, : part.shape[1]] = part
    return copy


def patterns(x: Tensor) -> Any:
    """Contiguous bf16 or fp32 as numpy uint16 or uint32, flat."""
    narrow = x.dtype == torch.bfloat16
    array = x.view(torch.int16 if narrow else torch.int32).numpy().reshape(-1)
    return array.view(np.uint16 if narrow else np.uint32)


def halves_and_words(x: Tensor) -> tuple[Any, Any]:
    """Patterns of bf16 as uint16 or of fp32 as uint32; the other of the two is empty."""
    none = (np.empty(0, np.uint16), np.empty(0, np.uint32))
    return (none[0], patterns(x)) if is_wide(x) else (patterns(x), none[1])


def runs(x: Tensor) -> Any:
    """Contiguous bf16 or fp32 in whole groups as numpy uint64, flat: four bf16 or two fp32 patterns to a word."""
    return patterns(x).view(np.uint64)


def is_wide(x: Tensor) -> bool:
    """Whether a piece is fp32, not bf16."""
    return x.dtype == torch.float32


def flat(x: Tensor, kind: type[np.generic]) -> Any:
    """A contiguous integer tensor as flat numpy of another kind of the same or a smaller number of elements."""
    return x.numpy().reshape(-1).view(kind)


def action_of(operand: Operand) -> int:
    """What a kernel does with the mask."""
    if operand.mask is None:
        return KEEP
    return DIVIDE if operand.divide else MULTIPLY


def mask_runs(mask: Tensor | None, groups: int) -> Any:
    """A mask [K] as fp32 [4, 16 groups], a run of four columns to a column; padded with ones."""
    if mask is None:
        return np.ones((4, 1), np.float32)
    padded = np.ones(64 * groups, np.float32)  # numpy's calls cost a fraction of torch's
    padded[: mask.shape[0]] = mask.numpy()
    return np.ascontiguousarray(padded.reshape(-1, 4).T)

"""Vectors, bit patterns and the references applied to whole arrays: what the tests of this folder share."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from hfq.formats import Hif4Tensor, hif4_reference, hif8_reference

VECTORS = Path(__file__).parent.parent / "data" / "vectors"


@functools.cache
def vectors(name: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def bf16(patterns: Any) -> Tensor:
    return torch.from_numpy(np.asarray(patterns, dtype=np.uint16).view(np.int16).copy()).view(torch.bfloat16)


def f32(patterns: Any) -> Tensor:
    return torch.from_numpy(np.asarray(patterns, dtype=np.uint32).view(np.float32).copy())


def bits(x: Tensor) -> Tensor:
    """Bit patterns as integers; every NaN becomes one pattern, because payloads are nobody's promise."""
    kind = torch.int32 if x.dtype == torch.float32 else torch.int16
    return x.contiguous().view(kind).masked_fill(x.isnan(), -1)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def words(tensor: Hif4Tensor) -> np.ndarray[Any, Any]:
    """The scale words as numpy, flat."""
    return tensor.scale.numpy().reshape(-1)


def reference_hif4(rows: Tensor, **options: Any) -> tuple[list[list[int]], list[list[int]], Tensor]:
    """Codes, scale words and fp32 values [rows, K] that the group-by-group reference gives."""
    codes, scales, values = [], [], []
    for row in rows.to(torch.float32).tolist():
        groups = [hif4_reference.encode_group(row[i : i + 64], **options) for i in range(0, len(row), 64)]
        codes.append([byte for group in groups for byte in group.code_bytes])
        scales.append([group.scale_word for group in groups])
        values.append([value for group in groups for value in hif4_reference.decode_group(group)][: len(row)])
    return codes, scales, torch.tensor(values, dtype=torch.float32)


def reference_hif8(x: Tensor, *, saturate: bool = False) -> Tensor:
    flat = [hif8_reference.encode(value, saturate=saturate) for value in x.to(torch.float32).flatten().tolist()]
    return torch.tensor(flat, dtype=torch.uint8).reshape(x.shape)


def examples(count: int) -> settings:
    """So many examples, however slow the machine."""
    return settings(max_examples=count, deadline=None)


def patterns(count: int, width: int) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """`count` arbitrary bit patterns of `width` bits: subnormals, NaN and infinities included."""
    kind = np.dtype(f"<u{width // 8}")
    size = count * width // 8
    return st.binary(min_size=size, max_size=size).map(lambda data: np.frombuffer(data, kind).copy())


@st.composite
def finite_groups(draw: st.DrawFn) -> Tensor:
    """64 finite fp32 values around the decisions of the conversion.

    Every value is a multiple of an eighth of some scale, moved by a few units in the last place, so that products land
    on and beside the thresholds 4 and 2 and the ties between quarters; octaves below the peak are drawn, too.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    exponent = draw(st.integers(-52, 18) | st.integers(-149, 126))
    reciprocal = draw(st.sampled_from([1.0, 0.80078125, 0.66796875, 0.5703125]))
    depth = draw(st.sampled_from([0, 1, 3, 30]))
    eighths = random.integers(0, draw(st.sampled_from([14, 64])) + 1, 64)
    values = eighths / 8 / reciprocal * 2.0 ** (exponent - random.integers(0, depth + 1, 64))
    with np.errstate(over="ignore", under="ignore"):
        single = np.minimum(values, 3e38).astype(np.float32)
    moved = single.view(np.int32) + random.integers(-2, 3, 64) * draw(st.integers(0, 1))
    if draw(st.booleans()):
        moved &= ~0xFFFF  # as many significant bits as bf16 has
    moved = np.maximum(moved, 0).astype(np.int32)
    signs = random.integers(0, 2, 64).astype(np.uint32) << 31
    return f32(moved.view(np.uint32) | signs)

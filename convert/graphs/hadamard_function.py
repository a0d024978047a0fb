"""The block rotation in standard ops, bit for bit that of `convert.hadamard`.

The place in the block becomes the leading axis, so that every operand is a long contiguous run. Each stage adds and
subtracts neighbours and lists all sums before all differences. That moves the lowest bit of a place to the top:
after log2(b) stages every place is where it was, and stage s has done the butterflies of stride 2^s.
"""

from __future__ import annotations

from typing import Final

import onnx

from .body import Body
from .domain import BLOCK_HADAMARD

__all__ = ["hadamard_function"]

_SCALES: Final = {64: 0.125, 128: float.fromhex("0x1.6a09e6p-4"), 256: 0.0625}
"""1 / sqrt(block), rounded to fp32."""


def hadamard_function(block: int, opset: int) -> onnx.FunctionProto:
    """`BlockHadamard{block}`: x float32 [..., K], signs float32 [K] -> y = H_b (signs * x) / sqrt(b) per block."""
    body = Body()
    signed = body.op("Mul", "x", "signs")
    places = body.op("Transpose", body.op("Reshape", signed, body.int64s(-1, block)), perm=[1, 0])
    for _ in range(block.bit_length() - 1):
        pairs = body.op("Reshape", places, body.int64s(block // 2, 2, -1))
        even = body.op("Slice", pairs, body.int64s(0), body.int64s(1), body.int64s(1))
        odd = body.op("Slice", pairs, body.int64s(1), body.int64s(2), body.int64s(1))
        places = body.op("Concat", body.op("Add", even, odd), body.op("Sub", even, odd), axis=0)
    blocks = body.op("Transpose", body.op("Reshape", places, body.int64s(block, -1)), perm=[1, 0])
    rotated = body.op("Reshape", blocks, body.op("Shape", "x"), allowzero=1)
    body.op("Mul", rotated, body.fp32(_SCALES[block]), output="y")
    return body.function(
        BLOCK_HADAMARD[block],
        ["x", "signs"],
        f"H_{block} (signs * x) / sqrt({block}) for each block of {block} channels, H the Sylvester matrix, by "
        "butterflies of stride 1, 2, 4 ...; every sum and difference is rounded once.",
        opset=opset,
    )

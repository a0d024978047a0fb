"""HiFloat8 in standard ops: quantize and dequantize an activation, decode a weight.

`formats.hif8.qdq` looks 65,536 patterns up; a body has no access to bits and computes. Ops without a defined result for
NaN (Clip, Max) only see the step of the grid; the value itself passes through division, Floor and products, so that NaN
and infinity come out as themselves.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import torch
from onnx import helper

from hfq.formats.hif8_bytes import code_values
from hfq.formats.hif8_spec import MIN_SCALE_EXPONENT, SCALED_MAX, Scaling

from .body import Body, half_up
from .domain import HIF8_DEQUANTIZE, HIF8_QDQ

__all__ = ["dequantize_function", "qdq_function"]

_TOP: Final = 2.0**15  # the largest finite value
_BOTTOM: Final = 2.0**-22  # the smallest
_FP32_MAX: Final = float(np.finfo(np.float32).max)
# Products with this are exact (values have four significant bits) and overflow from 1.5 * 2^15 on, not at 2^15.
_OVERFLOW: Final = 1.5 * 2.0**112


def qdq_function(scale: Scaling, saturate: bool, opset: int) -> onnx.FunctionProto:
    """`HiFloat8QDQ` with this `scale` and `saturate`: x [..., K] float32, float16 or bfloat16 -> y."""
    body = Body()
    x = body.as_fp32("x")
    if saturate:
        x = body.op("Where", body.op("IsNaN", x), body.fp32(0), x)
    factor = None if scale == "none" else _scale(body, x, scale)
    if factor is not None:
        x = body.op("Mul", x, body.op("Reciprocal", factor))
    if saturate:
        x = body.clip(x, -_TOP, _TOP)
    y = _rounded(body, x)
    if factor is not None:
        y = body.op("Mul", y, factor)  # nothing finite overflows under a scale of its own
    elif not saturate:
        y = _overflowed(body, y)
    body.op("CastLike", y, "x", output="y")
    under = "" if scale == "none" else f" under one scale 2^ceil(log2(amax / {SCALED_MAX})) per {scale}"
    beyond = "2^15, NaN to zero" if saturate else "infinity"
    return body.function(
        HIF8_QDQ,
        ["x"],
        f"HiFloat8 and back{under}. With E = floor(log2 |x|), at least -22, and m = 3 (|E| <= 3), 2 (<= 7), 1 (<= 15) "
        f"or 0: |y| = floor(|x| * 2^(m - E) + 1/2) * 2^(E - m); from 1.25 * 2^15 on {beyond}. There is no -0. "
        "Source: arXiv 2409.16626v2, section 3.1.",
        opset=opset,
        fixed=[helper.make_attribute("scale", scale), helper.make_attribute("saturate", int(saturate))],
    )


def _rounded(body: Body, x: str) -> str:
    """The nearest number of the grid, continued beyond 2^15 in steps of 2^14: fp32."""
    magnitude = body.op("Abs", x)
    power = _power_of_two(body, body.clip(magnitude, _BOTTOM, _TOP))
    distance = body.op("Max", power, body.op("Reciprocal", power))  # 2^|E|
    # Each clip doubles from |E| = 3 to 4, from 7 to 8, from 15 to 16: one mantissa bit less.
    doublings = body.clip(distance, 2.0**3, 2.0**4)
    for reach in (7, 15):
        doublings = body.op("Mul", doublings, body.clip(distance, 2.0**reach, 2.0 ** (reach + 1)))
    step = body.op("Mul", body.op("Mul", power, body.fp32(2.0 ** -(3 + 3 + 7 + 15))), doublings)
    value = body.op("Mul", half_up(body, body.op("Div", magnitude, step)), step)
    negative = body.as_fp32(body.op("Less", x, body.fp32(0)))
    sign = body.op("Add", body.op("Mul", negative, body.fp32(-2)), body.fp32(1))
    # Adding +0 turns -0 into the format's only zero. As a constant it would be optimized away.
    zero = body.op("Sub", power, power)
    return body.op("Add", body.op("Mul", value, sign), zero)


def _overflowed(body: Body, y: str) -> str:
    """Numbers of the grid, infinity for those beyond 2^15."""
    factor = body.fp32(_OVERFLOW)
    return body.op("Div", body.op("Mul", y, factor), factor)


def _power_of_two(body: Body, x: str) -> str:
    """2^floor(log2 x), exact, for fp32 x in [2^-126, 2^103].

    The unit in the first place as in S. M. Rump, T. Ogita, S. Oishi, "Accurate floating-point summation part I"
    (2008): q = (2^23 + 1) x rounded, then q - (1 - 2^-24) q, the product rounded before the difference.
    """
    q = body.op("Mul", x, body.fp32(2.0**23 + 1))
    return body.op("Sub", q, body.op("Mul", q, body.fp32(1 - 2.0**-24)))


def _scale(body: Body, x: str, scaling: Scaling) -> str:
    """2^k of `formats.hif8`: fp32 [..., 1] per row, [1] per tensor.

    With amax = f * 2^e and 15 = 1.875 * 2^3, k is e - 3 for f <= 1.875 and e - 2 above.
    """
    magnitude = body.op("Abs", x)
    finite = body.op("LessOrEqual", magnitude, body.fp32(_FP32_MAX))
    kept = body.op("Where", finite, magnitude, body.fp32(0))
    # One zero more in every row, and one row more: the maximum of nothing is no number. The rows become a matrix
    # because ONNX Runtime reduces an empty tensor along a negative axis to a wrong shape.
    filled = body.op("Pad", kept, body.int64s(0, 1), body.fp32(0), body.int64s(-1))
    matrix = body.op("Concat", body.int64s(-1), body.op("Shape", filled, start=-1), axis=0)
    amax = body.op("ReduceMax", body.op("Reshape", filled, matrix), body.int64s(1))
    if scaling == "tensor":
        flat = body.op("Reshape", amax, body.int64s(-1))
        amax = body.op(
            "ReduceMax", body.op("Concat", flat, body.constant(np.zeros(1, np.float32)), axis=0), body.int64s(0)
        )
    else:
        rows = body.op("Concat", body.op("Shape", x, end=-1), body.int64s(1), axis=0)
        amax = body.op("Reshape", amax, rows, allowzero=1)
    top = SCALED_MAX / 2.0**3
    least = MIN_SCALE_EXPONENT + 3
    floor = body.clip(amax, 2.0**least, _FP32_MAX)
    _, power = body.exponent(floor, least, 127)
    # For f > 1.875 a factor of two; the quotient by a power of two is exact.
    above = body.as_fp32(body.op("Greater", body.op("Div", floor, power), body.fp32(top)))
    scale = body.op("Mul", body.op("Mul", power, body.fp32(2.0**-3)), body.op("Add", above, body.fp32(1)))
    return body.op("Where", body.op("Equal", amax, body.fp32(0)), body.fp32(1), scale)


def dequantize_function(opset: int) -> onnx.FunctionProto:
    """`HiFloat8Dequantize`: codes uint8 [N, K], scale float32 [N, 1] or [] -> y float32 [N, K]."""
    body = Body()
    values = body.constant(code_values(torch.device("cpu")).numpy())
    decoded = body.op("Gather", values, body.cast("codes", onnx.TensorProto.INT32))
    body.op("Mul", decoded, "scale", output="y")
    return body.function(
        HIF8_DEQUANTIZE,
        ["codes", "scale"],
        "HiFloat8 codes looked up, times their scale. Code 80 is NaN, 6F and EF are the infinities. "
        "Source: arXiv 2409.16626v2.",
        opset=opset,
    )

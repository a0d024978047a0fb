"""HiFloat4 in standard ops: quantize and dequantize an activation, decode a packed weight.

The body of the activation op does what `formats.hif4.qdq` does, in the same steps. Only opset 18 is used, and two kinds
of node are avoided because runtimes differ in them: a Cast that rounds to bfloat16, and a Where that selects a -0.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
import torch
from onnx import helper

from hfq.formats.hif4 import reciprocals
from hfq.formats.hif4_bytes import scale_values, unpack_codes
from hfq.formats.hif4_spec import (
    E6M2_NAN,
    GROUP,
    LV2_FLAGS,
    LV2_SPAN,
    LV2_THRESHOLD,
    LV3_FLAGS,
    LV3_SPAN,
    LV3_THRESHOLD,
    MAX_QUARTERS,
    ONE_SEVENTH,
    SCALE_MAX,
    SCALE_MIN,
    SIGN_CODE,
    Profile,
    profile_named,
)

from .body import Body, half_up
from .domain import HIF4_DEQUANTIZE, HIF4_QDQ

__all__ = ["dequantize_function", "qdq_function"]

_TREE: Final = (LV2_FLAGS, LV3_FLAGS // LV2_FLAGS, LV3_SPAN)  # one group: 8 lv2 spans of 2 lv3 spans of 4 values
_LOWEST: Final = -48  # exponents of E6M2 scales
_HIGHEST: Final = 15
_TO_BF16: Final = 2.0**16  # an fp32 significand has 16 bits more than a bf16 one,
_TO_E6M2: Final = 2.0**21  # and 21 more than an E6M2 one


def qdq_function(profile: str, opset: int) -> onnx.FunctionProto:
    """`HiFloat4QDQ` under `profile`: x [..., K] float32, float16 or bfloat16 -> y, `headroom` read from the node.

    Raises:
        UnknownProfileError: there is no such profile.
    """
    rules = profile_named(profile)
    body = Body()
    padded = _padded(body, body.as_fp32("x"))
    x = body.op("Reshape", padded, body.int64s(-1, *_TREE))
    magnitudes = body.op("Abs", x)
    # Axes are counted from the front: ONNX Runtime reduces an empty tensor along a negative axis to a wrong shape.
    v16 = body.op("ReduceMax", magnitudes, body.int64s(3))
    v8 = body.op("ReduceMax", v16, body.int64s(2))
    vmax = body.op("ReduceMax", v8, body.int64s(1))
    # A maximum may drop NaN. A sum of magnitudes is NaN only where one of them is.
    nan = body.op("IsNaN", body.op("ReduceSum", magnitudes, body.int64s(1, 2, 3)))
    scale, reciprocal = _scale(body, vmax, nan)
    lv2, lv3 = _increments(body, v8, v16, reciprocal, rules)
    # 4m: the factor is a power of two times `reciprocal`, exact
    shrink = body.op("Mul", _halves(body, lv2), _halves(body, lv3))
    factor = body.op("Mul", body.op("Mul", reciprocal, body.fp32(4)), shrink)
    quarters = _quarters(body, body.op("Mul", magnitudes, factor), rules)
    grow = body.op("Mul", _doubles(body, lv2), _doubles(body, lv3))
    step = body.op("Mul", body.op("Mul", scale, body.fp32(0.25)), grow)
    # A factor of -1 gives a negative that rounded to zero its sign; -0 < 0 is false.
    negative = body.as_fp32(body.op("Less", x, body.fp32(0)))
    sign = body.op("Add", body.op("Mul", negative, body.fp32(-2)), body.fp32(1))
    values = body.op("Mul", body.op("Mul", quarters, step), sign)
    wide = body.op("Reshape", values, body.op("Shape", padded), allowzero=1)
    last = body.op("Shape", "x", start=-1)
    y = body.op("Slice", wide, body.int64s(0), last, body.int64s(-1))
    body.op("CastLike", y, "x", output="y")
    return body.function(
        HIF4_QDQ,
        ["x"],
        f"HiFloat4 and back in groups of {GROUP} along the last axis, profile {profile}. Per group: scale E6M2 = "
        "headroom * peak / 7 to two mantissa bits, lv2 per 8 and lv3 per 4 values double it, values are quarters "
        "0 ... 7 of it with a sign. A short last group counts as zeros; NaN makes its group NaN, infinity saturates. "
        "Source: arXiv 2602.11287v2.",
        opset=opset,
        attributes=["headroom"],
        fixed=[helper.make_attribute("profile", profile)],
    )


def _padded(body: Body, x: str) -> str:
    """[..., K] with zeros up to a multiple of 64."""
    last = body.op("Shape", x, start=-1)
    group = body.int64s(GROUP)
    # Mod takes the sign of the divisor: (-K) mod 64 is what is missing.
    missing = body.op("Mod", body.op("Neg", last), group)
    pads = body.op("Concat", body.int64s(0), missing, axis=0)
    return body.op("Pad", x, pads, body.fp32(0), body.int64s(-1))


def _scale(body: Body, vmax: str, nan: str) -> tuple[str, str]:
    """Steps 2-5: E6M2, NaN where `nan` is true, and bf16(1 / E6M2).

    With p the power of two at or below a, (a + 2^16 p) - 2^16 p is a to 7 mantissa bits, half to even, and 2^21 does
    it for two.
    """
    peak = body.op("Mul", vmax, body.attribute("headroom", onnx.AttributeProto.FLOAT))
    clipped = body.clip(body.op("Mul", peak, body.fp32(ONE_SEVENTH)), SCALE_MIN, SCALE_MAX)
    exponent, power = body.exponent(clipped, _LOWEST, _HIGHEST)
    rounded = clipped
    for bits in (_TO_BF16, _TO_E6M2):
        magic = body.op("Mul", power, body.fp32(bits))
        rounded = body.op("Sub", body.op("Add", rounded, magic), magic)
    # Four to eight quarters of p; eight carries into the next exponent by itself, as in the byte.
    quarters = body.op("Mul", body.op("Div", rounded, power), body.fp32(4))
    mantissa = body.op("Sub", body.cast(quarters, onnx.TensorProto.INT32), body.int32(4))
    code = body.op("Add", body.op("Mul", exponent, body.int32(4)), mantissa)
    code = body.op("Clip", code, body.int32(0), body.int32(E6M2_NAN - 1))
    code = body.op("Where", nan, body.int32(E6M2_NAN), code)
    table = reciprocals(torch.device("cpu")).numpy()
    inverse = np.append(table, np.float32(1))  # of the NaN code: any number, the scale makes the group NaN
    return body.op("Gather", body.constant(_scales()), code), body.op("Gather", body.constant(inverse), code)


def _increments(body: Body, v8: str, v16: str, reciprocal: str, rules: Profile) -> tuple[str, str]:
    """Steps 6-7: lv2 [g, 8, 1, 1] and lv3 [g, 8, 2, 1] as 0.0 and 1.0.

    bf16(t) >= 4 is t >= 4 - 2^-7: half way to the bf16 number below 4, and that tie is rounded up, to the even one.
    """
    slack = 1 - 2.0**-9 if rules.tests_in_bf16 else 1.0
    tested8, tested16 = body.op("Mul", v8, reciprocal), body.op("Mul", v16, reciprocal)
    lv2 = body.as_fp32(body.op("GreaterOrEqual", tested8, body.fp32(LV2_THRESHOLD * slack)))
    threshold = body.op("Mul", _doubles(body, lv2), body.fp32(LV3_THRESHOLD * slack))
    return lv2, body.as_fp32(body.op("GreaterOrEqual", tested16, threshold))


def _quarters(body: Body, scaled: str, rules: Profile) -> str:
    """Step 9: 4m -> quarters 0..7.

    t + 65536 t rounded, less 65536 t, is bf16(t): 65536 t ends in zeros wherever t is a tie, so that ties go to even.
    It is wrong in one place, the last 2^-16 before a power of two, where it may give the bf16 number below instead.
    Half to even, that changes no quarter. Half up it would change those before 1/2: there, t is first cut to
    multiples of 2^-10. All thresholds of bf16(t) are such multiples, and cutting crosses none of them.
    """
    if not rules.element_in_bf16:
        return half_up(body, body.clip(scaled, 0, MAX_QUARTERS))
    if rules.ties_to_even:
        return body.op("Round", _bf16(body, body.clip(scaled, 0, MAX_QUARTERS)))
    fine = 2.0**10
    cut = body.op("Floor", body.clip(body.op("Mul", scaled, body.fp32(fine)), 0, MAX_QUARTERS * fine))
    return half_up(body, body.op("Mul", _bf16(body, cut), body.fp32(1 / fine)))


def _bf16(body: Body, t: str) -> str:
    magic = body.op("Mul", t, body.fp32(_TO_BF16))
    return body.op("Sub", body.op("Add", t, magic), magic)


def _doubles(body: Body, flag: str) -> str:
    """2^flag."""
    return body.op("Add", flag, body.fp32(1))


def _halves(body: Body, flag: str) -> str:
    """2^-flag."""
    return body.op("Add", body.op("Mul", flag, body.fp32(-0.5)), body.fp32(1))


def dequantize_function(opset: int) -> onnx.FunctionProto:
    """`HiFloat4Dequantize`: codes uint8 [N, 32 G], scale uint8 [N, G, 4] -> y float32 [N, K], K = `columns`."""
    body = Body()
    rows_groups = body.op("Shape", "scale", start=0, end=2)

    def byte(place: int, table: str) -> str:
        """Byte `place` of each scale word, looked up: [N, G, ...]."""
        column = body.op("Gather", "scale", body.int32(place), axis=2)
        return body.op("Gather", table, body.cast(column, onnx.TensorProto.INT32))

    doublings = (1 + (np.arange(256)[:, None] >> np.arange(8) & 1)).astype(np.float32)
    levels = body.constant(doublings)
    shape8 = body.op("Concat", rows_groups, body.int64s(LV2_FLAGS, 1, 1), axis=0)
    shape16 = body.op("Concat", rows_groups, body.int64s(LV2_FLAGS, LV3_FLAGS // LV2_FLAGS, 1), axis=0)
    shape64 = body.op("Concat", rows_groups, body.int64s(*_TREE), axis=0)
    shape1 = body.op("Concat", rows_groups, body.int64s(1, 1, 1), axis=0)
    quarter = body.op("Reshape", byte(0, body.constant(_scales() / np.float32(4))), shape1, allowzero=1)
    lv2 = body.op("Reshape", byte(1, levels), shape8, allowzero=1)
    lv3 = body.op("Concat", byte(2, levels), byte(3, levels), axis=-1)
    lv3 = body.op("Reshape", lv3, shape16, allowzero=1)
    step = body.op("Mul", body.op("Mul", quarter, lv2), lv3)
    pairs = body.op("Gather", body.constant(_pairs()), body.cast("codes", onnx.TensorProto.INT32))
    values = body.op("Mul", body.op("Reshape", pairs, shape64, allowzero=1), step)
    wide = body.op("Reshape", values, body.op("Mul", body.op("Shape", "codes"), body.int64s(1, 2)), allowzero=1)
    columns = body.op("Reshape", body.attribute("columns", onnx.AttributeProto.INT), body.int64s(1))
    body.op("Slice", wide, body.int64s(0), columns, body.int64s(1), output="y")
    return body.function(
        HIF4_DEQUANTIZE,
        ["codes", "scale"],
        f"The values of packed HiFloat4 codes: E6M2 * 2^(lv2[i div {LV2_SPAN}] + lv3[i div {LV3_SPAN}]) * S1P2[i]. Two "
        "codes to a byte, the even element in the low nibble; scale bytes E6M2, lv2, lv3 low, lv3 high, flag j in "
        "bit j. E6M2 FF is NaN. Source: arXiv 2602.11287v2.",
        opset=opset,
        attributes=["columns"],
    )


def _scales() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The value of every E6M2 byte: fp32 [256]."""
    return scale_values(torch.arange(E6M2_NAN + 1, dtype=torch.int32)).numpy()


def _pairs() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Both values of every code byte, in quarters: fp32 [256, 2]; code 8 is -0."""
    codes = unpack_codes(torch.arange(256, dtype=torch.int32).to(torch.uint8).unsqueeze(-1)).to(torch.float32)
    return torch.where(codes >= SIGN_CODE, -(codes - SIGN_CODE), codes).numpy()

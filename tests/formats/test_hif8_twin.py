"""The fast HiFloat8 against the readable one, and what a scale does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from format_helpers import examples, f32, patterns, reference_hif8, same_bits
from hypothesis import given
from hypothesis import strategies as st

from hfq.formats import Hif8Tensor, hif8, hif8_reference


def reference_scale(row: torch.Tensor) -> float:
    finite = [abs(value) for value in row.to(torch.float32).flatten().tolist() if abs(value) < float("inf")]
    return 2.0 ** hif8_reference.scale_exponent(max(finite, default=0.0))


@examples(150)
@given(patterns(64, 32), st.booleans())
def test_any_fp32_bits(raw: np.ndarray[Any, Any], saturate: bool) -> None:
    x = f32(raw)
    codes = hif8.quantize(x, saturate=saturate, nonfinite="encode").codes
    assert torch.equal(codes, reference_hif8(x, saturate=saturate))


def test_nan_with_low_payload_bits_only() -> None:
    assert hif8.quantize(f32([0x7F80_0001, 0xFF80_FFFF]), nonfinite="encode").codes.tolist() == [0x80, 0x80]


def test_infinity_and_nan_have_no_say_in_the_scale() -> None:
    x = torch.tensor([[30.0, 1.0], [float("inf"), 30.0], [30.0, float("nan")]])
    stored = hif8.quantize(x, scale="row", nonfinite="encode")
    assert stored.scale.flatten().tolist() == [2.0, 2.0, 2.0]
    assert stored.dequantize(torch.float32)[1].tolist() == [float("inf"), 30.0]


def test_every_fp16_pattern() -> None:
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    assert torch.equal(hif8.quantize(x, nonfinite="encode").codes, reference_hif8(x))


@examples(100)
@given(patterns(24, 32), st.integers(-40, 40), st.booleans())
def test_scaled_rows_and_tensors(raw: np.ndarray[Any, Any], octave: int, near_one: bool) -> None:
    if near_one:  # comparable magnitudes, so that scaled values meet the fine part of the format
        raw = (raw & 0x81FF_FFFF) | ((127 + octave - 4) << 23)
    x = f32(raw).reshape(3, 8)
    rows = hif8.quantize(x, scale="row", nonfinite="encode")
    assert rows.scale.shape == (3, 1)
    for row, codes, scale in zip(x, rows.codes, rows.scale, strict=True):
        assert float(scale) == reference_scale(row)
        assert torch.equal(codes, reference_hif8(row.to(torch.float64) / scale))
    whole = hif8.quantize(x, scale="tensor", nonfinite="encode")
    assert whole.scale.shape == ()
    assert float(whole.scale) == reference_scale(x)
    assert torch.equal(whole.codes, reference_hif8(x.to(torch.float64) / whole.scale))
    rows.validate()
    whole.validate()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("scale", ["none", "tensor", "row"])
def test_qdq_is_quantize_then_dequantize(dtype: torch.dtype, saturate: bool, scale: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(9, 200, generator=generator) * torch.logspace(-9, 9, 9, base=4).unsqueeze(1)).to(dtype)
    x[0, :4] = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0])
    x[1] = 0
    out = hif8.qdq(x, scale=scale, saturate=saturate)
    stored = hif8.quantize(x, scale=scale, saturate=saturate, nonfinite="encode")
    assert same_bits(out, stored.dequantize(dtype))
    assert not out[1].any()


def test_scale_is_the_smallest_power_of_two_that_keeps_amax_within_15() -> None:
    fifteen = torch.tensor(15.0)
    above = torch.nextafter(fifteen, torch.tensor(16.0))
    amax = torch.stack((fifteen, above, fifteen / 2, above / 4, torch.tensor(0.0), torch.tensor(1e-45)))
    scale = hif8.quantize(torch.stack((amax, -amax / 3), 1), scale="row").scale.flatten().tolist()
    assert scale == [1.0, 2.0, 0.5, 0.5, 1.0, 2.0**-126]


def test_a_large_negative_value_scales_its_row_like_a_positive_one() -> None:
    stored = hif8.quantize(torch.tensor([[-120.0, 1.0], [120.0, -1.0]]), scale="row")
    assert stored.scale.flatten().tolist() == [8.0, 8.0]
    assert stored.dequantize(torch.float32).tolist() == [[-120.0, 1.0], [120.0, -1.0]]


def test_a_scale_rescues_small_weights() -> None:
    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(5)).mul(0.02).bfloat16()
    direct, scaled = hif8.qdq(w), hif8.qdq(w, scale="row")
    assert (scaled - w).float().square().sum() * 3.5 < (direct - w).float().square().sum()  # 5.4 dB and more


def test_decoding_scales_every_code() -> None:
    codes = torch.tensor([[0x08, 0x88], [0x6E, 0x00]], dtype=torch.uint8)
    rows = Hif8Tensor(codes, torch.tensor([[4.0], [0.5]]), "row")
    assert rows.dequantize(torch.float32).tolist() == [[4.0, -4.0], [16384.0, 0.0]]

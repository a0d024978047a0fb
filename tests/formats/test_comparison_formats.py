"""MXFP4 and NVFP4 as tables quote them: elements and scales against ml_dtypes' casts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from format_helpers import examples, f32, patterns, same_bits
from hypothesis import given

from hfq.formats import mxfp4, nvfp4
from hfq.formats._e2m1 import round_to_e2m1


@examples(100)
@given(patterns(64, 32))
def test_elements_of_any_bits(raw: np.ndarray[Any, Any]) -> None:
    x = f32(raw)
    x = x[~x.isnan()]
    theirs = x.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert same_bits(round_to_e2m1(x), torch.from_numpy(theirs))


def test_elements_at_every_tie() -> None:
    steps = torch.arange(-800, 801, dtype=torch.float32) / 100
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    x = torch.cat((steps, ties, -ties, torch.nextafter(ties, ties * 2), torch.nextafter(ties, ties * 0)))
    theirs = x.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert same_bits(round_to_e2m1(x), torch.from_numpy(theirs))
    assert round_to_e2m1(torch.tensor([float("nan")])).isnan().all()


@pytest.mark.parametrize(("rule", "expected"), [("floor", 6.0), ("ceil", 8.0)])
def test_mxfp4_scale_rule(rule: Any, expected: float) -> None:
    x = torch.zeros(32)
    x[0] = 7.5  # floor: scale 1, saturates at 6; ceil: scale 2, 3.75 rounds to 4
    assert mxfp4.qdq(x, scale_rule=rule)[0].item() == expected
    x[0] = 6.0
    assert mxfp4.qdq(x, scale_rule=rule)[0].item() == 6.0


@examples(50)
@given(patterns(64, 16))
def test_mxfp4_by_way_of_the_library(raw: np.ndarray[Any, Any]) -> None:
    x = raw.astype(np.uint32) << 16
    blocks = x.view(np.float32).reshape(2, 32)
    blocks = np.where(np.isfinite(blocks) & (np.abs(blocks) > 1e-30), blocks, 1.0).astype(np.float32)
    amax = np.abs(blocks).max(-1, keepdims=True)
    scale = np.exp2(np.floor(np.log2(amax.astype(np.float64))) - 2)
    with np.errstate(over="ignore"):
        elements = (blocks / scale).astype(np.float32).astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    assert same_bits(mxfp4.qdq(torch.from_numpy(blocks)), torch.from_numpy((elements * scale).astype(np.float32)))


@pytest.mark.parametrize("tensor_scale", [False, True])
def test_nvfp4_by_way_of_the_library(tensor_scale: bool) -> None:
    x = np.random.default_rng(6).standard_normal((64, 16)).astype(np.float32)
    whole = np.abs(x).max() / np.float32(6 * 448) if tensor_scale else np.float32(1)
    scale = np.abs(x).max(-1, keepdims=True) / (np.float32(6) * whole)
    scale = scale.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * whole
    expected = (x / scale).astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * scale
    assert same_bits(nvfp4.qdq(torch.from_numpy(x), tensor_scale=tensor_scale), torch.from_numpy(expected))


def test_zeros_stay_zero_and_tiny_blocks_stay_finite() -> None:
    x = torch.zeros(4, 64)
    x[1, 0], x[2, 0], x[3, 0] = 1e-40, 1e-12, 1e38
    for out in (mxfp4.qdq(x), mxfp4.qdq(x, scale_rule="ceil"), nvfp4.qdq(x), nvfp4.qdq(x, tensor_scale=False)):
        assert not out[0].any()
        assert out.isfinite().all()


def test_nan_stays_in_its_block() -> None:
    x = torch.ones(1, 64)
    x[0, 5] = float("nan")
    assert mxfp4.qdq(x).isnan().squeeze().tolist() == [True] * 32 + [False] * 32
    assert nvfp4.qdq(x, tensor_scale=False).isnan().squeeze().tolist() == [True] * 16 + [False] * 48

"""The fast HiFloat4 against the readable one, bit for bit, under every option."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from format_helpers import bf16, bits, examples, f32, finite_groups, patterns, reference_hif4, same_bits
from hypothesis import given
from hypothesis import strategies as st

from hfq.formats import hif4

PROFILES = st.sampled_from(["ref", "amct", "cann", "pto"])
HEADROOMS = st.sampled_from([1.0, 1.0, 0.9, 1.1, 0.3, 7.0, 1e-30, 1e30])
POLICIES = st.sampled_from(["propagate", "nan-group"])


def assert_twin(x: torch.Tensor, **options: Any) -> None:
    codes, scales, values = reference_hif4(x, **options)
    stored = hif4.quantize(x, **options)
    assert stored.scale.tolist() == scales
    assert stored.codes.tolist() == codes
    assert same_bits(stored.dequantize(torch.float32), values)
    if not options.pop("scale_search", False):
        assert same_bits(hif4.qdq(x.float(), **options), values)


@examples(150)
@given(finite_groups(), PROFILES, HEADROOMS)
def test_groups_around_the_thresholds(group: torch.Tensor, profile: str, headroom: float) -> None:
    assert_twin(group.reshape(1, 64), profile=profile, headroom=headroom, nonfinite="refuse")


@examples(60)
@given(patterns(64, 32), PROFILES, HEADROOMS, POLICIES)
def test_any_fp32_bits(raw: np.ndarray[Any, Any], profile: str, headroom: float, nonfinite: str) -> None:
    assert_twin(f32(raw).reshape(1, 64), profile=profile, headroom=headroom, nonfinite=nonfinite)


@examples(60)
@given(patterns(64, 16), PROFILES, POLICIES, st.booleans())
def test_any_16_bit_patterns(raw: np.ndarray[Any, Any], profile: str, nonfinite: str, half: bool) -> None:
    x = bf16(raw).view(torch.float16) if half else bf16(raw)
    assert_twin(x.reshape(1, 64), profile=profile, nonfinite=nonfinite)


@examples(60)
@given(finite_groups(), PROFILES, st.sampled_from([1.0, 0.9, 1.2]))
def test_scale_search(group: torch.Tensor, profile: str, headroom: float) -> None:
    assert_twin(group.reshape(1, 64), profile=profile, headroom=headroom, scale_search=True)


@examples(30)
@given(patterns(64, 32), POLICIES)
def test_scale_search_of_any_fp32_bits(raw: np.ndarray[Any, Any], nonfinite: str) -> None:
    assert_twin(f32(raw).reshape(1, 64), scale_search=True, nonfinite=nonfinite)


@examples(40)
@given(finite_groups(), st.integers(1, 63), PROFILES, st.booleans())
def test_short_rows(group: torch.Tensor, length: int, profile: str, search: bool) -> None:
    assert_twin(group.repeat(2)[: 64 + length].reshape(1, -1), profile=profile, scale_search=search)


@pytest.mark.parametrize(
    ("values", "offset"),
    [
        ([4.125], 0),  # offsets 0 and +2 err alike: the smaller offset
        ([0.25, 2.875, 1.5625], -1),  # -1 and +1 err alike: the lower code
        ([7.8125], 1),  # +1 and +2 err alike, both less than 0
        ([0.0], 0),
    ],
)
def test_scale_search_breaks_ties(values: list[float], offset: int) -> None:
    x = torch.tensor(values + [0.0] * (64 - len(values)))
    plain, searched = hif4.quantize(x), hif4.quantize(x, scale_search=True)
    assert int(hif4.unpack_scale(searched.scale)[0]) - int(hif4.unpack_scale(plain.scale)[0]) == offset


def test_scale_search_sums_in_binary64() -> None:
    # Near the tie of offsets -1 and +1 above: +1 errs less by a few parts in 10^9, which fp32 sums cannot see.
    x = torch.full((64,), 0.03)
    x[:4] = torch.tensor([0.25, 2.875, 1.5625, 0.0])
    x[0] = torch.nextafter(x[0], torch.tensor(1.0))
    plain, searched = hif4.quantize(x), hif4.quantize(x, scale_search=True)
    assert int(hif4.unpack_scale(searched.scale)[0]) - int(hif4.unpack_scale(plain.scale)[0]) == 1


def test_scale_search_stays_inside_the_codes() -> None:
    x = torch.stack((torch.full((64,), 2.0**-47), torch.full((64,), 3e38)))
    codes = hif4.unpack_scale(hif4.quantize(x, scale_search=True).scale)[0]
    assert bool((codes >= 0).all())
    assert codes[1].item() == 0xFE


@examples(100)
@given(finite_groups(), st.floats(0.25, 4, width=32))
def test_headroom_enters_the_scale_only(group: torch.Tensor, headroom: float) -> None:
    """Step 2 by exact fractions: sf = bf16(fp32(fp32(vmax * h) * 73/512)), then clip and two mantissa bits."""
    peak = Fraction(float(group.abs().max()))
    if peak:
        product = nearest(peak * Fraction(headroom), 24, -149)
        scale = nearest(nearest(product * Fraction(73, 512), 24, -149), 8, -133)
        scale = min(max(scale, Fraction(2) ** -48), Fraction(49152))
        expected = float(nearest(scale, 3, -200))
        stored = hif4.quantize(group, headroom=headroom)
        code = int(hif4.unpack_scale(stored.scale)[0])
        assert (1 + code % 4 / 4) * 2.0 ** (code // 4 - 48) == expected


def nearest(value: Fraction, significant_bits: int, least_exponent: int) -> Fraction:
    """`value` rounded half to even; `round` of a Fraction is half to even."""
    if value == 0:
        return value
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent -= value < Fraction(2) ** exponent
    unit = Fraction(2) ** max(exponent - significant_bits + 1, least_exponent)
    return round(value / unit) * unit


def test_ties_round_by_profile() -> None:
    # The peak 7 gives scale 1 and the last run has no flag: 0.125 and 0.375 lie half way between quarters.
    x = torch.zeros(64)
    x[0], x[60], x[61], x[62], x[63] = 7.0, 0.125, 0.375, -0.125, -0.0
    away, even = hif4.qdq(x), hif4.qdq(x, profile="cann")
    assert away[60:63].tolist() == [0.25, 0.5, -0.25]
    assert even[60:63].tolist() == [0.0, 0.5, -0.0]
    assert bits(even[62:64]).tolist() == [-0x8000_0000, 0]  # a negative rounds to -0, -0 itself becomes +0


def test_just_below_a_tie_rounds_down() -> None:
    x = torch.zeros(64)
    x[0], x[60] = 7.0, float(np.nextafter(np.float32(0.125), np.float32(0)))
    assert hif4.qdq(x)[60].item() == 0.0
    assert hif4.qdq(x, profile="amct")[60].item() == 0.25  # its bf16 rounding comes first

"""HiFloat4 against published vectors: a failure means that hfq's bytes are not the named profile's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from format_helpers import bf16, f32, reference_hif4, same_bits, vectors, words

from hfq.formats import Hif4Tensor, hif4

PROFILES = ("ref", "amct", "cann", "pto")


def published(profile: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Codes one per byte [groups, 64] and scale words of the 1777 published groups under a profile."""
    base, changes = vectors("hif4_groups"), vectors("hif4_profiles")
    codes = np.stack((base["codes"] & 15, base["codes"] >> 4), -1).reshape(-1, 64)
    scale = base["scale_u32"].copy()
    if profile != "ref":
        for group, element, code in changes[f"{profile}_code_diff"]:
            codes[group, element] = code
        for group, word in changes[f"{profile}_scale_diff"]:
            scale[group] = word
    return codes, scale


@pytest.mark.parametrize("profile", PROFILES)
def test_every_group_encodes_as_published(profile: Any) -> None:
    codes, scale = published(profile)
    stored = hif4.quantize(bf16(vectors("hif4_groups")["in_bf16"]), profile=profile)
    stored.validate()
    assert np.array_equal(hif4.unpack_codes(stored.codes).numpy(), codes)
    assert np.array_equal(words(stored), scale)


@pytest.mark.parametrize("profile", PROFILES)
def test_reference_encodes_every_group(profile: Any) -> None:
    codes, scale = published(profile)
    packed, found, _ = reference_hif4(bf16(vectors("hif4_groups")["in_bf16"]), profile=profile)
    assert np.array_equal(np.array(packed), codes[:, 0::2] | codes[:, 1::2] << 4)
    assert np.array_equal(np.array(found)[:, 0], scale)


def test_every_group_decodes_as_published() -> None:
    groups = vectors("hif4_groups")
    scale = torch.from_numpy(groups["scale_u32"]).unsqueeze(-1)
    stored = Hif4Tensor(torch.from_numpy(groups["codes"]), scale, torch.Size((1777, 64)), "ref")
    expected = bf16(groups["dequant_bf16"])
    assert same_bits(stored.dequantize(), expected)
    assert same_bits(stored.dequantize(torch.float32), expected.float())
    assert same_bits(hif4.qdq(bf16(groups["in_bf16"])), expected)
    assert same_bits(reference_hif4(bf16(groups["in_bf16"]))[2], expected.float())


def test_layout_a_is_the_documented_one() -> None:
    groups = vectors("hif4_groups")
    e6m2, lv2, lv3 = hif4.unpack_scale(torch.from_numpy(groups["scale_u32"]))
    for found, name in ((e6m2, "e6m2"), (lv2, "lv2"), (lv3, "lv3")):
        assert np.array_equal(found.numpy(), groups[name].astype(np.int32)), name


def test_fp32_groups_round_once_per_step() -> None:
    groups = vectors("hif4_f32")
    x = f32(groups["in_f32"])
    stored = hif4.quantize(x)
    assert np.array_equal(stored.codes.numpy(), groups["codes"])
    assert np.array_equal(words(stored), groups["scale_u32"])
    assert same_bits(stored.dequantize(), bf16(groups["dequant_bf16"]))
    assert same_bits(hif4.qdq(x), bf16(groups["dequant_bf16"]).float())
    codes, scale, _ = reference_hif4(x)
    assert np.array_equal(np.array(codes), groups["codes"])
    assert np.array_equal(np.array(scale)[:, 0], groups["scale_u32"])


def test_nan_and_infinity_propagate_as_published() -> None:
    groups = vectors("hif4_nonfinite")
    x = bf16(groups["in_bf16"])
    stored = hif4.quantize(x, nonfinite="propagate")
    assert np.array_equal(words(stored), groups["scale_u32"])
    assert np.array_equal(stored.codes.numpy(), groups["codes"])
    assert same_bits(stored.dequantize(), bf16(groups["dequant_bf16"]))
    assert same_bits(hif4.qdq(x), bf16(groups["dequant_bf16"]))
    codes, scale, _ = reference_hif4(x)
    assert np.array_equal(np.array(codes), groups["codes"])
    assert np.array_equal(np.array(scale)[:, 0], groups["scale_u32"])


def test_nan_group_policy_as_published() -> None:
    groups = vectors("hif4_nonfinite")
    x = bf16(groups["in_bf16"])
    stored = hif4.quantize(x, nonfinite="nan-group")
    expected = groups["scale_u32_nanblock"]
    assert np.array_equal(words(stored), expected)
    assert (stored.codes.numpy()[expected == 0xFF] == 0).all()
    assert np.array_equal(torch.isnan(hif4.qdq(x, nonfinite="nan-group")).all(-1).numpy(), expected == 0xFF)
    _, scale, _ = reference_hif4(x, nonfinite="nan-group")
    assert np.array_equal(np.array(scale)[:, 0], expected)


def test_rows_of_any_length() -> None:
    tail = vectors("hif4_tail")
    x, expected = bf16(tail["in_bf16"]), bf16(tail["dequant_bf16"])
    first_value = first_group = 0
    for length in tail["lengths"].tolist():
        row = slice(first_value, first_value + length)
        groups = slice(first_group, first_group + -(-length // 64))
        stored = hif4.quantize(x[row])
        stored.validate()
        assert stored.shape == (length,)
        assert np.array_equal(stored.codes.numpy(), tail["codes"][groups].reshape(-1)), length
        assert np.array_equal(words(stored), tail["scale_u32"][groups]), length
        assert same_bits(stored.dequantize(), expected[row]), length
        assert same_bits(hif4.qdq(x[row]), expected[row]), length
        first_value, first_group = row.stop, groups.stop
    assert first_value == x.numel()


def test_known_groups() -> None:
    assert (hif4.qdq(torch.ones(64)) == 0.9375).all()
    assert (hif4.qdq(torch.full((64,), 3e38)) == 344064).all()
    zero = hif4.quantize(torch.zeros(64))
    assert zero.scale.tolist() == [0]
    assert not zero.codes.any()

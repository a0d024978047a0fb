"""Packed HiFloat4: the bytes round-trip, and codes and scales that no quantizer wrote are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hfq.formats import Hif4Tensor, MalformedTensorError, UnknownProfileError, UnsupportedDtypeError, hif4


@pytest.fixture
def stored() -> Hif4Tensor:
    """Shape [3, 70]: two groups to a row, 58 columns of padding."""
    return hif4.quantize(torch.randn(3, 70, generator=torch.Generator().manual_seed(1)))


def test_codes_pack_even_element_low() -> None:
    codes = torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)
    assert hif4.pack_codes(codes).tolist() == [[0x21, 0x0F]]
    assert torch.equal(hif4.unpack_codes(hif4.pack_codes(codes)), codes)


def test_all_bytes_round_trip() -> None:
    every = torch.arange(256).to(torch.uint8).reshape(4, 64)
    assert torch.equal(hif4.pack_codes(hif4.unpack_codes(every)), every)


def test_scale_words_round_trip() -> None:
    e6m2 = torch.tensor([[0x00, 0xC0, 0xFE], [0xFF, 0x01, 0x80]])
    lv2 = torch.tensor([[0, 1, 0x80], [0xFF, 0xA5, 2]])
    lv3 = torch.tensor([[0, 1, 0x8000], [0xFFFF, 0xA5C3, 2]])
    words = hif4.pack_scale(e6m2, lv2, lv3)
    assert words.dtype == torch.uint32
    assert words.tolist() == [[0, 0x000101C0, 0x800080FE], [0xFFFFFFFF, 0xA5C3A501, 0x00020280]]
    for found, expected in zip(hif4.unpack_scale(words), (e6m2, lv2, lv3), strict=True):
        assert torch.equal(found.long(), expected)


def test_words_are_little_endian_bytes_in_a_file(stored: Hif4Tensor, tmp_path: Path) -> None:
    save_file({"codes": stored.codes, "scale": stored.scale}, tmp_path / "t.safetensors")
    loaded = load_file(tmp_path / "t.safetensors")
    again = Hif4Tensor(loaded["codes"], loaded["scale"], stored.shape, stored.profile)
    again.validate()
    assert torch.equal(again.dequantize(), stored.dequantize())
    raw = (tmp_path / "t.safetensors").read_bytes()
    assert stored.scale.numpy().astype("<u4").tobytes() in raw


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0), (0,), (2, 0, 5), (1,), (2, 3, 70)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, dtype=torch.bfloat16)
    tensor = hif4.quantize(x)
    tensor.validate()
    groups = -(-shape[-1] // 64)
    assert tensor.shape == shape
    assert tensor.codes.shape == (*shape[:-1], 32 * groups)
    assert tensor.scale.shape == (*shape[:-1], groups)
    assert tensor.dequantize().shape == shape
    assert torch.equal(tensor.dequantize(), hif4.qdq(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_dtypes(stored: Hif4Tensor, dtype: torch.dtype) -> None:
    assert stored.dequantize(dtype).dtype == dtype
    assert torch.equal(stored.dequantize(dtype), stored.dequantize(torch.float32).to(dtype))
    assert hif4.qdq(torch.ones(64, dtype=dtype)).dtype == dtype


def test_fp16_input_is_widened() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(2)).to(torch.float16)
    assert torch.equal(hif4.quantize(x).codes, hif4.quantize(x.float()).codes)
    assert torch.equal(hif4.qdq(x), hif4.qdq(x.float()).to(torch.float16))


def test_cannot_be_changed_in_place(stored: Hif4Tensor) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        stored.profile = "amct"  # type: ignore[misc]


def test_dequantize_refuses_other_dtypes(stored: Hif4Tensor) -> None:
    with pytest.raises(UnsupportedDtypeError):
        stored.dequantize(torch.float64)


def poke(tensor: torch.Tensor, index: tuple[int, ...], value: int) -> torch.Tensor:
    """A copy with one element changed (uint32 by way of numpy)."""
    array = tensor.numpy().copy()
    array[index] = value
    return torch.from_numpy(array)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {"codes": t.codes.to(torch.int16)}, "codes dtype"),
        (lambda t: {"scale": t.scale.view(torch.int32)}, "scale dtype"),
        (lambda t: {"codes": t.codes[:, :-1]}, "codes shape"),
        (lambda t: {"codes": t.codes[:2]}, "codes shape"),
        (lambda t: {"scale": t.scale.reshape(-1)}, "scale shape"),
        (lambda t: {"shape": (3, 64)}, "codes shape"),
        (lambda t: {"shape": (3, 129)}, "codes shape"),
        (lambda t: {"shape": (3, -70)}, "shape"),
        (lambda t: {"shape": ()}, "shape"),
        (lambda t: {"shape": (3, 70.0)}, "shape"),
        (lambda t: {"codes": poke(t.codes, (2, 35), 0x10)}, "codes in the padding after column 70"),
        (lambda t: {"codes": poke(t.codes, (0, 63), 0x80)}, "codes in the padding after column 70"),
        (lambda t: {"scale": poke(t.scale, (1, 1), 0x0000_02C0)}, "lv2 flags in the padding"),
        (lambda t: {"scale": poke(t.scale, (1, 1), 0x8000_00C0)}, "lv3 flags in the padding"),
        (lambda t: {"scale": poke(t.scale, (1, 1), 0x0004_00C0)}, "lv3 flags in the padding"),
        (lambda t: {"codes": t.codes.to("meta")}, "scale device"),
    ],
)
def test_hostile_pairs_are_refused(stored: Hif4Tensor, change: Any, words: str) -> None:
    hostile = dataclasses.replace(stored, **change(stored))
    with pytest.raises(MalformedTensorError, match=words):
        hostile.validate()


def test_dequantize_checks_the_layout(stored: Hif4Tensor) -> None:
    with pytest.raises(MalformedTensorError, match="codes shape"):
        dataclasses.replace(stored, shape=(3, 700)).dequantize()


def test_flags_of_partly_used_runs_are_allowed(stored: Hif4Tensor) -> None:
    # 70 = 64 + 6: lv2[0] and lv3[0:2] of the second group are in use.
    dataclasses.replace(stored, scale=poke(stored.scale, (1, 1), 0x0003_01C0)).validate()


def test_unknown_profile_is_refused(stored: Hif4Tensor) -> None:
    with pytest.raises(UnknownProfileError):
        dataclasses.replace(stored, profile="reference").validate()


def test_any_words_and_codes_decode() -> None:
    random = np.random.default_rng(4)
    scale = torch.from_numpy(random.integers(0, 2**32, (5, 3), dtype=np.uint32))
    codes = torch.from_numpy(random.integers(0, 256, (5, 96), dtype=np.uint8))
    tensor = Hif4Tensor(codes, scale, (5, 192), "ref")
    tensor.validate()
    values = tensor.dequantize(torch.float32)
    assert torch.equal(values, tensor.dequantize().float())  # exact in bf16
    assert float(values.abs().max()) <= 344064

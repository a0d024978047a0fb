"""HiFloat8 against published tables: a failure means that hfq's bytes are not HiFloat8."""

from __future__ import annotations

import en_dtypes
import numpy as np
import pytest
import torch
from format_helpers import bf16, f32, reference_hif8, same_bits, vectors

from hfq.formats import Hif8Tensor, hif8, hif8_reference

ALL_BF16 = bf16(np.arange(65536))
ALL_CODES = Hif8Tensor(torch.arange(256).to(torch.uint8), torch.ones(()), "none")


def expected(name: str, saturate: bool) -> torch.Tensor:
    return torch.from_numpy(vectors(name)["codes_sat" if saturate else "codes"])


def test_every_code_decodes_to_its_value() -> None:
    table = vectors("hif8_decode")
    assert same_bits(ALL_CODES.dequantize(), bf16(table["value_bf16"]))
    assert same_bits(ALL_CODES.dequantize(torch.float32), torch.from_numpy(table["value_f32"]))


def test_reference_decodes_every_code() -> None:
    values = torch.tensor([hif8_reference.decode(code) for code in range(256)])
    assert same_bits(values, torch.from_numpy(vectors("hif8_decode")["value_f32"]))


def test_every_value_survives_its_own_code() -> None:
    again = hif8.quantize(ALL_CODES.dequantize(torch.float16), nonfinite="encode")
    assert torch.equal(again.codes, ALL_CODES.codes)


@pytest.mark.parametrize("saturate", [False, True])
def test_every_bf16_pattern_encodes_as_published(saturate: bool) -> None:
    codes = hif8.quantize(ALL_BF16, saturate=saturate, nonfinite="encode").codes
    assert torch.equal(codes, expected("hif8_encode_bf16", saturate))


@pytest.mark.parametrize("saturate", [False, True])
def test_fp32_neighbours_of_every_boundary_encode_as_published(saturate: bool) -> None:
    x = f32(vectors("hif8_encode_f32")["in_f32"])
    codes = hif8.quantize(x, saturate=saturate, nonfinite="encode").codes
    assert torch.equal(codes, expected("hif8_encode_f32", saturate))
    assert torch.equal(reference_hif8(x, saturate=saturate), codes)


@pytest.mark.parametrize("saturate", [False, True])
def test_reference_encodes_every_bf16_pattern(saturate: bool) -> None:
    assert torch.equal(reference_hif8(ALL_BF16, saturate=saturate), expected("hif8_encode_bf16", saturate))


def test_another_library_agrees() -> None:
    codes = hif8.quantize(ALL_BF16, nonfinite="encode").codes
    with np.errstate(invalid="ignore"):  # NaN is among the patterns
        theirs = ALL_BF16.to(torch.float32).numpy().astype(en_dtypes.hifloat8)  # its float64 path rounds twice
    assert np.array_equal(theirs.view(np.uint8), codes.numpy())
    decoded = np.arange(256, dtype=np.uint8).view(en_dtypes.hifloat8).astype(np.float32)
    assert np.array_equal(decoded, ALL_CODES.dequantize(torch.float32).numpy(), equal_nan=True)

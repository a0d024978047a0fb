"""Formats inside `torch.compile`: the codes and values of eager, whatever the compiler fuses around them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from format_helpers import same_bits
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler

from hfq.formats import hif4, hif8, mxfp4, nvfp4
from hfq.formats.rounding import round_to_bf16


@pytest.fixture(scope="module", autouse=True)
def twin() -> None:
    """A compiler sees neither twin."""


@pytest.fixture(autouse=True)
def compiler() -> None:
    try:
        get_cpp_compiler()
    except Exception as error:  # of a class that differs between releases
        pytest.skip(f"inductor needs a C++ compiler: {error}")
    torch._dynamo.reset()


def hard_groups(dtype: torch.dtype) -> Tensor:
    """[320, 128]: peaks whose seventh lies beside the middle of two BF16 numbers, and numbers over many octaves."""
    generator = torch.Generator().manual_seed(5)
    halves = torch.randint(0x3C00, 0x4700, (160, 128), generator=generator, dtype=torch.int32)
    wanted = ((halves << 16) + 0x8000).view(torch.float32) * 512 / 73
    near = wanted.view(torch.int32) + torch.randint(-3, 4, wanted.shape, generator=generator, dtype=torch.int32)
    near = near.view(torch.float32) * torch.tensor([1.0] + 63 * [0.37]).repeat(2)
    wide = torch.randn(160, 128, generator=generator) * torch.exp2(torch.randn(160, 128, generator=generator) * 4)
    return torch.cat((near, wide)).to(dtype)


MASK = torch.rand(128, generator=torch.Generator().manual_seed(1)) * 3 + 0.1
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
SCALINGS: list[Any] = ["none", "tensor", "row"]


def assert_compiled_is_eager(work: Callable[..., Any], *inputs: Tensor, **options: Any) -> None:
    expected, found = work(*inputs), torch.compile(work, **options)(*inputs)
    for one, other in zip(expected, found, strict=True):
        assert same_bits(one, other) if one.is_floating_point() else torch.equal(one, other)


def test_hif4_activations() -> None:
    def work(*inputs: Tensor) -> list[Tensor]:
        found = []
        for x, profile in itertools.product(inputs, ["ref", "amct", "cann", "pto"]):
            scaled = x * 1.1  # fused with whatever follows, unless that is out of a compiler's reach
            found += [
                hif4.qdq(scaled, profile=profile),
                hif4.qdq(scaled, profile=profile, headroom=0.93, dtype=torch.float32),
                hif4.qdq(scaled, profile=profile, factor=MASK, dtype=torch.bfloat16),
                hif4.qdq(x.float() * MASK, profile=profile),
                hif4.qdq(x.to(torch.bfloat16), profile=profile),
            ]
        return found

    assert_compiled_is_eager(work, *map(hard_groups, DTYPES), fullgraph=True)


def test_hif8_activations() -> None:
    def work(*inputs: Tensor) -> list[Tensor]:
        found = []
        for x, scale in itertools.product(inputs, SCALINGS):
            scaled = x * 1.1
            found += [
                hif8.qdq(scaled, scale=scale, saturate=True),
                hif8.qdq(scaled, scale=scale, factor=MASK, dtype=torch.bfloat16),
                hif8.qdq(x.float() * MASK, scale=scale),
            ]
        return found

    assert_compiled_is_eager(work, *map(hard_groups, DTYPES), fullgraph=True)


@pytest.mark.parametrize(("profile", "dtype"), [("ref", torch.bfloat16), ("pto", torch.float32)])
def test_hif4_bytes(profile: str, dtype: torch.dtype) -> None:
    def work(x: Tensor) -> list[Tensor]:
        stored = hif4.quantize(x * 1.1, profile=profile)
        masked = hif4.quantize(x * 1.1, profile=profile, divisor=MASK, through=torch.bfloat16)
        values = masked.dequantize(torch.float32, factor=MASK)
        return [stored.codes, stored.scale.view(torch.int32), masked.codes, masked.scale.view(torch.int32), values]

    assert_compiled_is_eager(work, hard_groups(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_hif8_bytes_and_the_other_formats(dtype: torch.dtype) -> None:
    def work(x: Tensor) -> list[Tensor]:
        scaled = x * 1.1
        stored = hif8.quantize(scaled, scale="row", divisor=MASK)
        return [stored.codes, stored.scale, mxfp4.qdq(scaled), nvfp4.qdq(scaled), round_to_bf16(scaled * MASK).float()]

    assert_compiled_is_eager(work, hard_groups(dtype))


def test_an_unknown_word_is_refused_there_too() -> None:
    with pytest.raises(Exception, match="profile"):
        torch.compile(lambda x: hif4.qdq(x, profile="mine"))(torch.ones(2, 64))
    with pytest.raises(Exception, match="scale"):
        torch.compile(lambda x: hif8.qdq(x, scale="column"))(torch.ones(2, 64))


def test_sizes_may_change() -> None:
    compiled = torch.compile(lambda x: hif4.qdq(x + 1, factor=MASK), fullgraph=True, dynamic=True)
    for rows in (3, 5, 8):
        x = hard_groups(torch.bfloat16)[:rows]
        assert same_bits(compiled(x), hif4.qdq(x + 1, factor=MASK))


@pytest.mark.parametrize("factor", [None, MASK])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_operators_keep_their_promises(dtype: torch.dtype, factor: Tensor | None) -> None:
    x = hard_groups(dtype)[:7]
    torch.library.opcheck(torch.ops.hfq.hif4_qdq.default, (x, factor, "ref", 0.9, "propagate", torch.bfloat16))
    torch.library.opcheck(torch.ops.hfq.hif8_qdq.default, (x.t().contiguous().t(), factor, "row", False, dtype))
    torch.library.opcheck(torch.ops.hfq.settled.default, (x,))

"""Compiled kernels against the eager twin, bit for bit: every option, layout, special value and number of threads."""

from __future__ import annotations

import concurrent.futures
import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from format_helpers import bf16, f32, same_bits
from torch import Tensor

from hfq.formats import Hif4Tensor, Hif8Tensor, NonFiniteError, _compiled, hif4, hif8
from hfq.formats.errors import MalformedTensorError, UnsupportedDtypeError
from hfq.formats.rounding import round_to_bf16

PROFILES = ["ref", "amct", "cann", "pto"]
SCALINGS: list[Any] = ["none", "tensor", "row"]


@pytest.fixture(scope="module", autouse=True)
def twin() -> None:
    """Both twins run in every test of this module."""


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ranges of a few groups, so that threads have something to share."""
    monkeypatch.setattr(_compiled, "RANGE", 1000)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def both(work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The results of the eager and of the compiled twin."""
    results = []
    for smallest in (sys.maxsize, 1):
        monkeypatch.setattr(_compiled, "LOAD_FROM", smallest)
        monkeypatch.setattr(_compiled, "RUN_FROM", smallest)
        results.append(work())
    return results[0], results[1]


def assert_same(work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    eager, compiled = both(work, monkeypatch)
    for one, other in zip(parts(eager), parts(compiled), strict=True):
        if isinstance(one, Tensor) and one.is_floating_point():
            assert same_bits(one, other)
        else:
            assert np.array_equal(np.asarray(one), np.asarray(other))


def parts(result: Any) -> list[Any]:
    if isinstance(result, Hif4Tensor | Hif8Tensor):
        return [result.codes, result.scale]
    return [*result] if isinstance(result, tuple) else [result]


def some(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers over many octaves, with zeros of both signs and subnormals among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-9, 10, shape, generator=generator))
    places = torch.rand(shape, generator=generator)
    x[places < 0.02], x[(places > 0.02) & (places < 0.04)] = 0.0, -0.0
    x[places > 0.99] *= 1e-41
    return x.to(dtype)


def a_mask(columns: int, seed: int = 1) -> Tensor:
    return torch.rand(columns, generator=torch.Generator().manual_seed(seed)) * 3 + 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(40, 128), (3, 5, 70), (7, 1), (130,), (1, 12_000), (300, 64), (9, 63)])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = some(shape, dtype), a_mask(shape[-1])
    words = hif4.quantize(x).scale
    for work in (
        lambda: hif4.quantize(x),
        lambda: hif4.quantize(x, divisor=mask, through=torch.bfloat16),
        lambda: hif4.quantize(x, scale_search=True, divisor=mask),
        lambda: hif4.quantize_under(x, words, divisor=mask),
        lambda: hif4.qdq(x),
        lambda: hif4.qdq(x, factor=mask, dtype=torch.bfloat16),
        lambda: hif4.quantize(x).dequantize(dtype),
        lambda: hif4.quantize(x).dequantize(dtype, factor=mask),
        lambda: hif4.quantize(x).squared_error(x, factor=mask),
        lambda: round_to_bf16(x),
        *(lambda s=s: hif8.quantize(x, scale=s) for s in SCALINGS),
        *(lambda s=s: hif8.quantize(x, scale=s, divisor=mask, through=torch.bfloat16) for s in SCALINGS),
        *(lambda s=s: hif8.qdq(x, scale=s) for s in SCALINGS),
        *(lambda s=s: hif8.qdq(x, scale=s, factor=mask, dtype=torch.bfloat16) for s in SCALINGS),
        *(lambda s=s: hif8.quantize(x, scale=s).dequantize(dtype, factor=mask) for s in SCALINGS),
        *(lambda s=s: hif8.quantize(x, scale=s).squared_error(x, factor=mask) for s in SCALINGS),
    ):
        assert_same(work, monkeypatch)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("headroom", [1.0, 0.7, 1e-30, 1e30])
def test_any_fp32_bits(profile: str, headroom: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product contracted into a fused multiply-add would differ in some of these."""
    random = np.random.default_rng(PROFILES.index(profile))
    x = f32(random.integers(0, 2**32, 1 << 16, dtype=np.uint32)).view(-1, 64)
    # Near each other, so that quarters and flags of all kinds occur; the rest is mostly one large value per group.
    near = f32((random.integers(0, 2**32, 1 << 16, dtype=np.uint32) & 0x81FF_FFFF) | 0x3E00_0000).view(-1, 64)
    for policy in ("propagate", "nan-group"):
        for values in (x, near):
            options: Any = {"profile": profile, "headroom": headroom, "nonfinite": policy}
            assert_same(lambda o=options, v=values: hif4.quantize(v, **o), monkeypatch)
            assert_same(lambda o=options, v=values: hif4.quantize(v[:128], scale_search=True, **o), monkeypatch)
            assert_same(lambda o=options, v=values: hif4.qdq(v, **o), monkeypatch)


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("scale", SCALINGS)
def test_any_bits_in_hif8(scale: Any, saturate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    wide = f32(random.integers(0, 2**32, 1 << 16, dtype=np.uint32)).view(64, -1)
    for x in (bf16(np.arange(65536)).view(256, 256), wide, f32((np.arange(65536) << 16) + 0x8000).view(256, 256)):
        options: Any = {"scale": scale, "saturate": saturate}
        assert_same(lambda o=options, x=x: hif8.quantize(x, nonfinite="encode", **o), monkeypatch)
        assert_same(lambda o=options, x=x: hif8.qdq(x, **o), monkeypatch)
        assert_same(lambda o=options, x=x: hif8.qdq(x, factor=torch.ones(x.shape[-1]), **o), monkeypatch)


def test_every_bf16_value_and_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    every = bf16(np.arange(65536)).view(-1, 64)
    words = torch.from_numpy(np.random.default_rng(3).integers(0, 2**32, (1024, 1), dtype=np.uint32))
    codes = torch.from_numpy(np.random.default_rng(4).integers(0, 256, (1024, 32), dtype=np.uint8))
    stored = Hif4Tensor(codes, words, (1024, 64), "ref")
    finite = words & 0xFFFF_FF7F
    usual = every.nan_to_num(0.0, 1e30, -1e30)
    assert_same(lambda: hif4.qdq(every), monkeypatch)
    for profile in PROFILES:
        assert_same(lambda p=profile: hif4.quantize_under(usual, finite, profile=p), monkeypatch)
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        assert_same(lambda d=dtype: stored.dequantize(d), monkeypatch)
        assert_same(lambda d=dtype: stored.dequantize(d, factor=a_mask(64) * 1e-38), monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_strides_and_odd_addresses(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = some((20, 256), dtype)
    shifted = torch.empty(20 * 256 + 1, dtype=dtype)[1:].view(20, 256).copy_(x)
    wide = some((40, 300), dtype)
    for given in (x.t(), shifted, wide[::2, 3:131], x[None].expand(3, 20, 256)):
        assert_same(lambda g=given: hif4.quantize(g), monkeypatch)
        assert_same(lambda g=given: hif4.qdq(g), monkeypatch)
        assert_same(lambda g=given: hif8.quantize(g, scale="row"), monkeypatch)
        assert_same(lambda g=given: hif8.qdq(g), monkeypatch)


def test_a_mask_is_one_rounding() -> None:
    """Against numpy's division and multiplication of the whole tensor."""
    x, mask = some((50, 192), torch.bfloat16), a_mask(192)
    wide = x.float().numpy()
    quotient, product = torch.from_numpy(wide / mask.numpy()), torch.from_numpy(wide * mask.numpy())
    assert torch.equal(hif4.quantize(x, divisor=mask).codes, hif4.quantize(quotient).codes)
    assert same_bits(hif4.qdq(x, factor=mask), hif4.qdq(product).bfloat16())
    assert torch.equal(hif8.quantize(x, scale="row", divisor=mask).codes, hif8.quantize(quotient, scale="row").codes)
    assert same_bits(hif8.qdq(x, factor=mask), hif8.qdq(product).bfloat16())


def test_through_bf16_is_one_rounding_to_nearest_even() -> None:
    patterns = np.random.default_rng(5).integers(0, 2**32, 1 << 14, dtype=np.uint32)
    patterns = np.concatenate((patterns, (patterns & 0xFFFF_0000) | 0x8000, (patterns & 0xFFFF_0000) | 0x7FFF))
    patterns = patterns[np.isfinite(patterns.view(np.float32)) & ((patterns & 0x7FFF_FFFF) < 0x7F7F_0000)]
    x = f32(patterns[: len(patterns) // 64 * 64]).view(-1, 64)
    kept, dropped = x.numpy().view(np.uint32) >> 16, x.numpy().view(np.uint32) & 0xFFFF
    nearest = kept + ((dropped > 0x8000) | ((dropped == 0x8000) & (kept & 1 == 1)))
    rounded = bf16(nearest.astype(np.uint16))
    assert same_bits(round_to_bf16(x), rounded)
    assert torch.equal(hif4.quantize(x, through=torch.bfloat16).codes, hif4.quantize(rounded).codes)
    assert torch.equal(hif8.quantize(x, through=torch.bfloat16).codes, hif8.quantize(rounded).codes)


@pytest.mark.parametrize("shape", [(33, 320), (5, 70)])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_refusals_name_the_same_place(shape: tuple[int, ...], value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = some(shape, torch.bfloat16), a_mask(shape[1])
    words = hif4.quantize(x).scale
    x[3, 66], x[4, 1] = value, float("nan")
    works: list[Callable[[], Any]] = [
        lambda: hif4.quantize(x, divisor=mask),
        lambda: hif4.quantize(x, scale_search=True),
        lambda: hif4.quantize_under(x, words),
        lambda: hif4.qdq(x, nonfinite="refuse"),
        *(lambda s=s: hif8.quantize(x, scale=s) for s in SCALINGS),
    ]

    def refusal(work: Callable[[], Any]) -> tuple[Any, str]:
        with pytest.raises(NonFiniteError) as caught:
            work()
        return caught.value.position, str(caught.value.value)

    for work in works:
        eager, compiled = both(lambda w=work: refusal(w), monkeypatch)
        assert eager == compiled == ((3, 66), str(value))


def test_a_quotient_that_overflows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = torch.full((4, 64), 1e38), torch.ones(64)
    mask[5] = 1e-3
    for work in (lambda: hif4.quantize(x, divisor=mask), lambda: hif8.quantize(x, divisor=mask, saturate=True)):
        for smallest in (sys.maxsize, 1):
            monkeypatch.setattr(_compiled, "LOAD_FROM", smallest)
            monkeypatch.setattr(_compiled, "RUN_FROM", smallest)
            with pytest.raises(NonFiniteError) as caught:
                work()
            assert caught.value.position == (0, 5)


def test_words_that_are_nan_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compiled, "RUN_FROM", 1)
    monkeypatch.setattr(_compiled, "LOAD_FROM", 1)
    with pytest.raises(MalformedTensorError, match="NaN"):
        hif4.quantize_under(torch.ones(2, 64), torch.tensor([[0xC0], [0x1FF]], dtype=torch.uint32))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_counts(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(threads)
    x, mask = some((257, 192), torch.float32), a_mask(192)
    for work in (
        lambda: hif4.quantize(x, divisor=mask),
        lambda: hif4.quantize(x).dequantize(factor=mask),
        lambda: hif4.quantize(x).squared_error(x),
        lambda: hif8.qdq(x, scale="row", factor=mask),
        lambda: hif8.quantize(x, scale="tensor").squared_error(x),
    ):
        assert_same(work, monkeypatch)


def test_several_callers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    tensors = [some((100, 256), torch.bfloat16, seed) for seed in range(8)]
    expected, _ = both(lambda: [hif4.quantize(x).codes for x in tensors], monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(4) as callers:
        for _ in range(5):
            found = list(callers.map(lambda x: hif4.quantize(x).codes, tensors))
            assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("options", [{}, {"factor": a_mask(200)}])
def test_squared_error_is_the_sum_of_squares(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against exactly rounded sums of the squares in plain Python."""
    x = some((6, 200), torch.bfloat16)
    for stored in (hif4.quantize(x), hif8.quantize(x, scale="row")):
        values = stored.dequantize(torch.float32, **options).double()
        error = math.fsum(((values - x.double()) ** 2).flatten().tolist())
        power = math.fsum((x.double() ** 2).flatten().tolist())
        for found in both(lambda s=stored: s.squared_error(x, **options), monkeypatch):
            assert found == pytest.approx((error, power), rel=1e-13)


@pytest.mark.parametrize("mask", [torch.ones(63), torch.ones(1, 64), torch.ones(64, device="meta")])
def test_masks_of_another_shape(mask: Tensor) -> None:
    x = torch.ones(2, 64)
    calls: list[Callable[[], Any]] = [
        lambda: hif4.quantize(x, divisor=mask),
        lambda: hif4.qdq(x, factor=mask),
        lambda: hif4.quantize(x).dequantize(factor=mask),
        lambda: hif4.quantize(x).squared_error(x, factor=mask),
        lambda: hif8.qdq(x, factor=mask),
        lambda: hif8.quantize(x).dequantize(factor=mask),
    ]
    for call in calls:
        with pytest.raises(MalformedTensorError):
            call()


def test_arguments_of_another_kind() -> None:
    x = torch.ones(2, 64)
    calls: list[Callable[[], Any]] = [
        lambda: hif4.quantize(x, divisor=torch.ones(64, dtype=torch.float64)),
        lambda: hif4.quantize(x, through=torch.float16),
        lambda: hif4.qdq(x, dtype=torch.float64),
        lambda: hif8.qdq(x, dtype=torch.int8),
        lambda: hif4.quantize(x).squared_error(x.double()),
    ]
    for call in calls:
        with pytest.raises(UnsupportedDtypeError):
            call()
    with pytest.raises(MalformedTensorError):
        hif8.quantize(x).squared_error(x[:1])


def test_an_error_in_a_range_is_raised_and_ends_the_others() -> None:
    torch.set_num_threads(3)
    done: list[int] = []

    def work(first: int, last: int) -> None:
        if first == 300:
            raise RuntimeError("range 300")
        done.append(first)

    with pytest.raises(RuntimeError, match="range 300"):
        _compiled.run_ranges(work, 10_000, 100_000)
    finished = len(done)
    threading.Event().wait(0.05)
    assert len(done) == finished < 100


def test_ranges_cover_everything_once() -> None:
    for threads, count, elements in ((1, 7, 10**9), (2, 7, 10**9), (3, 1001, 64 * 1001), (2, 5, 10)):
        torch.set_num_threads(threads)
        ranges = sorted(_compiled.run_ranges(lambda first, last: (first, last), count, elements))
        assert [ranges[0][0], ranges[-1][1]] == [0, count]
        assert all(left[1] == right[0] for left, right in itertools.pairwise(ranges))

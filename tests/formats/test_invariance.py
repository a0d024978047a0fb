"""The same values give the same bits, however they lie in memory and however the work is cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from format_helpers import same_bits

from hfq.formats import _tiles, hif4, hif4_bytes, hif8, hif8_bytes, hif8_eager, mxfp4, nvfp4

SCALINGS = ("none", "tensor", "row")


def everything(x: torch.Tensor) -> list[torch.Tensor]:
    """Every output of the room for one tensor, as tensors that compare bit by bit."""
    four, searched = hif4.quantize(x), hif4.quantize(x, profile="pto", scale_search=True, headroom=1.1)
    eights = [hif8.quantize(x, scale=scaling) for scaling in SCALINGS]
    outputs = [four.codes, four.scale.view(torch.int32), searched.codes, searched.scale.view(torch.int32)]
    outputs += [four.dequantize(), hif4.qdq(x), mxfp4.qdq(x), nvfp4.qdq(x)]
    outputs += [eight.codes for eight in eights] + [eight.scale for eight in eights]
    return outputs + [eight.dequantize() for eight in eights] + [hif8.qdq(x, scale=scaling) for scaling in SCALINGS]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for one, other in zip(a, b, strict=True):
        if one.is_floating_point():
            assert same_bits(one, other)
        else:
            assert torch.equal(one, other)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(37, 200, generator=torch.Generator().manual_seed(11)).mul(0.02).bfloat16()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("tile", [7, 64, 130, 256, 1000])
def test_tile_size_changes_no_bit(x: torch.Tensor, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = x[:9]
    whole = everything(rows)
    monkeypatch.setattr(_tiles, "CPU_TILE", tile)
    assert_same(whole, everything(rows))


@pytest.mark.parametrize("shape", [(300, 5_000), (8_200, 64), (2, 600_000)])
def test_tiles_bound_the_work(shape: tuple[int, int]) -> None:
    matrix = torch.empty(shape, dtype=torch.uint8)
    covered = torch.zeros_like(matrix)
    for tile in _tiles.tiles(matrix, multiple=64):
        assert covered[tile].numel() <= _tiles.CPU_TILE
        covered[tile] += 1
    assert bool((covered == 1).all())


@pytest.mark.usefixtures("threads")
def test_thread_count_changes_no_bit() -> None:
    large = torch.randn(256, 640, generator=torch.Generator().manual_seed(12)).bfloat16()
    torch.set_num_threads(1)
    one = everything(large)
    torch.set_num_threads(2)
    assert_same(one, everything(large))


def test_strides_change_no_bit(x: torch.Tensor) -> None:
    expected = everything(x)
    wide = torch.zeros(74, 300, dtype=x.dtype)
    wide[::2, 50:250] = x
    for other in (x.t().contiguous().t(), wide[::2, 50:250]):
        assert not other.is_contiguous()
        assert_same(expected, everything(other))
    assert_same(everything(x.float()), everything(x.float().t().contiguous().t()))


def test_leading_axes_are_rows(x: torch.Tensor) -> None:
    cube = x[:36].reshape(3, 12, 200)
    for flat, shaped in zip(everything(x[:36]), everything(cube), strict=True):
        assert torch.equal(flat.reshape(shaped.shape), shaped)
    assert_same(everything(cube), everything(cube.transpose(0, 1).contiguous().transpose(0, 1)))


def test_bf16_values_in_fp32_give_the_same_codes(x: torch.Tensor) -> None:
    assert torch.equal(hif4.quantize(x).codes, hif4.quantize(x.float()).codes)
    assert torch.equal(hif8.quantize(x, scale="row").codes, hif8.quantize(x.float(), scale="row").codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_input_is_left_alone(dtype: torch.dtype) -> None:
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(13)).to(dtype)
    x[0, 0] = -0.0
    before = x.clone()
    everything(x)
    assert same_bits(x, before)


def test_results_stand_outside_autograd() -> None:
    x = torch.randn(2, 64, requires_grad=True)
    for out in (hif4.qdq(x), hif8.qdq(x), hif4.quantize(x).dequantize(), mxfp4.qdq(x), nvfp4.qdq(x)):
        assert not out.requires_grad


def forget_tables() -> None:
    """As in a fresh process: every look-up table has yet to be built."""
    tables = (
        hif4.reciprocals, hif4_bytes._value_pairs, hif8_eager.codes_table, hif8_eager.rounded_table,
        hif8_bytes.code_values,
    )  # fmt: skip
    for table in tables:
        table.cache_clear()


def test_tables_built_inside_a_context_serve_outside_it(x: torch.Tensor) -> None:
    expected = everything(x)
    for context in (torch.device("meta"), torch.inference_mode()):
        forget_tables()
        with context:
            assert_same(expected, everything(x))
        assert_same(expected, everything(x.clone().requires_grad_()))

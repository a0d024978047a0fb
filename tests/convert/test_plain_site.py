"""A weight rounded a few rows at a time is the weight rounded at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hfq.convert.plain_site import PlainSite
from hfq.convert.weights import quantize_weight, site_digest, stored_bits
from hfq.schema.errors import NonFiniteWeightError

HIF4 = {"format": "hif4", "profile": "ref", "scale_search": False}
OPTIONS = [
    HIF4,
    {**HIF4, "profile": "amct"},
    {**HIF4, "scale_search": True},
    {"format": "hif8", "scale": "row", "saturate": False},
    {"format": "hif8", "scale": "none", "saturate": True},
]


def weight(rows: int, columns: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(rows)
    return (torch.randn(rows, columns, generator=made) * torch.logspace(-4, 2, columns)).bfloat16()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("columns", [192, 100])
@pytest.mark.parametrize("height", [1, 7, 64, 200])
def test_parts_of_any_height_give_the_same(options: dict[str, Any], columns: int, height: int) -> None:
    x = weight(150, columns)
    whole = quantize_weight(x, options, "w")
    plain = PlainSite((150, columns), options, "w", measured=True)
    for part in x.split(height):
        plain.feed(part)
    assert plain.digest() == site_digest(whole, options, {})
    assert plain.sums() == whole.squared_error(x)
    assert plain.bits == stored_bits(whole)


def test_formats_whose_scale_reaches_beyond_a_row_do_not_fit() -> None:
    assert all(PlainSite.fits(options) for options in OPTIONS)
    assert not PlainSite.fits({"format": "hif8", "scale": "tensor", "saturate": False})


@pytest.mark.parametrize("options", [HIF4, OPTIONS[3]])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_number_that_must_be_refused_is_told_at_the_end_by_its_place(options: dict[str, Any], bad: float) -> None:
    x = weight(40, 64)
    x[33, 5] = bad
    plain = PlainSite((40, 64), options, "high_noise blocks.0.ffn.0", measured=False)
    for part in x.split(16):
        plain.feed(part)
    with pytest.raises(NonFiniteWeightError, match=r"blocks.0.ffn.0.*at position \[33, 5\]"):
        plain.digest()


def test_a_number_beyond_the_range_is_told_by_its_place() -> None:
    x = weight(40, 64)
    x[33, 5] = 3e30
    plain = PlainSite((40, 64), {"format": "hif8", "scale": "none", "saturate": False}, "w", measured=False)
    for part in x.split(16):
        plain.feed(part)
    with pytest.raises(NonFiniteWeightError, match=r"beyond the format.*at position \[33, 5\]"):
        plain.digest()

"""HiFloat4 under given scale words: against the readable reference, and column by column against all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from format_helpers import examples, finite_groups
from hypothesis import given
from hypothesis import strategies as st

from hfq.formats import hif4, hif4_reference
from hfq.formats.errors import MalformedTensorError, NonFiniteError
from hfq.formats.hif4_frozen import FrozenGroup, codes_of_levels, levels_of_codes

NAMES = ["ref", "amct", "cann", "pto"]
PROFILES = st.sampled_from(NAMES)


def reference_codes(x: list[float], word: int, profile: str) -> list[int]:
    """Steps 8-10 for one group, in plain Python, with scale and flags out of the word's bits."""
    rules = hif4.PROFILES[profile]
    reciprocal = hif4_reference.bf16(1 / hif4_reference.scale_value(word & 0xFF))
    codes = []
    for i, value in enumerate(x):
        increments = (word >> (8 + i // 8) & 1) + (word >> (16 + i // 4) & 1)
        scaled = hif4_reference.fp32(abs(value) / 2**increments * reciprocal)
        if rules.element_in_bf16:
            scaled = hif4_reference.bf16(scaled)
        codes.append((8 if value < 0 else 0) | hif4_reference.quarters_of(scaled, rules))
    return codes


def uint32(words: list[list[int]]) -> torch.Tensor:
    return torch.tensor(words, dtype=torch.int64).to(torch.uint32)


@examples(150)
@given(finite_groups(), finite_groups(), st.integers(0, 2**24 - 1) | st.none(), PROFILES)
def test_words_of_another_tensor(x: torch.Tensor, other: torch.Tensor, flags: int | None, profile: str) -> None:
    word = int(hif4.quantize(other.view(1, 64), profile=profile).scale.item())
    if flags is not None:  # any combination, also such as no rule would choose
        word = (word & 0xFF) | flags << 8
    found = hif4.quantize_under(x.view(1, 64), uint32([[word]]), profile=profile)
    assert hif4.unpack_codes(found.codes)[0].tolist() == reference_codes(x.tolist(), word, profile)
    assert found.scale.tolist() == [[word]]


@examples(60)
@given(finite_groups(), PROFILES, st.booleans(), st.sampled_from([1.0, 0.7, 1.2]))
def test_its_own_words_give_its_own_codes(x: torch.Tensor, profile: str, search: bool, headroom: float) -> None:
    first = hif4.quantize(x.view(1, 64), profile=profile, scale_search=search, headroom=headroom)
    again = hif4.quantize_under(x.view(1, 64), first.scale, profile=profile)
    assert torch.equal(again.codes, first.codes)
    assert torch.equal(again.scale, first.scale)


@pytest.mark.parametrize("profile", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 64), (2, 5, 70), (7, 1), (0, 64), (4, 0), (130,), (40, 20000)])
def test_shapes_and_short_groups(shape: tuple[int, ...], dtype: torch.dtype, profile: str) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    first = hif4.quantize(x, profile=profile)
    again = hif4.quantize_under(x, first.scale, profile=profile)
    again.validate()
    assert torch.equal(again.codes, first.codes)
    assert (again.shape, again.profile) == (first.shape, profile)


def test_strides_of_values_and_words_do_not_matter() -> None:
    x = torch.randn(128, 6, generator=torch.Generator().manual_seed(1)).T
    words = hif4.quantize(x).scale
    strided = words.view(torch.int32).T.contiguous().T.view(torch.uint32)
    assert not strided.is_contiguous()
    assert torch.equal(hif4.quantize_under(x, strided).codes, hif4.quantize(x).codes)


@pytest.mark.parametrize(
    "words",
    [
        torch.zeros(2, 1, dtype=torch.int32),
        torch.zeros(2, 2, dtype=torch.uint32),
        torch.zeros(1, 1, dtype=torch.uint32),
        torch.zeros(2, dtype=torch.uint32),
        uint32([[0xC0], [0xFF]]),
        uint32([[0x123456FF], [0xC0]]),
    ],
)
def test_words_that_are_none_are_refused(words: torch.Tensor) -> None:
    with pytest.raises(MalformedTensorError):
        hif4.quantize_under(torch.ones(2, 64), words)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(value: float) -> None:
    x = torch.ones(2, 130)
    words = hif4.quantize(x).scale
    x[1, 129] = value
    with pytest.raises(NonFiniteError) as caught:
        hif4.quantize_under(x, words)
    assert caught.value.position == (1, 129)


@pytest.mark.parametrize("profile", NAMES)
def test_columns_one_by_one_are_the_group_at_once(profile: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(300, 64, generator=generator) * torch.logspace(-3, 3, 300)[:, None]
    x[0], x[1, ::3], x[2] = 0.0, -0.0, -1e-30
    # Words of other rows: some columns saturate, others vanish.
    words = hif4.quantize(x.roll(20, 0), profile=profile).scale
    group = FrozenGroup(words[:, 0], profile)
    levels = torch.stack([group.round(x[:, i].contiguous(), i) for i in range(64)], dim=1)
    values = torch.stack([group.values(levels[:, i].contiguous(), i) for i in range(64)], dim=1)
    expected = hif4.quantize_under(x, words, profile=profile)
    assert levels.dtype == values.dtype == torch.float32
    assert torch.equal(levels.to(torch.int8), levels_of_codes(expected.codes))
    assert torch.equal(values, expected.dequantize(torch.float32))
    assert levels.abs().max() == 7
    assert not torch.signbit(levels[levels == 0]).any()


@pytest.mark.parametrize("profile", NAMES)
def test_columns_under_flags_that_no_rule_chooses(profile: str) -> None:
    generator = torch.Generator().manual_seed(3)
    e6m2 = torch.arange(255).repeat(2)
    words = (e6m2 | torch.randint(0, 1 << 24, e6m2.shape, generator=generator) << 8).to(torch.uint32)
    # Values of the scale's own size, so that every level occurs under every scale code.
    sizes = torch.tensor([hif4_reference.scale_value(int(code)) for code in e6m2])
    x = torch.randn(len(words), 64, generator=generator) * 1.5 * sizes[:, None]
    group = FrozenGroup(words, profile)
    levels = torch.stack([group.round(x[:, i], i) for i in range(64)], dim=1)
    expected = hif4.quantize_under(x, words[:, None], profile=profile)
    assert torch.equal(levels.to(torch.int8), levels_of_codes(expected.codes))
    assert len(levels.unique()) == 15
    values = torch.stack([group.values(levels[:, i], i) for i in range(64)], dim=1)
    assert torch.equal(values, expected.dequantize(torch.float32))
    codes = [reference_codes(row, int(word), profile) for row, word in zip(x.tolist(), words.tolist(), strict=True)]
    signed = [[-(code & 7) if code >= 8 else code for code in row] for row in codes]
    assert levels.tolist() == signed


def test_a_column_is_not_changed_by_rounding() -> None:
    column = torch.tensor([0.3, -0.7, 5.0])
    FrozenGroup(uint32([[0xC0], [0xC0], [0xC0]])[:, 0]).round(column, 0)
    assert column.tolist() == torch.tensor([0.3, -0.7, 5.0]).tolist()


def test_a_nan_word_makes_no_group() -> None:
    with pytest.raises(MalformedTensorError, match="NaN"):
        FrozenGroup(uint32([[0xC0], [0xFF]])[:, 0])


@pytest.mark.parametrize("columns", [1, 63, 64, 70, 128])
def test_levels_and_codes_are_each_others_inverse(columns: int) -> None:
    levels = (torch.arange(4 * columns) % 15 - 7).to(torch.int8).view(4, columns)
    codes = codes_of_levels(levels)
    width = -(-columns // 64) * 64
    assert (codes.dtype, tuple(codes.shape)) == (torch.uint8, (4, width // 2))
    back = levels_of_codes(codes)
    assert torch.equal(back[:, :columns], levels)
    assert not back[:, columns:].any()
    hif4.Hif4Tensor(codes, torch.zeros(4, width // 64, dtype=torch.uint32), (4, columns), "ref").validate()

    def nibbles(row: list[int]) -> list[int]:
        return [n for byte in row for n in (byte & 15, byte >> 4)]

    expected: list[Any] = [[level if level >= 0 else 8 - level for level in row] for row in levels.tolist()]
    assert [nibbles(row)[:columns] for row in codes.tolist()] == expected


def test_a_zero_level_is_code_0_and_code_8_is_level_0() -> None:
    assert not codes_of_levels(torch.zeros(2, 64, dtype=torch.int8)).any()
    assert not levels_of_codes(torch.full((1, 32), 0x88, dtype=torch.uint8)).any()

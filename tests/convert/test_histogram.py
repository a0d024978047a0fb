"""Histograms: every value in its bin, the same counts however the samples come, percentiles that numpy agrees with."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfq.convert.histogram import BINS, COUNT_LIMIT, NO_OCTAVE, Histogram, magnitude_bits
from hfq.schema.errors import CalibrationRangeError

PERCENTILES = (90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99)


def histogram_of(x: Tensor) -> Histogram:
    made = Histogram.empty(x.shape[1])
    made.add(x)
    return made


def values_of(bits: Tensor) -> Tensor:
    return (bits.int() << 16).view(torch.float32).bfloat16()


def test_every_mantissa_is_in_its_bin() -> None:
    """2**(k/16) <= 1.m < 2**((k+1)/16), decided in whole numbers."""
    mantissas = torch.arange(128)
    counts = histogram_of(values_of((127 << 7) + mantissas)[:, None]).counts[0, -16:].tolist()
    expected = [0] * 16
    for mantissa in range(128, 256):
        expected[max(k for k in range(16) if mantissa**16 >= 2**k * 128**16)] += 1
    assert counts == expected


def test_every_octave_of_bf16() -> None:
    """Normal and subnormal numbers: one channel for each, whose single sample is in its largest octave."""
    bits = torch.arange(1, 0x7F80)
    made = histogram_of(values_of(bits)[None, :])
    exact = [int(np.floor(np.log2(float(value)))) for value in values_of(bits).double()]
    assert made.top.tolist() == exact
    assert bool((made.counts[:, -16:].sum(dim=1) == 1).all())
    assert int(made.counts.sum()) == len(bits)


def test_sign_does_not_matter() -> None:
    x = torch.randn(100, 3).bfloat16()
    assert torch.equal(histogram_of(x).counts, histogram_of(-x).counts)


def test_samples_below_the_window_share_one_bin() -> None:
    made = histogram_of(torch.tensor([[1.0], [2.0**-7], [2.0**-7 * 0.99], [0.0], [2.0**-120]]).bfloat16())
    assert made.counts[0, 0] == 3
    assert made.counts[0, 1] == 1
    assert int(made.samples[0]) == 5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_split_in_any_order_gives_the_same_counts(data: st.DataObject) -> None:
    exponents = data.draw(st.lists(st.integers(-20, 20), min_size=2, max_size=40))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    x = torch.randn(len(exponents), 3, generator=generator) * torch.tensor(exponents).exp2()[:, None]
    x = (x * (torch.rand(x.shape, generator=generator) > 0.2)).bfloat16()
    whole = histogram_of(x)
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=4)))
    pieces = [x[order][a:b] for a, b in itertools.pairwise([0, *cuts, len(x)])]
    added, merged = Histogram.empty(3), Histogram.empty(3)
    for piece in pieces:
        added.add(piece)
        merged.merge(histogram_of(piece))
    for other in (added, merged):
        assert torch.equal(other.counts, whole.counts)
        assert torch.equal(other.top, whole.top)


def test_large_inputs_are_counted_in_pieces() -> None:
    """Inputs larger than the CPU's piece, in width or in rows, count like small ones."""
    x = (torch.randn(700, 600) * torch.rand(600)).bfloat16()
    whole, rows = histogram_of(x), Histogram.empty(600)
    for row in x.split(7):
        rows.add(row)
    assert torch.equal(whole.counts, rows.counts)
    assert int(whole.samples[0]) == 700


def test_merging_leaves_the_other_alone() -> None:
    small, large = histogram_of(torch.ones(5, 2).bfloat16()), histogram_of(torch.full((3, 2), 900.0).bfloat16())
    before = small.counts.clone()
    large.merge(small)
    assert torch.equal(small.counts, before)
    assert small.top.tolist() == [0, 0]


def heavy_tails(generator: np.random.Generator) -> np.ndarray:
    return generator.standard_t(3, size=(20_000, 8))


def spikes(generator: np.random.Generator) -> np.ndarray:
    x = generator.normal(size=(20_000, 8))
    return np.where(generator.random(x.shape) < 0.02, x * 60, x)


def one_value(generator: np.random.Generator) -> np.ndarray:
    return np.full((20_000, 8), 0.7071)


def a_gap(generator: np.random.Generator) -> np.ndarray:
    x = generator.normal(size=(20_000, 8)) * 0.001 + 1
    x[: 20_000 // 20] *= 50
    return x


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "gauss": lambda g: g.normal(size=(20_000, 8)),
    "narrow": lambda g: g.normal(size=(20_000, 8)) * 0.01 + 3,
    "lognormal": lambda g: g.lognormal(0, 1, size=(20_000, 8)),
    "uniform": lambda g: g.random((20_000, 8)),
    "exponential": lambda g: g.exponential(size=(20_000, 8)) * np.exp2(np.arange(8) * 4 - 16),
    "heavy tails": heavy_tails,
    "spikes": spikes,
    "one value": one_value,
    "a gap": a_gap,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_percentiles_agree_with_numpy(name: str) -> None:
    """Within 3 % wherever a hundred samples lie above, also where all samples of a bin are at its edge."""
    x = torch.from_numpy(DISTRIBUTIONS[name](np.random.default_rng(7))).bfloat16()
    made = histogram_of(x)
    samples = x.double().abs().numpy()
    for p in PERCENTILES:
        if len(samples) * (1 - p / 100) < 100:
            continue
        values, below = made.percentile(p)
        assert not bool(below.any())
        error = np.abs(values.numpy() / np.percentile(samples, p, axis=0) - 1)
        assert error.max() <= 0.03, (p, error.max())


@pytest.mark.parametrize("bits", range(127 << 7, 129 << 7, 5))
def test_a_single_value_is_within_three_percent(bits: int) -> None:
    value = values_of(torch.tensor([bits]))
    values, _ = histogram_of(value.expand(300)[:, None]).percentile(99.0)
    assert abs(float(values) / float(value.double()) - 1) <= 0.03


def test_a_percentile_below_the_window_is_not_guessed() -> None:
    x = torch.cat([torch.full((989, 1), 1e-4), torch.full((11, 1), 10.0)]).bfloat16()
    made = histogram_of(x)
    values, below = made.percentile(98.0)
    assert bool(below[0])
    assert bool(values.isnan()[0])
    assert not bool(made.percentile(99.0)[1][0])
    assert made.bottom().tolist() == [2.0**-4]  # seven octaves below the one of 10


def test_a_silent_channel_has_percentile_zero() -> None:
    x = torch.zeros(50, 2).bfloat16()
    x[:, 1] = 1.0
    made = histogram_of(x)
    values, below = made.percentile(99.0)
    assert values[0] == 0
    assert not bool(below.any())
    assert made.top.tolist() == [NO_OCTAVE, 0]
    assert made.counts[0, 0] == 50
    assert made.bottom().tolist() == [0, 2.0**-7]


def test_an_empty_input_changes_nothing() -> None:
    made = histogram_of(torch.ones(2, 1).bfloat16())
    made.add(torch.empty(0, 1).bfloat16())
    assert int(made.samples[0]) == 2


def test_counts_do_not_wrap_around() -> None:
    full = histogram_of(torch.ones(1, 1).bfloat16())
    full.counts[0, full.counts[0].argmax()] = COUNT_LIMIT
    with pytest.raises(CalibrationRangeError):
        full.add(torch.ones(1, 1).bfloat16())
    other = Histogram(full.counts.clone(), full.top.clone())
    with pytest.raises(CalibrationRangeError):
        other.merge(full)


def test_non_finite_samples_stay_inside_the_histogram() -> None:
    """They are refused elsewhere, with a name; here they must not end in an index error."""
    made = histogram_of(torch.tensor([[float("nan"), float("inf"), 1.0]]).bfloat16())
    assert made.counts.shape == (3, BINS)
    assert made.samples.tolist() == [1, 1, 1]


def test_bits_order_magnitudes() -> None:
    x = torch.randn(1000).bfloat16()
    assert torch.equal(magnitude_bits(x).argsort(stable=True), x.abs().argsort(stable=True))

"""Figures of tensors: exact ones against numpy, those from histograms against the samples, and never a guess."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfq.convert.activation_figures import ActivationPool
from hfq.convert.figures import Figures, ValueCounts, nmse
from hfq.convert.group_statistics import GroupStatistics
from hfq.convert.histogram import Histogram

EXACT = ("max", "rms", "mean", "mean_abs", "p99", "p99_9", "p99_99", "kurtosis", "crest")


def sample(rows: int, channels: int, seed: int, *, tails: float = 1.0, gains: float = 1.0) -> Tensor:
    """BF16 [rows, channels]: `tails` bends a Gaussian outwards, `gains` spreads the channels' scales (log-normal)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    x = x.sign() * x.abs() ** tails
    return (x * torch.exp(gains * torch.randn(channels, generator=generator, dtype=torch.float64))).bfloat16()


def by_numpy(x: Tensor) -> dict[str, float]:
    values = x.double().numpy().ravel()
    size = np.abs(values)
    return {
        "max": size.max(),
        "rms": np.sqrt(np.mean(values**2)),
        "mean": values.mean(),
        "mean_abs": size.mean(),
        "p99": np.percentile(size, 99.0),
        "p99_9": np.percentile(size, 99.9),
        "p99_99": np.percentile(size, 99.99),
        "kurtosis": np.mean(values**4) / np.mean(values**2) ** 2,
        "crest": size.max() / np.sqrt(np.mean(values**2)),
    }


def ratio_by_numpy(x: Tensor) -> float:
    channel_max = x.double().abs().numpy().max(axis=0)
    return float(channel_max.max() / np.median(channel_max))


def counted(*tensors: Tensor) -> Figures:
    total = ValueCounts()
    for x in tensors:
        part = ValueCounts()
        part.add(x)
        total.merge(part)
    return total.figures()


def statistics_of(x: Tensor, calls: int = 2) -> GroupStatistics:
    """What a calibration keeps of an input [rows, channels] whose rows came in equal calls."""
    histogram = Histogram.empty(x.shape[1])
    histogram.add(x)
    parts = x.double().reshape(calls, -1, x.shape[1])
    count = torch.full((calls,), parts.shape[1], dtype=torch.int64)
    return GroupStatistics(parts.abs().amax(1).float(), parts.square().sum(1), count, {"all": histogram})


def pooled(*tensors: Tensor) -> Figures:
    total = ActivationPool()
    for x in tensors:
        part = ActivationPool()
        part.add(statistics_of(x))
        total.merge(part)
    return total.figures(None, "no rows")


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (700, 64), (128, 257)])
def test_weight_figures_are_numpys(shape: tuple[int, int]) -> None:
    x = sample(*shape, seed=shape[0], tails=2.0)
    found, expected = counted(x), by_numpy(x)
    assert found.elements == x.numel()
    for name in EXACT:
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-12, abs=1e-15), name
    assert found.channel_ratio == pytest.approx(ratio_by_numpy(x), rel=1e-12)
    assert found.reasons == {}


def test_weight_figures_of_several_tensors_are_those_of_all_their_elements() -> None:
    left, right = sample(40, 16, 1), 30 * sample(10, 64, 2)
    found, expected = counted(left, right), by_numpy(torch.cat([left.flatten(), right.flatten()])[:, None])
    for name in EXACT:
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-12), name
    assert found.channel_ratio == max(ratio_by_numpy(left), ratio_by_numpy(right))


def test_the_largest_bf16_numbers_do_not_overflow() -> None:
    x = torch.full((4, 4), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)
    found = counted(x)
    assert found.max == found.rms == float(x[0, 0])
    assert (found.kurtosis, found.crest) == (1.0, 1.0)
    assert pooled(x).kurtosis == pytest.approx(1.0, rel=0.12)


def test_zeros_have_no_shape() -> None:
    zeros = torch.zeros(8, 4, dtype=torch.bfloat16)
    for found in (counted(zeros), pooled(zeros)):
        assert (found.max, found.rms, found.p99) == (0.0, 0.0, 0.0)
        assert found.kurtosis is found.crest is found.channel_ratio is None
        assert found.reasons["crest"] == "nothing but zeros"
    half = torch.cat([zeros, sample(8, 3, 1)], dim=1)
    for found in (counted(half), pooled(half)):
        assert found.channel_ratio is None
        assert "half of the channels" in found.reasons["channel_ratio"]
        assert found.crest == pytest.approx(by_numpy(half)["crest"])


@pytest.mark.parametrize(("tails", "gains"), [(1.0, 0.0), (1.0, 0.5), (1.5, 0.3)])
def test_activation_figures_come_close_to_the_samples(tails: float, gains: float) -> None:
    x = sample(2000, 96, 3, tails=tails, gains=gains)
    found, expected = pooled(x), by_numpy(x)
    for name in ("max", "rms", "crest"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-9), name
    for name in ("p99", "p99_9", "p99_99"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=0.03), name
    assert found.mean_abs == pytest.approx(expected["mean_abs"], rel=0.05)
    assert found.kurtosis == pytest.approx(expected["kurtosis"], rel=0.12)
    assert found.channel_ratio == pytest.approx(ratio_by_numpy(x))
    assert found.mean is None
    assert found.reasons == {"mean": "no rows"}


def test_activation_figures_of_several_inputs_are_those_of_all_their_elements() -> None:
    left, right = sample(1000, 32, 1, gains=0.3), 8 * sample(500, 96, 2, gains=0.3)
    found, expected = pooled(left, right), by_numpy(torch.cat([left.flatten(), right.flatten()])[:, None])
    assert found.elements == left.numel() + right.numel()
    assert found.rms == pytest.approx(expected["rms"], rel=1e-9)
    for name in ("p99", "p99_9", "p99_99"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=0.03), name
    assert found.channel_ratio == max(ratio_by_numpy(left), ratio_by_numpy(right))


def test_a_percentile_below_the_windows_is_not_guessed() -> None:
    x = sample(400, 50, 5).clamp(-3, 3)
    x[7] = 2000.0
    found = pooled(x)
    # One row in 400 is loud in every channel: 0.25 % of the elements, and everything else is 9 octaves below them.
    assert found.p99_9 == pytest.approx(2000.0, rel=0.03)
    assert found.p99 is None
    assert found.reasons["p99"].startswith("it lies below the histograms' windows")
    assert found.mean_abs is None
    assert "mean_abs" in found.reasons
    assert found.kurtosis == pytest.approx(by_numpy(x)["kurtosis"], rel=0.12)


def test_every_percentile_that_is_given_is_right() -> None:
    given, refused = 0, dict.fromkeys(("p99", "p99_9", "mean_abs", "kurtosis"), 0)
    for seed in range(150):
        rng = np.random.default_rng(seed)
        x = sample(2 * int(rng.integers(20, 200)), int(rng.integers(1, 12)), seed, tails=float(rng.uniform(1, 6)),
                   gains=float(rng.uniform(0, 4)))  # fmt: skip
        # A few loud rows move the channels' windows away from the rest, in some channels more than in others.
        loud = torch.exp2(torch.from_numpy(rng.uniform(-4, 14, x.shape[1])))
        x[: int(rng.integers(0, 3))] *= loud.bfloat16()
        found, expected = pooled(x), by_numpy(x)
        for name in ("p99", "p99_9", "p99_99", "mean_abs", "kurtosis"):
            value = getattr(found, name)
            assert (value is None) == (name in found.reasons), (seed, name)
            if value is not None:
                # Between two samples, each within 2.9 %.
                limit = {"mean_abs": 0.05, "kurtosis": 0.12}.get(name, 0.03)
                assert value == pytest.approx(expected[name], rel=limit), (seed, name)
                given += 1
            elif name in refused:
                refused[name] += 1
    assert given > 300
    assert refused["p99"] > refused["p99_9"] > 0, refused


@pytest.mark.parametrize(
    ("error", "power", "expected"), [(0.0, 0.0, 0.0), (1.0, 4.0, 0.25), (0.0, 3.0, 0.0), (1e-3, 0.0, 1e297)]
)
def test_nmse_is_always_a_number_of_json(error: float, power: float, expected: float) -> None:
    assert nmse(error, power) == pytest.approx(expected)


def test_figures_are_stored_by_name() -> None:
    stored: dict[str, Any] = counted(sample(4, 4, 1)).to_json()
    assert set(stored) == {*EXACT, "elements", "channel_ratio", "reasons"}

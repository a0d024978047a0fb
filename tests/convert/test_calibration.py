"""Reading calibrations: what a recipe's stages get from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipelines import TINY_PROMPTS
from torch import Tensor

import hfq
from hfq.convert.accumulator import Accumulator
from hfq.convert.calibration import GroupStatistics, file_sha256, load_calibration
from hfq.convert.calibration_merge import merge_groups
from hfq.convert.prompts import Prompt
from hfq.schema.errors import CalibrationBaseError, CalibrationRangeError, DigestMismatchError, MissingTensorError

GROUP = "blocks.3.self_attn.qkv"
FLOOR = 1e-3


def statistics_of(*calls: Tensor, rows: int | None = None, flush: bool = False) -> GroupStatistics:
    """Statistics of calls, BF16 [rows, channels] each."""
    made = Accumulator(len(calls), calls[0].shape[1], rows, torch.device("cpu"))
    for index, x in enumerate(calls):
        made.add(x, index, "all")
        if flush:
            made.flush()
    made.flush()
    return made.statistics


def calls_of(rows: int, channels: int = 8, calls: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [(torch.randn(rows, channels, generator=generator) * (call + 1)).bfloat16() for call in range(calls)]


@pytest.mark.parametrize("rows", [1, 7, 4095, 4096, 9000])
def test_exact_statistics(rows: int) -> None:
    """Maximum, sum of squares and count see every row of every call, whether the input waited or not."""
    calls = calls_of(rows)
    found = statistics_of(*calls)
    assert torch.equal(found.max.double(), torch.stack([x.double().abs().amax(dim=0) for x in calls]))
    squares = torch.stack([x.double().square().sum(dim=0) for x in calls])
    assert torch.allclose(found.sum_squares, squares, rtol=1e-12)
    assert found.count.tolist() == [rows] * 3
    assert torch.equal(found.channel_max(), torch.cat(calls).double().abs().amax(dim=0))
    assert torch.allclose(found.channel_rms(), torch.cat(calls).double().square().mean(dim=0).sqrt(), rtol=1e-12)


def test_waiting_changes_nothing() -> None:
    calls = calls_of(50, calls=5)
    together, apart = statistics_of(*calls), statistics_of(*calls, flush=True)
    assert torch.equal(together.max, apart.max)
    assert torch.equal(together.histograms["all"].counts, apart.histograms["all"].counts)


def test_inputs_are_copied() -> None:
    """A model may write over its activations before the statistics are made."""
    x = torch.ones(4, 3).bfloat16()
    made = Accumulator(1, 3, None, torch.device("cpu"))
    made.add(x, 0, "all")
    x.fill_(99)
    made.flush()
    assert made.statistics.channel_max().tolist() == [1, 1, 1]


@pytest.mark.parametrize("rows", [100, 5000])
def test_the_histogram_samples_evenly_spaced_rows(rows: int) -> None:
    """Row i of the sample is row floor(i * rows / sample) of the call."""
    x = torch.arange(1, rows + 1).float().bfloat16()[:, None]
    found = statistics_of(x, rows=10).histograms["all"]
    expected = statistics_of(x[[i * rows // 10 for i in range(10)]]).histograms["all"]
    assert torch.equal(found.counts, expected.counts)


def test_percentiles_of_a_group() -> None:
    calls = calls_of(9000)
    found = statistics_of(*calls)
    every = torch.cat(calls).double().abs().numpy()
    for p in (90.0, 99.0, 99.5):
        error = np.abs(found.channel_percentile(p, FLOOR, "here").values.numpy() / np.percentile(every, p, axis=0) - 1)
        assert error.max() <= 0.03
    assert torch.equal(found.channel_percentile(100.0, FLOOR, "here").values, found.channel_max())


def test_no_percentile_is_above_the_maximum() -> None:
    found = statistics_of(torch.full((10, 1), 1.0).bfloat16())
    assert float(found.channel_percentile(99.9, FLOOR, "here").values) == 1.0


@pytest.mark.parametrize(("loudest", "floored"), [(80.0, False), (0.1, True), (0.13, True), (0.25, False)])
def test_a_sparse_channel_takes_the_floor_or_its_maximum(loudest: float, floored: bool) -> None:
    """One row in two thousand is loud, the others as good as silent: the octaves below the loud one end above the floor
    or not. A channel of zeros is no sparse one, nor is one whose percentile the samples do tell."""
    x = torch.full((2000, 4), 0.5)
    x[:, 1] = 1e-6
    x[700, 1] = loudest
    x[:, 2] = 0.0
    found = statistics_of(x.bfloat16()).channel_percentile(99.9, FLOOR, "blocks.0.ffn.2")
    assert found.floored.tolist() == [False, floored, False, False]
    assert found.maxed.tolist() == [False, not floored, False, False]
    expected = FLOOR if floored else float(torch.tensor(loudest).bfloat16())
    assert found.values[1:3].tolist() == [expected, FLOOR]
    assert found.values[[0, 3]].tolist() == pytest.approx([0.5, 0.5], rel=0.03)


def test_a_channel_that_no_sampled_row_sees() -> None:
    """The maximum sees every row, the histogram a sample: that the percentile is 0 rests on luck, and is counted."""
    x = torch.zeros(4000, 2)
    x[1, 0] = 5.0
    found = statistics_of(x.bfloat16(), rows=10)
    assert found.channel_max().tolist() == [5.0, 0.0]
    told = found.channel_percentile(99.9, FLOOR, "here")
    assert told.values.tolist() == [FLOOR, FLOOR]
    assert told.floored.tolist() == [True, False]
    assert not bool(told.maxed.any())


def test_merged_histograms_tell_the_same_percentile() -> None:
    """A channel that is loud in one part alone: the window of the other part moves up when they are joined."""
    first, second = torch.full((1500, 1), 1e-4).bfloat16(), torch.full((1500, 1), 1e-4).bfloat16()
    second[3] = 40.0
    together = statistics_of(torch.cat([first, second])).channel_percentile(99.9, FLOOR, "here")
    parts = statistics_of(first)
    other = statistics_of(second)
    joined = merge_groups([parts, other], 0).channel_percentile(99.9, FLOOR, "here")
    assert joined.values.tolist() == together.values.tolist() == [40.0]
    assert joined.maxed.tolist() == [True]


def test_not_a_percentile() -> None:
    with pytest.raises(CalibrationRangeError):
        statistics_of(torch.ones(2, 2).bfloat16()).channel_percentile(101.0, FLOOR, "here")


def test_what_a_calibration_says(tiny_calibration: Path) -> None:
    with hfq.load_calibration(tiny_calibration) as found:
        assert found.roles == ["high_noise", "low_noise"]
        assert found.prompt_hashes == sorted(Prompt(text).sha256 for text in TINY_PROMPTS)
        groups = found.groups("high_noise")
        assert sum(group.startswith("blocks.3.") for group in groups) == 7
        assert groups == found.groups("low_noise")
        plan = found.plan("low_noise", GROUP)
        assert plan.calls == len(found.document["schedule"]["low_noise"]["calls"])
        assert found.read("low_noise", GROUP).channels == plan.channels
        found.verify_bytes()


def test_another_model_is_refused(tiny_calibration: Path) -> None:
    with load_calibration(tiny_calibration) as found:
        name = "blocks.0.ffn.0.weight"
        right = found.document["base"]["experts"]["high_noise"]["tensors"][name]
        found.check_tensor("high_noise", name, right)
        found.check_group("high_noise", GROUP, found.plan("high_noise", GROUP).channels)
        for refused in (
            lambda: found.check_tensor("high_noise", name, "0" * 64),
            lambda: found.check_tensor("single", name, right),
            lambda: found.check_tensor("high_noise", "blocks.99.ffn.0.weight", right),
            lambda: found.check_group("high_noise", GROUP, 999),
            lambda: found.check_group("single", GROUP, 128),
        ):
            with pytest.raises(CalibrationBaseError):
                refused()
        with pytest.raises(MissingTensorError):
            found.read("high_noise", "blocks.99.ffn.2")


def test_a_flipped_bit_is_found(tiny_calibration: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cal"
    shutil.copytree(tiny_calibration, copy)
    with open(copy / "statistics.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with load_calibration(copy) as found, pytest.raises(DigestMismatchError):
        found.verify_bytes()
    assert file_sha256(tiny_calibration / "statistics.safetensors") != file_sha256(copy / "statistics.safetensors")

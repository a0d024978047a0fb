"""The simulated MXFP4 arm is what its docstring says; otherwise the table compares HiFloat4 with something else."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from mxfp4_arm import CANDIDATES, Mxfp4Linear, Mxfp4Rounder, apply_mxfp4, qdq, quantize_site, search_bin
from result_arms import Mxfp4Options
from torch import Tensor, nn

import hfq
from hfq.convert.calibration import GroupStatistics
from hfq.convert.gptq import hessian, inverse_factor, quantize_columns
from hfq.convert.ops import LowRankOp, MaskOp
from hfq.convert.tiny.pipeline import load_tiny_pipeline
from hfq.formats import mxfp4

Floats = npt.NDArray[np.float32]


def wide(rows: int, columns: int, seed: int) -> Tensor:
    """Groups of very different sizes, a zero group among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.exp2(torch.randint(-9, 10, (rows, 1), generator=generator).float())
    x[0, :32] = 0
    return x


def slowly(x: Floats, clip: float, offset: int) -> Floats:
    """One group [32]: exact rational scale, E2M1 rounding by ml_dtypes."""
    amax = Fraction(float(np.float32(np.abs(x).max()) * np.float32(clip)))
    if amax == 0:
        return x * 0
    exponent = -200
    while amax > 6 * Fraction(2) ** exponent:
        exponent += 1
    scale = np.float32(2.0 ** (exponent + offset))
    scaled = np.clip(x / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn)
    return scaled.astype(np.float32) * scale


@pytest.mark.parametrize(("ceil", "rule"), [(True, "ceil"), (False, "floor")])
def test_without_clip_it_is_the_format(ceil: bool, rule: str) -> None:
    x = wide(200, 128, 1)
    assert torch.equal(qdq(x, ceil=ceil), mxfp4.qdq(x, scale_rule=rule))  # type: ignore[arg-type]


@pytest.mark.parametrize(("clip", "offset"), CANDIDATES)
def test_every_candidate_against_exact_arithmetic(clip: float, offset: int) -> None:
    x = wide(12, 64, 2)
    x[1, 0] = x[1].abs().max() * 3  # a spike that a clip cuts off
    found = qdq(x, clip=clip, offset=offset).numpy()
    expected = np.stack([slowly(group, clip, offset) for group in x.numpy().reshape(-1, 32)]).reshape(x.shape)
    np.testing.assert_array_equal(found, expected)


def test_candidates_are_those_of_the_released_search() -> None:
    assert set(CANDIDATES) == {(clip, offset) for clip in (0.6, 0.7, 0.8, 0.9, 1.0) for offset in (-1, 0, 1)}
    assert len(CANDIDATES) == 15


def correlated(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    gains = torch.exp(torch.randn(columns, generator=generator))
    return (torch.randn(rows, columns, generator=generator) @ mixing) * gains


def test_gptq_rounds_to_the_scales_of_the_uncompensated_weight_and_lowers_the_output_error() -> None:
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(4)) * 0.02
    x = correlated(400, 96, 5)
    rounder = Mxfp4Rounder(weight)
    quantize_columns(weight, inverse_factor(hessian(x), 0.01, "test"), rounder)
    found = rounder.values.T
    amax = weight.reshape(48, 3, 32).abs().amax(dim=-1, keepdim=True)
    levels = (found.reshape(48, 3, 32) / torch.exp2(torch.floor(torch.log2(amax)) - 2)).abs()
    assert set(levels.unique().tolist()) <= {0, 0.5, 1, 1.5, 2, 3, 4, 6}

    def error(quantized: Tensor) -> float:
        return float((x.double() @ (quantized - weight).double().T).square().sum())

    assert error(found) < 0.8 * error(mxfp4.qdq(weight, scale_rule="floor"))


def statistics(rows: Tensor) -> GroupStatistics:
    squares, count = rows.double().square().sum(dim=0, keepdim=True), torch.tensor([len(rows)])
    thirds = dict(enumerate(rows.to(torch.bfloat16).chunk(3)))
    return GroupStatistics(rows.abs().amax(dim=0, keepdim=True), squares, count, {}, thirds)


def test_the_released_recipe_in_one_linear() -> None:
    """Mask, branch and GPTQ are all there, and each linear's output is what numpy makes of its parts."""
    source = nn.Linear(64, 96)
    rows = correlated(300, 64, 6).to(torch.bfloat16).float()
    base = source.weight.detach().to(torch.bfloat16)
    options = Mxfp4Options(smooth=True, rank=4, damp=0.01, search=False)
    operand, ops = quantize_site(base, statistics(rows), options, "test")
    assert [type(op) for op in ops] == [MaskOp, LowRankOp]
    mask_op, branch = ops
    assert isinstance(mask_op, MaskOp)
    assert isinstance(branch, LowRankOp)
    mask = np.sqrt(base.abs().amax(dim=0).double().numpy()) / np.sqrt(rows.abs().amax(dim=0).double().numpy())
    np.testing.assert_allclose(mask_op.mask.numpy(), mask, rtol=1e-6)
    linear = Mxfp4Linear(source, operand, ops, site="test")
    found = linear(rows).detach().double().numpy()
    masked = rows * mask_op.mask
    low = branch.down.double().numpy().T @ branch.up.double().numpy().T
    expected = mxfp4.qdq(masked, scale_rule="ceil").double().numpy() @ operand.double().numpy().T
    expected += masked.double().numpy() @ low + source.bias.detach().double().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    exact = rows.double().numpy() @ base.double().numpy().T + source.bias.detach().double().numpy()
    plain = Mxfp4Linear(source, *quantize_site(base, None, Mxfp4Options(False, 0, None, False), "test"), site="test")
    error = np.square(found - exact).sum()
    assert error < 0.7 * np.square(plain(rows).detach().double().numpy() - exact).sum()


def test_the_search_finds_the_best_candidate_and_takes_the_plain_one_when_all_are_equal() -> None:
    operand = qdq(torch.randn(64, 64, generator=torch.Generator().manual_seed(7)), ceil=False)
    x = correlated(100, 64, 8)
    errors = {}
    for clip, offset in CANDIDATES:
        quantized = np.stack([slowly(group, clip, offset) for group in x.numpy().reshape(-1, 32)]).reshape(x.shape)
        difference = (quantized.astype(np.float64) - x.numpy()) @ operand.numpy().astype(np.float64).T
        errors[clip, offset] = np.square(difference).sum()
    assert search_bin(operand, x) == min(errors, key=lambda candidate: errors[candidate])
    assert search_bin(operand, torch.zeros(8, 64)) == (1.0, 0)


def test_it_replaces_every_linear_of_the_blocks_and_the_searched_ones_follow_the_timestep(
    tiny_weights: Path, tiny_calibration: Path
) -> None:
    pipeline = load_tiny_pipeline()
    options = Mxfp4Options(smooth=False, rank=0, damp=None, search=True)
    with hfq.open_checkpoint(tiny_weights) as checkpoint, hfq.load_calibration(tiny_calibration) as calibration:
        assert apply_mxfp4(pipeline, checkpoint, calibration, options) == 4.25
        early, _ = calibration.document["schedule"]["high_noise"]["edges"]
    for module in (pipeline.transformer, pipeline.transformer_2):
        replaced = [child for child in module.modules() if isinstance(child, Mxfp4Linear)]
        assert len(replaced) == 80
        assert not any(isinstance(child, nn.Linear) for child in module.blocks.modules())
        assert {len(child.clips) for child in replaced if "cross_attn" in child.site} == {1}
        assert {len(child.clips) for child in replaced if "cross_attn" not in child.site} == {3}
    clock = next(child.clock for child in pipeline.transformer.modules() if getattr(child, "clock", None) is not None)
    noise, text = torch.zeros(1, 3, 9, 24, 24, dtype=torch.bfloat16), torch.zeros(1, 4, 64, dtype=torch.bfloat16)
    pipeline.transformer(noise, torch.tensor([early + 1.0]), text, return_dict=False)
    assert {index for _, index in clock.consulted} == {0}
    assert len(clock.consulted) == 48  # six searched linears in each of eight blocks

"""The channel mask: compared with numpy written out independently, and exact before anything is quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import inputs_of
from test_recipe import recipe

import hfq
from hfq.convert.calibration import load_calibration
from hfq.convert.ops import MaskOp
from hfq.convert.recipe import load_recipe
from hfq.convert.stages import STAGES, StageInput

SITE = "blocks.1.self_attn.k"


def run_stage(base: Path, calibration: Path, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mask, weight, inputs) of `SITE`, float64, from the stage itself."""
    loaded = load_recipe(recipe(stage=[{"kind": "smooth", **options}]))
    with hfq.open_checkpoint(base) as checkpoint:
        expert = checkpoint.experts["low_noise"]
        site = next(site for site in expert.sites if site.name == SITE)
        weight = expert.read_bf16(f"{SITE}.weight")
    opened = load_calibration(calibration)
    statistics = opened.read("low_noise", site.input_group)
    opened.close()
    given = StageInput(site, weight, weight, [], None, statistics, None, loaded, loaded.stages[0], SITE)
    result = STAGES["smooth"](given)
    assert result.op == {"op": "mask", "tensor": "mask"}
    mask = result.state["mask"]
    assert mask.dtype == torch.float32
    x = inputs_of("low_noise", site.input_group, site.in_features).reshape(-1, site.in_features)
    return mask.double().numpy(), weight.double().numpy(), x.double().numpy()


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("statistic", ["max", "rms"])
def test_exact_statistics(small_base: Path, small_calibration: Path, statistic: str, alpha: float) -> None:
    mask, weight, x = run_stage(small_base, small_calibration, statistic=statistic, alpha=alpha)
    loudness = np.abs(x).max(0) if statistic == "max" else np.sqrt(np.square(x).mean(0))
    expected = np.abs(weight).max(0) ** alpha / loudness ** (1 - alpha)
    np.testing.assert_allclose(mask, expected, rtol=2**-23)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_are_those_of_the_samples(small_base: Path, small_calibration: Path, percentile: float) -> None:
    mask, weight, x = run_stage(
        small_base, small_calibration, statistic="percentile", percentile=percentile, alpha=0.25
    )
    loudness = np.percentile(np.abs(x), percentile, axis=0)
    expected = np.abs(weight).max(0) ** 0.25 / loudness**0.75
    # A histogram bin is 4.4 % wide, an estimate inside it off by 2.9 % at most.
    np.testing.assert_allclose(mask, expected, rtol=0.03)


def test_percentile_100_is_the_maximum(small_base: Path, small_calibration: Path) -> None:
    largest, _, _ = run_stage(small_base, small_calibration, statistic="max")
    hundred, _, _ = run_stage(small_base, small_calibration, statistic="percentile", percentile=100)
    assert np.array_equal(largest, hundred)


def test_floors_and_clamp(small_base: Path, small_calibration: Path) -> None:
    mask, weight, x = run_stage(
        small_base, small_calibration, statistic="max", activation_floor=20.0, weight_floor=0.06, mask_max=0.06
    )
    expected = np.sqrt(np.maximum(np.abs(weight).max(0), 0.06)) / np.sqrt(np.maximum(np.abs(x).max(0), 20.0))
    assert (expected > 0.06).any()
    assert (expected < 0.06).any()
    np.testing.assert_allclose(mask, np.minimum(expected, 0.06), rtol=2**-23)


def test_a_percentile_below_the_window_is_the_floor_or_the_maximum(small_base: Path, small_calibration: Path) -> None:
    """Of normally distributed inputs nothing says where the lowest hundredth of a percent lies."""
    options = {"statistic": "percentile", "percentile": 0.01}
    largest, weight, _ = run_stage(small_base, small_calibration, statistic="max")
    assert np.array_equal(run_stage(small_base, small_calibration, **options)[0], largest)
    floored, _, _ = run_stage(small_base, small_calibration, activation_floor=0.7, **options)
    expected = np.sqrt(np.abs(weight).max(0) / 0.7)
    np.testing.assert_allclose(floored, expected, rtol=2**-23)


def test_before_quantization_nothing_changes() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(64, 128, generator=generator).bfloat16()
    weight = torch.randn(32, 128, generator=generator).bfloat16()
    powers = MaskOp(torch.exp2(torch.randint(-6, 6, (128,), generator=generator).float()))
    exact = x.double() @ weight.double().T
    masked = powers.on_activation(x).double() @ powers.on_weight(weight).double().T
    assert torch.equal(masked, exact)  # powers of two round nothing: the convention itself is exact
    mask = MaskOp(torch.rand(128, generator=generator) + 0.1)
    masked = mask.on_activation(x).double() @ mask.on_weight(weight).double().T
    scale = x.double().abs() @ weight.double().abs().T
    assert float(((masked - exact).abs() / scale).max()) < 2**-22  # two roundings to fp32
    assert torch.equal(mask.on_effective(weight), weight.float() * mask.mask)


def test_the_mask_pays_off_where_channels_are_loud(small_base: Path, small_calibration: Path, tmp_path: Path) -> None:
    import json

    errors = {}
    with hfq.open_checkpoint(small_base) as checkpoint:
        for name, stage in (("plain", []), ("smooth", [{"kind": "smooth", "statistic": "max"}])):
            rules = [{"match": "blocks.1.ffn.2", "to": "quantize"}, {"match": "*", "to": "keep"}]
            made = recipe(route=rules, stage=stage)
            with hfq.quantize(checkpoint, made, small_calibration, out=tmp_path / name):
                report = json.loads((tmp_path / name / "report.json").read_bytes())
            errors[name] = report["experts"]["high_noise"]
    assert 0 < errors["smooth"]["output_nmse"] < errors["plain"]["output_nmse"] < 0.05

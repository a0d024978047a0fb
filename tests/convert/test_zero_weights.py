"""A quantized weight of zeros has no error that could be compared with it: the report says so, and warns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made import write_base, write_calibration
from torch import Tensor

import hfq
from hfq.cli import run
from hfq.convert.report_html import render_report

ZERO = ("blocks.0.ffn.0", "blocks.1.self_attn.q")


def blank(name: str, values: Tensor) -> Tensor:
    return values * 0 if name in [f"{site}.weight" for site in ZERO] else values


@pytest.mark.parametrize("recipe", ["rtn-hif4", "rtn-hif8", "tail-aware-hif4"])
def test_zero_weights_are_warned_of_and_have_no_nmse(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = write_base(tmp_path / "base", change=blank), tmp_path / "delta"
    given = []
    if recipe.startswith("tail"):
        with hfq.open_checkpoint(base) as checkpoint:
            given = ["--calibration", str(write_calibration(tmp_path / "cal", checkpoint))]
    assert run(["convert", base, "--recipe", recipe, *given, "-o", str(out)]) == 0
    said = capsys.readouterr().err
    assert "warning: high_noise: 2 quantized weights are zero throughout (blocks.0.ffn.0, blocks.1.self_attn.q)" in said
    report = json.loads((out / "report.json").read_bytes())
    assert sum("zero throughout" in warning for warning in report["warnings"]) == 2  # one line an expert
    sites = report["experts"]["low_noise"]["sites"]
    assert [site for site, entry in sites.items() if entry["weight_nmse"] is None] == sorted(
        ZERO, key=list(sites).index
    )
    assert all(sites[site]["weight_sqnr_db"] is None for site in ZERO)
    assert report["experts"]["low_noise"]["weight_nmse"] > 0
    if recipe.startswith("rtn"):
        assert report["experts"]["low_noise"]["output_nmse"] is None
    with hfq.load_delta(out) as delta:
        assert "zero throughout" in render_report(delta)
    with hfq.load_delta(out) as delta, hfq.open_checkpoint(base) as checkpoint:
        assert hfq.verify(delta, checkpoint).ok


def test_a_model_of_zeros_alone_can_be_reported(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", change=lambda name, values: values * 0)
    with hfq.open_checkpoint(base) as checkpoint:
        hfq.quantize(checkpoint, "rtn-hif4", out=tmp_path / "delta").close()
    report = json.loads((tmp_path / "delta" / "report.json").read_bytes())
    assert report["experts"]["high_noise"]["weight_nmse"] is None
    assert report["experts"]["high_noise"]["blocks"]["blocks.0"]["weight_nmse"] is None
    assert "20 quantized weights are zero throughout" in report["warnings"][0]
    with hfq.load_delta(tmp_path / "delta") as delta:
        assert "all zero" in render_report(delta)


def test_sound_weights_are_not_warned_of(small_delta: Path) -> None:
    report = json.loads((small_delta / "report.json").read_bytes())
    assert report["warnings"] == []
    assert all(entry["weight_nmse"] > 0 for entry in report["experts"]["high_noise"]["sites"].values())

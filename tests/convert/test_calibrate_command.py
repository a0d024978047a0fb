"""`hfq calibrate` from the command line, on the tiny Wan."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import KINDS, TINY_PROMPTS, size_of, write_pipeline
from tiny_runs import STEPS, bytes_of, calibrated

from hfq.cli import run
from hfq.convert import calibration_timing
from hfq.convert.calibrate import CalibrationOptions, estimate, plan_run
from hfq.convert.calibration import load_calibration
from hfq.convert.calibration_estimate import forward_flops
from hfq.convert.pipeline_plan import plan_model
from hfq.convert.pipelines import LoadedModel
from hfq.convert.prompts import Prompt


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(TINY_PROMPTS[0] + "\n")
    return path


def test_the_command(
    tiny_model: LoadedModel, tiny_weights: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cal"
    arguments = ["calibrate", str(tiny_weights), "--prompts", str(prompts), "--steps", str(STEPS), "--parts"]
    assert run([*arguments, "-o", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    with load_calibration(out) as found:
        assert document["id"] == found.id
    assert document["seconds"] > document["statistics_seconds"] > 0
    assert document["overhead"] > 0
    for line in ("memory", "disk", "8 forwards of 324 tokens"):
        assert line in captured.err
    assert run([*arguments, "-o", str(out)]) == 2
    assert "output-exists" in capsys.readouterr().err
    calibrated(tiny_model, tmp_path / "same", parts=True).close()
    assert bytes_of(out) == bytes_of(tmp_path / "same")


def test_the_command_prints_its_cost(
    tiny_weights: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", str(tiny_weights), "--prompts", str(prompts), "--steps", "2", "--boundary", "0.9"]
    assert run([*arguments, "-o", str(tmp_path / "cal")]) == 0
    assert "% over plain generation" in capsys.readouterr().out


def test_dry_run_reads_no_weight(
    tiny_weights: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hfq.convert.safetensors_file.SafetensorsFile.read", None)
    arguments = ["calibrate", str(tiny_weights), "--prompts", str(prompts), "--dry-run", "--keep-inputs", "100"]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["forwards"] == 80
    assert document["tokens"] == 324
    assert document["seconds"] > 0
    assert document["disk_bytes"] == 2 * document["statistics_bytes"]
    assert run(arguments) == 0
    assert re.search(
        r"time        about .*; measured: \d+ forwards of all blocks with random weights over 324 of 324 tokens on cpu",
        capsys.readouterr().out,
    )
    assert document["seconds_basis"].endswith(
        "forwards of all blocks with random weights over 324 of 324 tokens on cpu"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.txt"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        ([], 2, "usage"),
        (["--prompts", "missing.txt", "-o", "out"], 2, "missing-path"),
        (["--rows", "none", "-o", "out"], 2, "usage"),
        (["--by", "days", "-o", "out"], 2, "usage"),
        (["--boundary", "2", "-o", "out"], 2, "usage"),
        (["--device", "quantum", "-o", "out"], 2, "usage"),
        (["--offload", "model", "-o", "out"], 2, "usage"),
        (["--pipeline", ".", "-o", "out"], 2, "missing-pipeline"),
        (["--role", "high_noise", "-o", "out"], 2, "usage"),
    ],
)
def test_bad_arguments(
    arguments: list[str], exit_code: int, code: str, tiny_weights: Path, prompts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["calibrate", str(tiny_weights), "--prompts", str(prompts), *arguments, "--json"]) == exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_the_time_is_that_of_the_whole_run(
    tiny_weights: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model that runs whole: every forward with its statistics, the first one's start, and the writing."""
    arguments = ["calibrate", str(tiny_weights), "--prompts", str(prompts), "--dry-run", "--json"]
    monkeypatch.setattr(calibration_timing, "_measure", lambda *_: calibration_timing._Measured(9, 5.0, 3.0, 1.0))
    monkeypatch.setattr(calibration_timing, "_hash_rate", lambda: 1e15)
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == pytest.approx(5 + 80 * 4)


def test_of_a_large_model_one_block_is_measured_and_scaled(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By operations, in which attention counts by the square of the tokens; statistics by the numbers they look at."""
    plan = plan_model(tiny_weights)
    settings, options = plan.defaults, CalibrationOptions()
    prompts = [Prompt(TINY_PROMPTS[0])]
    expected = estimate(plan, settings, plan_run(plan, prompts, settings, options)[1], options, 1)
    seen: list[tuple[int, int]] = []

    def measured(architecture: Any, grid: tuple[int, ...], *_: Any) -> Any:
        seen.append((architecture.num_layers, math.prod(grid)))
        flops = forward_flops(architecture, math.prod(grid))
        return calibration_timing._Measured(9, 0.0, flops * 1e-9, 0.0)

    monkeypatch.setattr(calibration_timing, "_measure", measured)
    monkeypatch.setattr(calibration_timing, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(calibration_timing, "_matmul_rate", lambda *_: 1.0)  # too slow for all the tokens
    took = calibration_timing.measure_run_time(plan, settings, options, expected, device="cpu", dtype=torch.bfloat16)
    assert took.forward_s == pytest.approx(expected.forward_flops * 1e-9)
    ((layers, tokens),) = seen
    assert layers == 1
    assert tokens < 324
    assert f"one of 8 blocks with random weights over {tokens} of 324 tokens on cpu, scaled" in took.basis


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_can_be_measured(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_model(write_pipeline(tmp_path / kind, kind))
    settings = plan.defaults.changed(steps=8, **size_of(kind))
    monkeypatch.setattr(calibration_timing, "_MEASURE_S", 0.0)
    found = calibration_timing._measure(
        plan.architecture, calibration_timing._grid(plan, settings), settings, CalibrationOptions(keep_inputs=2), "cpu",
        torch.bfloat16,
    )  # fmt: skip
    assert found.forwards == 1
    assert found.forward_s > 0
    assert found.statistics_s > 0

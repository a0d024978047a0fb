"""`hfq calibrate` from the command line, on the tiny Wan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_pipelines import TINY_PROMPTS
from tiny_runs import STEPS, bytes_of, calibrated

from hfq.cli import run
from hfq.convert.calibration import load_calibration
from hfq.convert.pipelines import LoadedModel


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
    assert "time        at least" in capsys.readouterr().out
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

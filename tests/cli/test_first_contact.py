"""What somebody meets in the first hour: help, one-line errors, and copies of a model without its config."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hfq.cli import run

PROMPT = "a red circle moving left over a black background"


def test_the_bare_command_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Usage: hfq")
    assert captured.err == ""


def test_a_copy_without_config_runs_with_the_pipelines_heads(tiny_weights: Path, tmp_path: Path) -> None:
    """The number of attention heads is in no tensor; a copy that guessed it would make another clip."""
    places = {}
    for role in ("high_noise", "low_noise"):
        places[role] = tmp_path / f"{role}.safetensors"
        shutil.copy(tiny_weights / f"{role}_model" / "diffusion_pytorch_model.safetensors", places[role])
    model = ",".join(f"{role}={place}" for role, place in places.items())
    common = ["--prompt", PROMPT, "--steps", "3", "--frames", "5"]
    assert run(["generate", "--base", str(tiny_weights), *common, "-o", str(tmp_path / "a.gif")]) == 0
    copied = ["generate", "--base", model, "--pipeline", str(tiny_weights), *common]
    assert run([*copied, "-o", str(tmp_path / "b.gif")]) == 0
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_a_model_that_gives_nan_gives_no_clip(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_weights, broken)
    path = broken / "low_noise_model" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["head.head.bias"] = torch.full_like(tensors["head.head.bias"], float("nan"))
    save_file(tensors, path)
    arguments = ["generate", "--base", str(broken), "--prompt", PROMPT, "--steps", "3", "--frames", "5"]
    for more, code in (([], "[non-finite]"), (["--allow-non-finite"], "[non-finite-activation]")):
        assert run([*arguments, *more, "-o", str(tmp_path / "clip.gif")]) == 1
        assert code in capsys.readouterr().err
    assert not (tmp_path / "clip.gif").exists()


def test_exchanged_experts_are_named_and_the_document_has_the_error(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = tmp_path / "delta"
    assert run(["convert", str(tiny_weights), "--recipe", "rtn-hif8", "-o", str(delta)]) == 0
    swapped = f"high_noise={tiny_weights / 'low_noise_model'},low_noise={tiny_weights / 'high_noise_model'}"
    capsys.readouterr()
    assert run(["verify", str(delta), "--base", swapped, "--json"]) == 3
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["error"]["code"] == "wrong-role"
    assert document["mismatch_count"] > len(document["mismatches"]) == 20
    assert len(captured.err.strip().splitlines()) == 1
    assert "exchanged" in captured.err


def test_a_calibration_says_that_the_experts_are_exchanged(
    tiny_weights: Path, tiny_calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = f"high_noise={tiny_weights / 'low_noise_model'},low_noise={tiny_weights / 'high_noise_model'}"
    arguments = ["convert", swapped, "--recipe", "tail-aware-hif4", "--calibration", str(tiny_calibration)]
    assert run([*arguments, "-o", str(tmp_path / "delta")]) == 3
    assert "[wrong-role]" in capsys.readouterr().err
    assert not (tmp_path / "delta").exists()
    assert not (tmp_path / "delta.partial").exists()


def test_help_does_not_wait_for_torch() -> None:
    # Two seconds of imports before a page of text is what makes a tool feel slow.
    program = "import sys; from hfq.cli import run; run(['--help']); print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "hfq [OPTIONS]" in done.stdout
    assert done.stderr.strip() == "False"


@pytest.mark.parametrize(
    ("allocate", "asked"),
    [
        (lambda: torch.empty(1 << 50), ", and asked for 4503599627370496 bytes"),
        (lambda: np.empty(1 << 50), ", and asked for 8.00 PiB"),
        (lambda: bytearray(1 << 60), ""),
    ],
)
def test_memory_that_is_not_there_is_no_internal_error(
    allocate: Callable[[], object],
    asked: str,
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hfq.convert.convert.plain_site", lambda *_: allocate())
    arguments = ["convert", str(tiny_weights), "--recipe", "rtn-hif4", "-o", str(tmp_path / "delta")]
    assert run([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "out-of-memory"
    assert captured.err.rstrip().splitlines()[-1].startswith(f"hfq: this process gets no more memory{asked}; close")
    monkeypatch.undo()
    assert run([*arguments, "--resume"]) == 0

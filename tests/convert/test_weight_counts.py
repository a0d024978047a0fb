"""How much of a model a recipe quantizes, what its weights take then, and a model whose experts are one."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import tiny, write_checkpoint
from test_calibration_use import report_of
from test_recipe import recipe

import hfq
from hfq.cli import run
from hfq.convert.delta import Delta
from hfq.convert.delta_inspect import describe_delta
from hfq.convert.dry_run import dry_run
from hfq.convert.identity import SAME_WEIGHTS
from hfq.convert.pipelines import load_model
from hfq.convert.progress import Silent
from hfq.convert.report_html import render_report


@pytest.mark.parametrize(
    ("layers", "route", "kept"),
    [
        (6, None, "keeps 5 of 6 blocks as they are and quantizes 17 %"),
        (9, None, "keeps 5 of 9 blocks as they are and quantizes 44 %"),
        (10, None, None),
        (3, [{"match": ["*.ffn.*", "*.self_attn.*"], "to": "keep"}, {"match": ["blocks.*"], "to": "quantize"}],
         "keeps 0 of 3 blocks as they are and quantizes 33 %"),
    ],
)  # fmt: skip
def test_a_recipe_that_keeps_most_of_a_model_says_so(
    layers: int, route: list[dict[str, Any]] | None, kept: str | None, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "base", tiny(num_layers=layers), "original-2.2")
    rest = [{"match": ["*"], "to": "keep"}]
    chosen = "boundary-hif8" if route is None else recipe(route=[*route, *rest])
    with hfq.open_checkpoint(model) as checkpoint:
        planned = dry_run(checkpoint, chosen)
        with hfq.quantize(checkpoint, chosen, out=tmp_path / "delta") as delta:
            found = describe_delta(delta)
    assert report_of(tmp_path / "delta")["warnings"] == planned["warnings"]
    if kept is None:
        assert planned["warnings"] == []
    else:
        assert [role for role in ("high_noise", "low_noise") if any(role in text for text in planned["warnings"])] == [
            "high_noise", "low_noise",
        ]  # fmt: skip
        assert all(kept in text for text in planned["warnings"])
    # Five blocks of six in 16 bits are not 8.2 bits per weight.
    assert found["model_bits_per_weight"] == pytest.approx(bits_by_hand(delta), rel=1e-12)
    assert found["restored_bits_per_weight"] < 10 < found["model_bits_per_weight"]
    assert report_of(tmp_path / "delta")["bits_per_weight"] == {
        "quantized": found["restored_bits_per_weight"], "model": found["model_bits_per_weight"],
    }  # fmt: skip


def bits_by_hand(delta: Delta) -> float:
    bits = elements = 0
    for role in delta.roles:
        quantized = set(delta.quantized(role))
        for name, entry in delta.base_tensors(role).items():
            size = torch.Size(entry["shape"]).numel()
            elements += size
            site = name.removesuffix(".weight")
            if name.endswith(".weight") and site in quantized:
                hif8 = delta.recipe.weight["format"] == "hif8"
                bits += 8 * size + 32 * entry["shape"][0] if hif8 else 288 * size // 64
            else:
                bits += 16 * size
    return bits / elements


def test_both_bits_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path / "base", tiny(num_layers=6), "original-2.2")
    assert run(["convert", model, "--recipe", "boundary-hif8", "-o", str(tmp_path / "delta")]) == 0
    converted = capsys.readouterr()
    assert "warning: high_noise: the recipe keeps 5 of 6 blocks" in converted.err
    assert run(["inspect", str(tmp_path / "delta")]) == 0
    inspected = capsys.readouterr().out
    bits = report_of(tmp_path / "delta")["bits_per_weight"]
    line = (
        f"restored    {bits['quantized']:.4f} bits per quantized weight when packed, {bits['model']:.4f} bits per "
        "weight over the whole model"
    )
    assert line in converted.out.splitlines()
    assert line in inspected.splitlines()
    with hfq.load_delta(tmp_path / "delta") as delta:
        assert f"{bits['model']:.4f} bits per weight over the whole model" in render_report(delta)


class Notes(Silent):
    """A progress that remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def copy_of_one(model: Path, folder: Path) -> Path:
    """A checkpoint with the same expert twice."""
    shutil.copytree(model, folder)
    for file in (folder / "high_noise_model").glob("*.safetensors"):
        shutil.copyfile(file, folder / "low_noise_model" / file.name)
    return folder


def test_equal_experts_are_said_wherever_both_are_read(
    small_base: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = copy_of_one(small_base, tmp_path / "base")
    delta = tmp_path / "delta"
    said = "both experts hold the same weights"
    for arguments in (
        ["convert", str(base), "--recipe", "rtn-hif4", "-o", str(delta)],
        ["verify", str(delta), "--base", str(base)],
        ["register", str(delta)],
        ["inspect", str(delta)],
        ["inspect", str(base)],
    ):
        assert run(arguments) == 0, arguments
        found = capsys.readouterr()
        assert (found.out + found.err).count(said) == 1, arguments
    assert [text for text in report_of(delta)["warnings"] if said in text]
    notes = Notes()
    load_model(copy_of_one(tiny_weights, tmp_path / "tiny"), progress=notes)
    assert [text for text in notes.notes if said in text] == [f"warning: {SAME_WEIGHTS}"]
    # A delta of before says nothing of it in its report.
    report = copy.deepcopy(report_of(delta))
    report["warnings"] = []
    (delta / "report.json").write_text(json.dumps(report))
    with hfq.load_delta(delta) as opened:
        assert len(describe_delta(opened)["warnings"]) == 1

"""Deltas of the first release stay what they were: the same ids from the same inputs, and old folders still verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hfq

DATA = Path(__file__).parents[1] / "data" / "deltas"
IDS: dict[str, dict[str, str]] = json.loads((DATA / "ids.json").read_text())


@pytest.mark.parametrize("recipe", sorted(IDS["made-up base"]))
def test_a_made_up_base_gives_the_same_ids(
    recipe: str, small_base: Path, small_calibration: Path, tmp_path: Path
) -> None:
    """Calibration and base are made of a seeded generator; these recipes store nothing that a CPU type may change."""
    with (
        hfq.open_checkpoint(small_base) as checkpoint,
        hfq.quantize(checkpoint, recipe, small_calibration, out=tmp_path / "delta") as delta,
    ):
        assert delta.id == IDS["made-up base"][recipe]


@pytest.mark.parametrize("recipe", sorted(IDS["tiny Wan"]))
def test_the_tiny_wan_gives_the_same_ids(recipe: str, tiny_weights: Path, tmp_path: Path) -> None:
    with (
        hfq.open_checkpoint(tiny_weights) as checkpoint,
        hfq.quantize(checkpoint, recipe, out=tmp_path / "delta") as delta,
    ):
        assert delta.id == IDS["tiny Wan"][recipe]


@pytest.mark.parametrize("recipe", ["rtn-hif8", "svdquant-gptq-hif4", "tail-aware-rot-hif4"])
def test_old_folders_verify(recipe: str, small_base: Path) -> None:
    """Every kind of op and stored state: masks, a rotation, factors, codes, clips."""
    with hfq.load_delta(DATA / recipe) as delta, hfq.open_checkpoint(small_base) as checkpoint:
        assert delta.id == IDS["stored"][recipe]
        report = hfq.verify(delta, checkpoint)
        assert report.ok, report.mismatches

"""An interrupted run goes on with what it has, and with nothing that belongs to another run."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import results
from result_arms import Arm, all_arms
from result_materials import Materials, Settings
from result_table import summarise_rows, tables

ARMS = {arm.key: arm for arm in all_arms()}
ROW = {"key": "rtn-hif4", "arm": "rtn-hif4", "family": "hif4", "psnr_db": [24.125, 25.5]}


class Folder:
    """Stands for `Materials`: a folder with a made-up calibration."""

    def __init__(self, folder: Path, calibration: Path) -> None:
        self.folder, self.calibration = folder, calibration
        (folder / "rows").mkdir(exist_ok=True)


@pytest.fixture
def folder(tmp_path: Path, small_calibration: Path) -> Materials:
    return cast("Materials", Folder(tmp_path, small_calibration))


def test_a_row_is_used_again_for_the_same_arm_and_code_alone(folder: Materials) -> None:
    arm = ARMS["rtn-hif4"]
    results.Rows(folder, "code 1", any_code=False).write(arm, dict(ROW))
    again = results.Rows(folder, "code 1", any_code=False)
    assert again.read(arm) == {**ROW, "code": "code 1"}
    assert again.read(ARMS["rtn-hif4.search"]) is None
    assert again.read(Arm(arm.key, arm.label, arm.family, {**(arm.recipe or {}), "description": "x"})) is None
    assert results.Rows(folder, "code 2", any_code=False).read(arm) is None
    # Where the code may be another one, the row still says which.
    assert results.Rows(folder, "code 2", any_code=True).read(arm) == {**ROW, "code": "code 1"}


def test_a_row_of_another_calibration_is_not_used(folder: Materials) -> None:
    arm = ARMS["rtn-hif4"]
    results.Rows(folder, "code", any_code=True).write(arm, dict(ROW))
    path = folder.folder / "rows" / "rtn-hif4.json"
    kept = json.loads(path.read_text())
    kept["made_with"]["calibration"] = "0" * 64
    path.write_text(json.dumps(kept))
    assert results.Rows(folder, "code", any_code=True).read(arm) is None


def test_other_settings_use_another_folder_and_no_calibration_prompt_is_evaluated() -> None:
    settings = Settings()
    assert replace(settings, pairs=2).digest() != settings.digest() != replace(settings, keep_inputs=64).digest()
    evaluated, calibrated = ({tuple(label.tolist()) for label in labels} for labels in settings.labels())
    assert (len(evaluated), len(calibrated)) == (24, 16)
    assert not evaluated & calibrated
    with pytest.raises(ValueError, match="leave no 16 other prompts"):
        replace(settings, pairs=230).labels()


def rows() -> list[dict[str, Any]]:
    shares = {"right": 2, "of": 2, "share": 1.0, "wilson_95": [0.3424, 1.0]}
    slots = ("shape", "colour", "direction", "shape_colour_direction")
    return [
        {
            "key": key,
            "arm": ARMS[key].label,
            "family": "hif4",
            "expert_nmse": {role: [nmse, nmse * 1.23456789] for role in ("high_noise", "low_noise")},
            "psnr_db": [24.0 + nmse, 25.123456789],
            "accuracy": dict.fromkeys(slots, shares),
        }
        for key, nmse in (("rtn-hif4", 0.03), ("rtn-hif4.search", 0.025))
    ]


def test_tables_can_be_made_anew_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"pairs": 2, "forced_prompts": 8, "figures": {"stale": True}, "rows": rows()}
    results._write(made, tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["results.py", "--render", "--out", str(tmp_path), "--docs", str(page)])
    results.main()
    expected = tables({"rows": rows(), "figures": summarise_rows(rows(), 2)})
    assert page.read_text() == f"before\n<!-- table: begin -->\n{expected}\n<!-- table: end -->\nafter\n"
    assert "stale" not in json.loads((tmp_path / "results.json").read_text())["figures"]


def test_an_unknown_arm_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", "--arms", "rtn-hif4,rtn-hif5", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="no such arm: rtn-hif5"):
        results.main()
    assert not (tmp_path / "out").exists()

"""Prompts that a delta was made with and is then judged by: flagged, recorded, and said before a clip."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made import write_calibration
from test_selection import TOP, converted, edited, selecting

import hfq
from hfq.cli import run
from hfq.convert.analyze import analyze
from hfq.convert.prompt_overlap import prompt_line
from hfq.schema.canonical import content_id
from hfq.schema.documents import read_document

ONE = {**TOP, "k": 1}

RED, BLUE, GREEN = (hashlib.sha256(text.encode()).hexdigest() for text in ("a red circle", "a blue square", "green"))


@pytest.fixture(scope="module")
def red_analysis(small_base: Path, small_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysis, as if it had been made on these prompts."""

    def use(document: dict[str, Any]) -> None:
        document["calibration"]["prompts"] = [GREEN, RED]

    folder = tmp_path_factory.mktemp("red")
    with hfq.open_checkpoint(small_base) as checkpoint:
        analyze(checkpoint, small_calibration, out=folder / "analysis", model_errors=False)
    return edited(folder / "analysis", folder / "analysis.json", use)


@pytest.fixture(scope="module")
def blue_calibration(small_calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The calibration, as if it had been made on this prompt."""
    folder = tmp_path_factory.mktemp("blue") / "calibration"
    shutil.copytree(small_calibration, folder)
    document = json.loads((folder / "calibration.json").read_bytes())
    document["parts"][0]["prompts"][0]["sha256"] = BLUE
    document["id"] = content_id(document)
    (folder / "calibration.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("calibrated", "evaluation", "overlap", "line"),
    [
        (False, "a red circle\na blue square\n", ([], [RED]), "1 of 2 evaluation prompts were used for selection"),
        (
            True,
            "a red circle\na blue square\n",
            ([BLUE], [RED]),
            "2 of 2 evaluation prompts were used for calibration and",
        ),
        (
            True,
            "a blue square\nanother\nand another",
            ([BLUE], []),
            "1 of 3 evaluation prompts were used for calibration:",
        ),
        (True, "another\n", ([], []), None),
        (True, None, None, None),
    ],
)
def test_evaluation_prompts_that_were_used_are_flagged_and_recorded(
    calibrated: bool, evaluation: str | None, overlap: tuple[list[str], list[str]] | None, line: str | None,
    small_base: Path, red_analysis: Path, blue_calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    made, out = tmp_path / "mine.json", tmp_path / "delta"
    stage = [{"kind": "smooth", "statistic": "max", "match": ["blocks.*.ffn.2"]}] if calibrated else []
    made.write_text(json.dumps(selecting(ONE, stage=stage).document))
    command = ["convert", str(small_base), "--recipe", str(made), "--analysis", str(red_analysis), "-o", str(out)]
    if calibrated:
        command += ["--calibration", str(blue_calibration)]
    if evaluation is not None:
        (tmp_path / "prompts.txt").write_text(evaluation)
        command += ["--evaluation-prompts", str(tmp_path / "prompts.txt")]
    assert run(command) == 0
    found = capsys.readouterr()
    assert found.err.count("\n") == (line is not None)
    assert line is None or line in found.err
    assert "top-1 by weight_nmse: block" in found.out
    recorded = read_document(out / "provenance.json", "provenance")["evaluation"]
    if overlap is None:
        assert recorded is None
    else:
        count = len((evaluation or "").split("\n")) - (evaluation or "").endswith("\n")
        assert recorded == {"prompts": count, "calibration": overlap[0], "selection": overlap[1]}
    document = read_document(out / "ptq_state.json", "ptq-state")
    flattered = {text: prompt_line(document, text) for text in ("a red circle", "a blue square", "another", "\udcff")}
    assert flattered == {
        "a red circle": "warning: the delta was made with this prompt (selection): the clip flatters it",
        "a blue square": "warning: the delta was made with this prompt (calibration): the clip flatters it"
        if calibrated
        else None,
        "another": None,
        "\udcff": None,
    }


def test_generate_says_that_its_prompt_was_selected_on(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a red circle moving left"
    with hfq.open_checkpoint(tiny_weights) as checkpoint:
        calibration = write_calibration(tmp_path / "calibration", checkpoint)
        analyze(checkpoint, calibration, out=tmp_path / "analysis", model_errors=False)

    def use(document: dict[str, Any]) -> None:
        document["calibration"]["prompts"] = [hashlib.sha256(text.encode()).hexdigest()]

    analysis = edited(tmp_path / "analysis", tmp_path / "a.json", use)
    converted(tiny_weights, selecting(ONE), tmp_path / "delta", analysis=analysis).close()
    for prompt, said in ((text, True), ("a blue square moving up", False)):
        command = ["generate", "--base", str(tiny_weights), "--delta", str(tmp_path / "delta"), "--prompt", prompt]
        assert run([*command, "--steps", "2", "--frames", "5", "-o", str(tmp_path / f"{said}.gif")]) == 0
        err = capsys.readouterr().err
        assert ("warning: the delta was made with this prompt (selection): the clip flatters it\n" in err) == said

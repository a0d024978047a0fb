"""`hfq analyze` as a user meets it: the table, the document, the flag, the errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made import write_base

from hfq.cli import run

Capture = pytest.CaptureFixture[str]


def hfq(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_the_table_and_the_files(small_base: Path, small_calibration: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["analyze", small_base, "--calibration", small_calibration, "-o", tmp_path / "out", "--no-model-errors"]
    code, out, err = hfq(capsys, *arguments)
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["analysis.html", "analysis.json"]
    document = json.loads((tmp_path / "out/analysis.json").read_text(encoding="utf-8"))
    lines = out.splitlines()
    assert lines[0] == f"analysis    {document['id'][:12]}  in {tmp_path / 'out'}"
    assert lines[1].startswith("format      hif8")
    begin = lines.index("low_noise")
    titles = lines[begin + 1].split()
    assert titles == ["block", "max", "rms", "crest", "ratio", "input", "weight", "output"]
    values = dict(zip(titles, lines[begin + 3].split(), strict=True))
    scores = document["experts"]["low_noise"]["scores"]
    assert values["block"] == "1"
    assert float(values["max"]) == pytest.approx(scores["act_max"]["blocks.1"], rel=1e-3)
    assert float(values["weight"]) == pytest.approx(scores["weight_nmse"]["blocks.1"], rel=1e-2)
    assert float(values["output"]) == pytest.approx(scores["output_nmse"]["blocks.1"], rel=1e-2)


def test_json_is_the_document(small_base: Path, small_calibration: Path, tmp_path: Path, capsys: Capture) -> None:
    code, out, err = hfq(
        capsys, "analyze", small_base, "--calibration", small_calibration, "--role", "low_noise", "--format", "hif4",
        "--no-model-errors", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document == json.loads((tmp_path / "out/analysis.json").read_text(encoding="utf-8"))
    assert list(document["experts"]) == ["low_noise"]
    assert document["weight"]["format"] == document["format"] == "hif4"


def test_a_calibration_without_calls_is_said_in_one_line_per_expert(
    small_base: Path, small_calibration: Path, tmp_path: Path, capsys: Capture
) -> None:
    code, _, err = hfq(capsys, "analyze", small_base, "--calibration", small_calibration, "-o", tmp_path / "out")
    assert code == 0
    lines = err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["high_noise", "low_noise"]
    assert all("--keep-calls" in line for line in lines)


def test_shared_prompts_are_flagged(small_base: Path, tmp_path: Path, capsys: Capture, tiny_calibration: Path) -> None:
    from tiny_pipelines import TINY_PROMPTS

    from hfq.convert.tiny.pipeline import WEIGHTS

    (tmp_path / "p.txt").write_text(f"{TINY_PROMPTS[1]}\na green cross moving left over a gray background\n")
    code, out, err = hfq(
        capsys, "analyze", WEIGHTS, "--calibration", tiny_calibration, "--role", "low_noise", "--no-model-errors",
        "--evaluation-prompts", tmp_path / "p.txt", "-o", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert err.startswith("warning: 1 of 2 evaluation prompts are in the calibration")
    assert err.count("\n") == 1
    assert "evaluation  1 of 2 prompts are in the calibration" in out


def test_failures(small_base: Path, small_calibration: Path, tmp_path: Path, capsys: Capture) -> None:
    other = write_base(tmp_path / "other", seed=1)
    expert = small_base / "low_noise_model"
    before = sorted(tmp_path.iterdir())
    for exit_code, code, arguments in (
        (3, "calibration-base", [other, "--calibration", small_calibration, "-o", tmp_path / "out"]),
        (3, "wrong-role", [f"high_noise={expert}", "--calibration", small_calibration, "-o", tmp_path / "out"]),
        (3, "calibration-base", [expert, "--role", "single", "--calibration", small_calibration, "-o", tmp_path / "o"]),
        (2, "output-exists", [small_base, "--calibration", small_calibration, "-o", tmp_path]),
        (2, "missing-path", [small_base, "--calibration", tmp_path / "nothing", "-o", tmp_path / "out"]),
        (2, "usage", [small_base, "--calibration", small_calibration, "-o", tmp_path / "no/such/out"]),
        (2, "usage", [small_base, "--calibration", small_calibration]),
        (2, "missing-path", [small_base, "--calibration", small_calibration, "-o", tmp_path / "out",
                             "--evaluation-prompts", tmp_path / "nothing"]),
    ):  # fmt: skip
        found, out, err = hfq(capsys, "analyze", *arguments)
        assert (found, out) == (exit_code, ""), err
        assert err.rstrip().endswith(f"[{code}]"), err
        assert err.count("\n") == 1, err
        found, out, _ = hfq(capsys, "analyze", *arguments, "--json")
        assert (found, json.loads(out)["error"]["code"]) == (exit_code, code)
        assert sorted(tmp_path.iterdir()) == before

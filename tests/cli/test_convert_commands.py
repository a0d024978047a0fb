"""`hfq convert`, `verify`, `recipes` and `inspect DELTA` as a user meets them: exit codes, documents, errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made import bytes_of, write_base

from hfq.cli import run

Capture = pytest.CaptureFixture[str]


def hfq(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def fails(capsys: Capture, exit_code: int, code: str, *arguments: object) -> dict[str, Any]:
    """Check a failure both ways: one line on stderr and nothing on stdout; one document with --json."""
    found, out, err = hfq(capsys, *arguments)
    assert (found, out) == (exit_code, ""), err
    assert err.count("\n") == 1, err
    assert err.rstrip().endswith(f"[{code}]"), err
    found, out, _ = hfq(capsys, *arguments, "--json")
    error: dict[str, Any] = json.loads(out)["error"]
    assert (found, error["code"]) == (exit_code, code)
    return error


def test_convert_verify_inspect(small_base: Path, small_calibration: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "with space"
    arguments = ["convert", small_base, "--recipe", "tail-aware-hif4", "--calibration", small_calibration, "-o", out]
    code, text, err = hfq(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "low_noise: quantize 20 linears in 2 blocks  (blocks.*: linear inside a block)" in text
    assert f"hfq verify '{out}' --base {small_base}" in text
    code, text, _ = hfq(capsys, "verify", out, "--base", small_base)
    assert code == 0
    assert "restores bit for bit" in text
    code, text, _ = hfq(capsys, "inspect", out)
    assert code == 0
    assert "4.5000 bits per quantized weight when packed" in text
    documents = {}
    for name, more in (("inspect", []), ("verify", ["--base", small_base])):
        code, text, _ = hfq(capsys, name, out, *more, "--json")
        assert code == 0
        documents[name] = json.loads(text)
    assert documents["verify"]["ok"] is True
    assert documents["verify"]["delta"] == documents["inspect"]["id"] == json.loads(bytes_of(out)[0])["id"]
    assert documents["verify"]["experts"]["high_noise"] == {"tensors": 69, "restored": 20, "kept": 6}


def test_convert_json_and_dry_run(small_base: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["convert", small_base, "--recipe", "rtn-hif8", "--json"]
    code, out, _ = hfq(capsys, *arguments, "--dry-run")
    assert code == 0
    planned = json.loads(out)
    assert list(tmp_path.iterdir()) == []
    code, out, _ = hfq(capsys, *arguments, "-o", tmp_path / "delta")
    assert code == 0
    assert json.loads(out)["routing"] == planned["routing"]
    code, out, _ = hfq(capsys, "convert", small_base, "--recipe", "rtn-hif8", "--dry-run")
    assert "memory      about" in out


NOTHING = "the recipe quantizes no linear of this model: the delta will be the base itself"


def test_a_delta_that_quantizes_one_expert_or_nothing_is_shown(
    small_base: Path, tmp_path: Path, capsys: Capture
) -> None:
    head = 'schema = "hfq.recipe/1"\nname = "n"\n[weight]\nformat = "hif4"\n[activation]\nformat = "hif4"\n'
    one = '[[route]]\nmatch = "blocks.*"\nexpert = "low_noise"\nto = "quantize"\n'
    keep = '[[route]]\nmatch = "*"\nto = "keep"\n'
    for name, text in (("one", head + one + keep), ("none", head + keep)):
        (tmp_path / f"{name}.toml").write_text(text)
        code, _, err = hfq(capsys, "convert", small_base, "--recipe", tmp_path / f"{name}.toml", "-o", tmp_path / name)
        assert code == 0
        assert err == ("" if name == "one" else f"warning: {NOTHING}\n")
        assert json.loads((tmp_path / name / "report.json").read_text())["warnings"] == (
            [] if name == "one" else [NOTHING]
        )
        for command in (["inspect", tmp_path / name], ["verify", tmp_path / name, "--base", small_base]):
            assert hfq(capsys, *command)[0] == 0


def test_verify_of_another_base(small_delta: Path, tmp_path: Path, capsys: Capture) -> None:
    other = write_base(tmp_path / "other", seed=1)
    code, out, err = hfq(capsys, "verify", small_delta, "--base", other)
    assert (code, out) == (3, "")
    assert "[wrong-base]" in err
    code, out, err = hfq(capsys, "verify", small_delta, "--base", other, "--json")
    assert code == 3
    document = json.loads(out)
    assert document["ok"] is False
    assert document["mismatches"][0]["code"] == "wrong-base"
    assert "blocks.0" in document["mismatches"][0]["where"]


def test_verify_of_swapped_experts(small_delta: Path, small_base: Path, capsys: Capture) -> None:
    swapped = f"high_noise={small_base}/low_noise_model,low_noise={small_base}/high_noise_model"
    code, _, err = hfq(capsys, "verify", small_delta, "--base", swapped)
    assert code == 3
    assert "these are the weights of the expert low_noise" in err
    assert "[wrong-role]" in err
    code, out, _ = hfq(capsys, "verify", small_delta, "--base", swapped, "--expert", "high_noise", "--json")
    assert (code, {entry["code"] for entry in json.loads(out)["mismatches"]}) == (3, {"wrong-role"})


def test_verify_of_one_expert(small_delta: Path, small_base: Path, tmp_path: Path, capsys: Capture) -> None:
    bare = tmp_path / "wan.safetensors"
    shutil.copyfile(small_base / "high_noise_model/diffusion_pytorch_model.safetensors", bare)
    folder = small_base / "low_noise_model"
    fails(capsys, 2, "usage", "verify", small_delta, "--base", folder)
    assert hfq(capsys, "verify", small_delta, "--base", folder, "--expert", "low_noise")[0] == 0
    assert hfq(capsys, "verify", small_delta, "--base", small_base, "--expert", "low_noise")[0] == 0
    assert hfq(capsys, "verify", small_delta, "--base", small_base, "--role", "low_noise")[0] == 0
    error = fails(capsys, 3, "wrong-role", "verify", small_delta, "--base", folder, "--role", "single")
    assert error["expected"] == "low_noise"
    fails(capsys, 2, "usage", "verify", small_delta, "--base", small_base, "--expert", "single")
    fails(capsys, 2, "missing-path", "verify", small_delta, "--base", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("exit_code", "code", "arguments"),
    [
        (2, "missing-calibration", ["--recipe", "tail-aware-hif4", "-o", "OUT"]),
        (2, "missing-path", ["--recipe", "no-such", "-o", "OUT"]),
        (2, "missing-path", ["--recipe", "tail-aware-hif4", "--calibration", "nothing", "-o", "OUT"]),
        (2, "output-exists", ["--recipe", "rtn-hif4", "-o", "."]),
        (2, "usage", ["--recipe", "rtn-hif4"]),
        (2, "usage", ["--recipe", "rtn-hif4", "-o", "no/such/OUT"]),
        (2, "usage", ["-o", "OUT"]),
        (2, "usage", ["--recipe", "rtn-hif4", "-o", "OUT", "--role", "middle"]),
        (2, "usage", ["--recipe", "rtn-hif4", "-o", "OUT", "--role", "single", "--faster"]),
    ],
)
def test_convert_refusals(
    exit_code: int, code: str, arguments: list[str], small_base: Path, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    fails(capsys, exit_code, code, "convert", small_base, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_convert_of_bad_weights(small_calibration: Path, tmp_path: Path, capsys: Capture) -> None:
    def damage(name: str, values: torch.Tensor) -> torch.Tensor:
        return values.fill_(float("nan")) if name == "blocks.0.ffn.2.weight" else values

    nan, other = write_base(tmp_path / "nan", change=damage), write_base(tmp_path / "other", seed=1)
    out = tmp_path / "delta"
    error = fails(capsys, 1, "non-finite", "convert", nan, "--recipe", "rtn-hif4", "-o", out)
    assert error["where"].endswith("high_noise_model/diffusion_pytorch_model.safetensors: blocks.0.ffn.2.weight")
    calibrated = ["--recipe", "tail-aware-hif4", "--calibration", small_calibration, "-o", out]
    fails(capsys, 3, "calibration-base", "convert", other, *calibrated)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan", "other"]


def test_a_note_about_an_unneeded_calibration_is_on_stderr(
    small_base: Path, small_calibration: Path, tmp_path: Path, capsys: Capture
) -> None:
    code, out, err = hfq(
        capsys, "convert", small_base, "--recipe", "rtn-hif4", "--calibration", small_calibration, "-o",
        tmp_path / "delta", "--json",
    )  # fmt: skip
    assert code == 0
    assert "measuring alone" in err
    json.loads(out)


def test_ctrl_c_leaves_work_that_can_be_resumed(small_base: Path, tmp_path: Path, capsys: Capture) -> None:
    out, journal = tmp_path / "delta", tmp_path / "delta.partial/journal.jsonl"
    interrupted = (
        # A background job of a shell starts with Ctrl-C ignored.
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from hfq.convert.journal import Journal\nfrom hfq.cli import run\nadd = Journal.add\n"
        "sent = []\ndef then_interrupted(self, entry, state):\n    add(self, entry, state)\n"
        "    if not sent:\n        sent.append(os.kill(os.getpid(), signal.SIGINT))\n"
        "Journal.add = then_interrupted\nsys.exit(run(sys.argv[1:]))\n"
    )
    arguments = ["convert", str(small_base), "--recipe", "rtn-hif4", "-o", str(out)]
    command = [sys.executable, "-c", interrupted, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    text, err = process.stdout, process.stderr
    assert journal.stat().st_size
    assert (process.returncode, text) == (130, "")
    assert "--resume" in err
    assert "Traceback" not in err
    fails(capsys, 2, "output-exists", *arguments)
    fails(capsys, 2, "resume-mismatch", "convert", small_base, "--recipe", "rtn-hif8", "-o", out, "--resume")
    assert hfq(capsys, *arguments, "--resume")[0] == 0
    assert hfq(capsys, "verify", out, "--base", small_base)[0] == 0


def test_a_read_only_place(small_base: Path, tmp_path: Path, capsys: Capture) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    code, _, err = hfq(capsys, "convert", small_base, "--recipe", "rtn-hif4", "-o", tmp_path / "delta")
    assert code == 1
    assert "[os-error]" in err


def test_recipes(tmp_path: Path, small_base: Path, capsys: Capture) -> None:
    code, out, _ = hfq(capsys, "recipes")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == sorted(line.split()[0] for line in out.splitlines())
    assert {"tail-aware-hif4", "rtn-hif4", "rtn-hif8"} <= {line.split()[0] for line in out.splitlines()}
    code, out, _ = hfq(capsys, "recipes", "--json")
    assert {row["name"]: row["needs_calibration"] for row in json.loads(out)["recipes"]}["tail-aware-hif4"] is True
    code, out, _ = hfq(capsys, "recipes", "rtn-hif4", "--json")
    (tmp_path / "my.json").write_text(out)
    for name in ("rtn-hif4", tmp_path / "my.json"):
        assert hfq(capsys, "convert", small_base, "--recipe", name, "-o", tmp_path / Path(str(name)).stem)[0] == 0
    assert bytes_of(tmp_path / "my") == bytes_of(tmp_path / "rtn-hif4")
    fails(capsys, 2, "missing-path", "recipes", "nothing")


def test_inspect_of_a_hostile_report(small_delta: Path, tmp_path: Path, capsys: Capture) -> None:
    delta = Path(shutil.copytree(small_delta, tmp_path / "delta"))
    (delta / "report.json").write_text('{"schema": "hfq.report/1", "delta": [], "experts": {"x": "\x1b"}}')
    fails(capsys, 1, "malformed", "inspect", delta)
    (delta / "report.json").write_text('{"schema": "hfq.report/1", "delta": [], "experts": {"x": "\\u001b[2J"}}')
    fails(capsys, 1, "schema-violation", "inspect", delta)


def test_nothing_is_written_beside_what_is_read(small_delta: Path, small_base: Path, capsys: Capture) -> None:
    def stamps() -> dict[Path, float]:
        return {
            path: path.stat().st_mtime for folder in (small_delta, small_base) for path in (folder, *folder.rglob("*"))
        }

    before = stamps()
    hfq(capsys, "verify", small_delta, "--base", small_base)
    hfq(capsys, "inspect", small_delta)
    assert stamps() == before


def test_generate_with_a_delta(tiny_weights: Path, small_delta: Path, tmp_path: Path, capsys: Capture) -> None:
    delta, clip = tmp_path / "delta", tmp_path / "clip.gif"
    assert hfq(capsys, "convert", tiny_weights, "--recipe", "rtn-hif4", "-o", delta)[0] == 0
    arguments = ["generate", "--base", tiny_weights, "--prompt", "a red circle moving left over a black background",
                 "--steps", 2, "-o", clip]  # fmt: skip
    fails(capsys, 3, "wrong-base", *arguments, "--delta", small_delta)  # of another, smaller model
    assert not clip.exists()
    code, out, _ = hfq(capsys, *arguments, "--delta", delta, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["delta"] == json.loads(bytes_of(delta)[0])["id"]
    assert document["quantized"] == {"high_noise": 80, "low_noise": 80}
    assert clip.read_bytes().startswith(b"GIF8")
    fails(capsys, 2, "output-exists", *arguments, "--delta", delta)

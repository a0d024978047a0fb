"""`hfq demo` is the first thing a user runs: it goes the whole way and leaves what it says it leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import hfq
from hfq.cli import run
from hfq.convert.video import read_clip


def test_the_demo_goes_the_whole_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFQ_REGISTRY", str(tmp_path / "mine.sqlite"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    before = Path.cwd()
    out = tmp_path / "demo"
    assert run(["demo", "-o", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert Path.cwd() == before
    # The user's own registry is neither used nor made.
    assert os.environ["HFQ_REGISTRY"] == str(tmp_path / "mine.sqlite")
    assert not (tmp_path / "mine.sqlite").exists()

    with hfq.load_delta(out / "tail-aware") as delta:
        assert delta.id == summary["delta"]
        assert {role: len(delta.quantized(role)) for role in delta.roles} == {"high_noise": 80, "low_noise": 80}
    registry = hfq.open_registry(str(out / "registry.sqlite"))
    assert registry.resolve("tiny@demo") == summary["delta"]
    assert {row["to"]: row["sites"] for row in summary["routing"]} == {"quantize": 80, "keep": 6}
    assert summary["delta_bytes"] < summary["base_bytes"] / 20
    bf16, hif4 = read_clip(out / "bf16" / "001.mp4"), read_clip(out / "hif4" / "001.mp4")
    assert bf16.shape == hif4.shape == (9, 192, 192, 3)
    # The headline is of all clips, and not of the best one.
    pairs = [[read_clip(out / side / f"{n:03}.mp4").astype(float) for side in ("bf16", "hif4")] for n in range(1, 5)]
    psnr = [10 * np.log10(255**2 / np.mean((left - right) ** 2)) for left, right in pairs]
    assert list(summary["psnr_db_of_clips"].values()) == pytest.approx(psnr)
    assert summary["psnr_db"] == pytest.approx(np.mean(psnr))
    assert f"{np.mean(psnr):.1f} dB PSNR on average ({min(psnr):.1f} to {max(psnr):.1f})" in captured.err
    assert min(psnr) > 10
    assert max(psnr) < 60
    assert (out / "side-by-side.gif").stat().st_size > 1000
    # Stripped of all metadata a clip is still known by its frames; re-encoded, nobody is named.
    assert summary["audits"] == {"stamped.mp4": "confirmed", "stripped.mp4": "confirmed", "platform.mp4": "unproven"}
    assert summary["gates"] == {"sketches": True, "product-shots": False}
    # Keys are made in the demo's folder, and the user's own place for them is left alone.
    assert (out / "config" / "keys").is_dir()
    assert not (tmp_path / "config" / "hfq").exists()
    # Every command that the demo ran is shown as a user would type it.
    # A gate that is to fail says so in its place, and nowhere else.
    assert "fails: " in captured.err
    assert "(exit code 4)" in captured.err
    assert "[gate-failed]" not in captured.err
    assert "# as: ffmpeg -i stamped.mp4" in captured.err
    assert f"HFQ_CONFIG={out / 'config'}" in captured.err
    for verb in (
        "inspect",
        "calibrate",
        "convert",
        "verify",
        "report",
        "register",
        "generate",
        "stamp",
        "audit",
        "score",
        "gate",
    ):
        assert f"$ hfq {verb} " in captured.err


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_is_one_line_and_the_folder_stays(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfq.convert import calibrate

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    # In the middle of a step that knows how to go on with its own work, which nobody asked for.
    monkeypatch.setattr(calibrate, "run_pipeline", interrupted)
    out = tmp_path / "demo"
    assert run(["demo", "-o", str(out), *(["--json"] if as_json else [])]) == 130
    err = capsys.readouterr().err
    assert "--resume" not in err
    assert [line for line in err.splitlines() if line.startswith("hfq: ")] == [
        f"hfq: {out}: the demo was interrupted; what it made so far stays; remove the folder when you have seen it "
        "[interrupted]"
    ]
    assert (out / "tiny-wan").is_dir()


def test_a_step_that_fails_ends_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfq.commands import demo

    monkeypatch.setattr(demo, "CALIBRATION_PROMPTS", ("a purple dodecahedron",))
    assert run(["demo", "-o", str(tmp_path / "demo")]) == 1
    err = capsys.readouterr().err
    assert "hfq calibrate tiny-wan" in err
    assert "a step failed: " in err
    assert "[demo-step]" in err


def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert run(["demo", "-o", str(tmp_path / "demo")]) == 2
    assert list((tmp_path / "demo").iterdir()) == []

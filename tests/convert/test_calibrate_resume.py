"""Interrupted calibrations of the tiny Wan: the same bytes in the end, and nothing mixed that does not belong."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_pipelines import TINY_PROMPTS
from tiny_runs import STEPS, Kills, Raises, bytes_of, calibrated, hooks_of

from hfq.convert.calibration_work import CalibrationWork
from hfq.convert.pipelines import LoadedModel, adopt_pipeline
from hfq.schema.errors import InterruptedRunError, OutputExistsError, ResumeMismatchError


def test_a_killed_run_resumes_to_the_same_bytes(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """SIGKILL in the middle of the second prompt, and again while the parts are joined."""
    whole = calibrated(tiny_model, tmp_path / "whole", TINY_PROMPTS, parts=True, keep_inputs=5)
    whole.close()
    out = tmp_path / "out"
    for after in (3 * STEPS, 2 * STEPS + 5):
        child = os.fork()
        if child == 0:
            try:
                calibrated(tiny_model, out, TINY_PROMPTS, parts=True, keep_inputs=5, resume=True, progress=Kills(after))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert not out.exists()
    assert len(list((tmp_path / "out.partial" / "parts").iterdir())) == 2
    calibrated(tiny_model, out, TINY_PROMPTS, parts=True, keep_inputs=5, resume=True).close()
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_interrupting_keeps_finished_prompts(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C: exit 130, no trace left in the model, and finished prompts are not run again."""
    with pytest.raises(InterruptedRunError, match="--resume") as caught:
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, progress=Raises(2 * STEPS + 1, KeyboardInterrupt()))
    assert caught.value.exit_code == 130
    assert hooks_of(tiny_model) == 0
    ran: list[str] = []
    write = CalibrationWork.write_part
    monkeypatch.setattr(CalibrationWork, "write_part", lambda self, p, s: (ran.append(p.text), write(self, p, s))[1])
    calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, resume=True).close()
    assert ran == [TINY_PROMPTS[1]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["calibration.json", "statistics.safetensors"]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("settings.steps", {"steps": STEPS + 1}),
        ("settings.seed", {"seed": 7}),
        ("settings.keep_inputs", {"keep_inputs": 4}),
        ("settings.by", {"by": ("bins",)}),
        ("settings.rows", {"rows": 10}),
        ("prompts.2", {"prompts": (TINY_PROMPTS[0], "a green cross")}),
        ("prompts.1", {"prompts": TINY_PROMPTS[::-1]}),
    ],
)
def test_resuming_with_other_inputs_is_refused_by_name(
    field: str, changes: dict[str, Any], tiny_model: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(InterruptedRunError):
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, progress=Raises(1, KeyboardInterrupt()))
    with pytest.raises(OutputExistsError, match="--resume"):
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS)
    with pytest.raises(ResumeMismatchError, match=field):
        calibrated(tiny_model, tmp_path / "out", **{"prompts": TINY_PROMPTS, **changes}, resume=True)


def test_resuming_with_another_model_is_refused(tiny_model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        calibrated(tiny_model, tmp_path / "out", progress=Raises(1, KeyboardInterrupt()))
    other = adopt_pipeline(tiny_model.pipeline)
    other.identities["high_noise"], other.identities["low_noise"] = (
        other.identities["low_noise"], other.identities["high_noise"],
    )  # fmt: skip
    with pytest.raises(ResumeMismatchError, match="base"):
        calibrated(other, tmp_path / "out", resume=True)


def test_a_part_of_another_run_is_not_taken(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """Not even when the record of the settings is gone."""
    with pytest.raises(InterruptedRunError):
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, progress=Raises(2 * STEPS + 1, KeyboardInterrupt()))
    (tmp_path / "out.partial" / "started.json").unlink()
    with pytest.raises(ResumeMismatchError, match="a part that was made with other inputs"):
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, seed=7, resume=True)

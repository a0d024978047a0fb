"""Interrupted calibrations of the tiny Wan: the same bytes in the end, and nothing mixed that does not belong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from kills import run_until
from tiny_pipelines import TINY_PROMPTS
from tiny_runs import STEPS, Kills, Raises, bytes_of, calibrated, hooks_of

from hfq.convert.calibration import load_calibration
from hfq.convert.calibration_work import CalibrationWork
from hfq.convert.pipelines import LoadedModel, adopt_pipeline
from hfq.convert.progress import Silent
from hfq.schema.canonical import content_id
from hfq.schema.errors import (
    DigestMismatchError,
    InterruptedRunError,
    MissingPathError,
    OutputExistsError,
    ResumeMismatchError,
)


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


def test_killed_at_any_instant_of_publishing_no_prompt_runs_again(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, in and after the rename, and in the clean-up; with parts that are kept."""
    calibrated(tiny_model, tmp_path / "whole", TINY_PROMPTS, parts=True).close()
    out, partial, kept = tmp_path / "out", tmp_path / "out.partial", tmp_path / "kept"

    def all_done() -> None:
        calibrated(tiny_model, out, TINY_PROMPTS, parts=True, resume=True).close()

    def changes(call: str) -> bool:
        return call.split()[0] in ("rename", "unlink", "rmdir", "mkdir") and str(partial) in call and ".tmp" not in call

    assert run_until(0, all_done, only=lambda call: call.startswith("rename") and call.endswith("/result/parts"))
    partial.rename(kept)  # every prompt is done, and the result is complete but for its parts
    ran: list[str] = []
    monkeypatch.setattr(CalibrationWork, "write_part", lambda self, prompt, found: ran.append(prompt.text))
    instant = 0
    while True:
        shutil.copytree(kept, partial)
        if not run_until(instant, all_done, only=changes):
            break
        assert not out.exists() or bytes_of(out) == bytes_of(tmp_path / "whole")
        all_done()
        assert ran == []
        assert bytes_of(out) == bytes_of(tmp_path / "whole")
        assert not partial.exists()
        shutil.rmtree(out)
        instant += 1
    assert instant > 5
    with pytest.raises(OutputExistsError, match=r"settings\.seed: .*is not what would be made"):
        calibrated(tiny_model, out, TINY_PROMPTS, parts=True, resume=True, seed=7)
    with pytest.raises(OutputExistsError, match="already there"):
        calibrated(tiny_model, out, TINY_PROMPTS, parts=True)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")


def test_a_part_killed_when_only_its_name_was_missing_is_taken(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated(tiny_model, tmp_path / "whole").close()
    named = re.compile(r"rename \S+/parts/[0-9a-f]{16}\.partial ")
    assert run_until(0, lambda: calibrated(tiny_model, tmp_path / "out"), only=lambda call: bool(named.match(call)))
    monkeypatch.setattr(CalibrationWork, "write_part", None)
    calibrated(tiny_model, tmp_path / "out", resume=True).close()
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_a_second_run_leaves_the_first_alone(tiny_model: LoadedModel, tmp_path: Path) -> None:
    """It begins while the first one runs its second prompt, with and without --resume; one result comes out."""
    out, refused = tmp_path / "out", []

    class Second(Silent):
        forwards = 0

        def advance(self, amount: int = 1) -> None:
            self.forwards += 1
            if self.forwards == 2 * STEPS + 1:
                for resume in (False, True):
                    with pytest.raises(OutputExistsError, match="another calibration is at work") as caught:
                        calibrated(tiny_model, out, TINY_PROMPTS, resume=resume)
                    refused.append(str(caught.value))

    calibrated(tiny_model, out, TINY_PROMPTS, progress=Second()).close()
    assert len(refused) == 2
    assert f"process {os.getpid()} of " in refused[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("place", ["thesis.txt", "parts/thesis.txt", "parts/{part}/thesis.txt", "result/thesis.txt"])
def test_a_file_of_somebody_else_stops_it_and_stays(place: str, tiny_model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, progress=Raises(2 * STEPS + 1, KeyboardInterrupt()))
    partial = tmp_path / "out.partial"
    part = next((partial / "parts").iterdir()).name
    (partial / place.format(part=part)).write_text("mine")
    before = bytes_of(partial)
    with pytest.raises(OutputExistsError, match=r"thesis\.txt"):
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, resume=True)
    assert bytes_of(partial) == before


def test_a_part_that_was_exchanged_is_refused_before_the_model_runs(tiny_model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError):
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, progress=Raises(2 * STEPS + 1, KeyboardInterrupt()))
    part = next((tmp_path / "out.partial" / "parts").iterdir())
    document = json.loads((part / "calibration.json").read_bytes())
    document["parts"][0]["sha256"] = "0" * 64
    document["id"] = content_id(document)
    (part / "calibration.json").write_text(json.dumps(document))
    with pytest.raises(DigestMismatchError, match="part of the unfinished calibration"):
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, resume=True)


def test_interrupting_keeps_finished_prompts(
    tiny_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C: exit 130, no trace left in the model, and finished prompts are not run again."""
    with pytest.raises(InterruptedRunError, match="--resume") as caught:
        calibrated(tiny_model, tmp_path / "out", TINY_PROMPTS, progress=Raises(2 * STEPS + 1, KeyboardInterrupt()))
    assert caught.value.exit_code == 130
    assert hooks_of(tiny_model) == 0
    with pytest.raises(MissingPathError, match=r"not finished.*--resume"):
        load_calibration(tmp_path / "out.partial")
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

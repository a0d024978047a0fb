"""`hfq generate --prompts`: a folder of clips from one load of the weights, which can be gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hfq.cli import run
from hfq.convert.tiny.pipeline import WEIGHTS
from hfq.registry.clips.stream import open_clip
from hfq.registry.clips.tag import read_tag

PROMPTS = (
    "a red circle moving left over a black background\n"
    '{"prompt": "a blue square moving up over a white background", "id": "square"}\n'
)
SETTINGS = ("--steps", "4", "--seed", "3")


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFQ_REGISTRY", str(tmp_path / "registry.sqlite"))
    monkeypatch.setenv("HFQ_CONFIG", str(tmp_path / "config"))
    file = tmp_path / "prompts.txt"
    file.write_text(PROMPTS, encoding="utf-8")
    return file


def generate(*arguments: object) -> int:
    return run(["generate", "--base", str(WEIGHTS), *map(str, arguments)])


def test_a_folder_of_clips(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clips"
    assert generate("--prompts", prompts, *SETTINGS, "-o", out, "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [Path(clip["clip"]).name for clip in document["clips"]] == ["001.mp4", "square.mp4"]
    with open_clip(out / "square.mp4") as clip:
        found = read_tag(clip)
    assert found is not None
    assert (found.seed, found.settings["steps"], found.delta) == (3, 4, None)
    assert isinstance(found.settings["scheduler"], str)

    # The same prompt alone gives the same frames: no clip depends on those made before it.
    single = tmp_path / "single.mp4"
    assert generate("--prompt", "a blue square moving up over a white background", *SETTINGS, "-o", single) == 0
    with open_clip(single) as one, open_clip(out / "square.mp4") as other:
        assert one.stream_facts() == other.stream_facts()

    # An interrupted run goes on: what is there stays, what is missing is made.
    kept = (out / "square.mp4").read_bytes()
    (out / "001.mp4").unlink()
    capsys.readouterr()
    assert generate("--prompts", prompts, *SETTINGS, "-o", out, "--resume") == 0
    assert "2 of 2" in (said := capsys.readouterr().err)
    assert "was there" in said
    assert (out / "square.mp4").read_bytes() == kept
    assert (out / "001.mp4").is_file()

    # A clip of another seed under the same name is not taken for the one that is asked for.
    assert generate("--prompts", prompts, "--steps", 4, "--seed", 4, "-o", out, "--resume") == 2
    assert "001.mp4: the clip that is there was made otherwise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "what should the clip show?"),
        (("--prompt", "x", "--prompts", "prompts.txt"), "what should the clip show?"),
        (("--prompt", "x", "--resume"), "--resume goes on with a set of clips"),
        (("--prompts", "prompts.txt", "-o", "clips.mp4"), "a clip of every prompt goes into a folder"),
        (("--prompts", "prompts.txt", "-o", "gone/clips"), "the folder for the output does not exist"),
        (("--prompts", "prompts.txt", "-o", "."), "the output is already there"),
        (("--prompts", "none.txt"), "none.txt"),
        (("--prompts", "twice.txt"), "two prompts of one name"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(
    arguments: tuple[str, ...],
    message: str,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(prompts.parent)
    Path("twice.txt").write_text('{"prompt": "a", "id": "one"}\n{"prompt": "b", "id": "One"}\n', encoding="utf-8")
    assert generate(*(() if "-o" in arguments else ("-o", "clips")), *arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("clips").exists()


def test_an_id_that_is_no_file_name_is_not_used_as_one(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts.write_text('{"prompt": "a red circle moving left over a black background", "id": "../../x"}\n', "utf-8")
    out = tmp_path / "clips"
    assert generate("--prompts", prompts, "--steps", 2, "-o", out) == 0
    assert [path.name for path in out.iterdir()] == ["001.mp4"]

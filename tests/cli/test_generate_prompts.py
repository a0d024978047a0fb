"""`hfq generate --prompts`: a folder of clips from one load of the weights, which can be gone on with."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import pytest

import hfq
from hfq.cli import run
from hfq.convert.tiny.pipeline import WEIGHTS
from hfq.registry.clips.stream import open_clip
from hfq.registry.clips.tag import read_tag

PROMPTS = (
    "a red circle moving left over a black background\n"
    '{"prompt": "a blue square moving up over a white background", "id": "square", "category": "shapes"}\n'
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
    assert (found.seed, found.settings["steps"], found.delta, found.category) == (3, 4, None, "shapes")
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


def test_a_prompt_that_occurs_again_is_another_sample(prompts: Path, tmp_path: Path) -> None:
    red = "a red circle moving left over a black background"
    prompts.write_text(json.dumps([red, {"prompt": red, "id": "red"}, {"prompt": red, "id": "red"}]), encoding="utf-8")
    out = tmp_path / "clips"
    assert generate("--prompts", prompts, "--steps", 2, "--seed", 3, "-o", out) == 0
    found = {}
    for path in sorted(out.glob("*.mp4")):
        with open_clip(path) as clip:
            document = read_tag(clip)
            assert document is not None
            found[path.name] = (document.seed, clip.stream_facts())
    assert {name: seed for name, (seed, _) in found.items()} == {"001.mp4": 3, "red-1.mp4": 4, "red-2.mp4": 5}
    assert found["001.mp4"][1] != found["red-1.mp4"][1] != found["red-2.mp4"][1]
    assert generate("--prompts", prompts, "--steps", 2, "--seed", 3, "-o", out, "--resume") == 0  # all three stay


def encode_again(clip: Path) -> None:
    """The same size, length, rate and tag; other bytes and frames."""
    source, out = clip, clip.with_name("again.mp4")
    with av.open(str(source)) as found, av.open(str(out), "w", format="mp4") as copy:
        copy.metadata["comment"] = found.metadata["comment"]
        stream: Any = copy.add_stream("libx264", rate=found.streams.video[0].average_rate, options={"crf": "40"})
        stream.width, stream.height, stream.pix_fmt = (
            found.streams.video[0].width,
            found.streams.video[0].height,
            "yuv420p",
        )
        for frame in found.decode(video=0):
            copy.mux(stream.encode(frame))
        copy.mux(stream.encode())
    out.replace(clip)


def test_resume_keeps_what_would_be_written_and_nothing_else(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clips"
    assert generate("--prompts", prompts, *SETTINGS, "--zoom", 2, "--fps", 8, "-o", out) == 0
    again = ("--prompts", prompts, *SETTINGS, "-o", out, "--resume")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert generate(*arguments) == 2
        return capsys.readouterr().err

    assert "expected picture 72x72, found picture 48x48" in refused(*again, "--zoom", 3, "--fps", 8)
    assert "expected fps 6, found fps 8" in refused(*again, "--zoom", 2, "--fps", 6)
    said = refused("--prompts", prompts, "--steps", 5, "--seed", 4, "-o", out, "--resume", "--zoom", 2, "--fps", 8)
    assert "expected steps 5, seed 4, expert steps" in said
    assert "found steps 4, seed 3, expert steps" in said
    other = tmp_path / "other.txt"
    other.write_text("a red circle moving right over a black background\n", "utf-8")
    said = refused("--prompts", other, *again[2:], "--zoom", 2, "--fps", 8)
    assert "expected prompt sha256" in said
    assert "found prompt sha256" in said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    # The tag survives a re-encode; the bytes do not.
    encode_again(out / "001.mp4")
    assert "001.mp4: the clip that is there says what is asked for, and its bytes are not known" in refused(
        *again, "--zoom", 2, "--fps", 8
    )
    # Half a file cannot come from an interrupted run, but it can from a broken copy.
    (out / "001.mp4").write_bytes(before["001.mp4"][:-500])
    capsys.readouterr()
    assert generate(*again, "--zoom", 2, "--fps", 8) == 1
    assert "remove it, and it is made again" in capsys.readouterr().err
    (out / "001.mp4").write_bytes(before["001.mp4"])
    assert generate(*again, "--zoom", 2, "--fps", 8) == 0
    # Without the journal and without a registry nothing vouches for the bytes.
    (out / ".hfq-clips.jsonl").unlink()
    assert "its bytes are not known" in refused(*again, "--zoom", 2, "--fps", 8)


def test_a_registry_vouches_for_clips_and_a_resumed_run_says_what_is_true(
    prompts: Path, tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hfq.open_checkpoint(tiny_weights) as base, hfq.quantize(base, "rtn-hif8", out=tmp_path / "delta") as delta:
        delta_id = hfq.open_registry().register(delta.path)
    assert run(["keys", "init"]) == 0
    out = tmp_path / "clips"
    arguments = ("--delta", delta_id, "--prompts", prompts, "--steps", 2, "-o", out, "--json")
    assert generate(*arguments) == 0
    (out / "square.mp4").unlink()
    (out / ".hfq-clips.jsonl").unlink()
    capsys.readouterr()
    assert generate(*arguments, "--resume") == 0
    clips = json.loads(capsys.readouterr().out)["clips"]
    assert [(clip["kept"], clip["signed"], clip["recorded"]) for clip in clips] == [
        (True, True, True),
        (False, True, True),
    ]


def test_a_clip_that_a_killed_run_did_not_record_is_recorded_as_it_was_signed(
    prompts: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfq.registry.clips.registry import ClipRegistry

    with hfq.open_checkpoint(tiny_weights) as base, hfq.quantize(base, "rtn-hif8", out=tmp_path / "delta") as delta:
        delta_id = hfq.open_registry().register(delta.path)
    assert run(["keys", "init"]) == 0
    out = tmp_path / "clips"
    arguments = ("--delta", delta_id, "--prompts", prompts, "--steps", 2, "-o", out)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClipRegistry, "record_clip", killed)
        assert generate(*arguments) == 130
    assert hfq.open_registry().status().counts["clips"] == 0
    whole = tmp_path / "whole"
    assert generate(*arguments, "--resume") == 0
    assert generate(*arguments[:-1], whole) == 0
    with closing(sqlite3.connect(tmp_path / "registry.sqlite")) as connection:
        rows = connection.execute("SELECT name, signed, length(manifest) > 1000 FROM clip ORDER BY key").fetchall()
    assert rows == [(name, 1, 1) for name in ("001.mp4", "square.mp4")] * 2
    # A row of a clip that was taken for unsigned learns it as well.
    with closing(sqlite3.connect(tmp_path / "registry.sqlite")) as connection:
        connection.execute("UPDATE clip SET signed = 0, manifest = NULL")
        connection.commit()
    assert generate(*arguments, "--resume") == 0
    with closing(sqlite3.connect(tmp_path / "registry.sqlite")) as connection:
        assert connection.execute("SELECT signed FROM clip ORDER BY key").fetchall() == [(1,), (1,), (0,), (0,)]


def test_ctrl_c_says_how_to_go_on(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfq.clip_maker import ClipMaker

    make, out = ClipMaker.make, tmp_path / "clips"

    def interrupted(maker: ClipMaker, prompt: Any, place: Path, output: Any, sample: int) -> Any:
        if place.name == "square.mp4":
            raise KeyboardInterrupt
        return make(maker, prompt, place, output, sample)

    with monkeypatch.context() as patch:
        patch.setattr(ClipMaker, "make", interrupted)
        assert generate("--prompts", prompts, "--steps", 2, "-o", out) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"hfq: {out}: interrupted; 1 of 2 clips are there; go on with --resume [interrupted]"
    )
    assert generate("--prompts", prompts, "--steps", 2, "-o", out, "--resume") == 0


def test_of_two_runs_into_one_folder_one_is_refused(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hfq.clip_maker import ClipMaker

    begin, out = ClipMaker.__init__, tmp_path / "clips"

    def second(maker: ClipMaker, *arguments: Any) -> None:
        begin(maker, *arguments)
        os.mkdir(out)  # the other run, while this one read its weights

    monkeypatch.setattr(ClipMaker, "__init__", second)
    assert generate("--prompts", prompts, "--steps", 2, "-o", out) == 2
    assert "[output-exists]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what the clip shows, once; expected either --prompt TEXT or --prompts FILE"),
        (("--prompt", "x", "--prompts", "prompts.txt"), "say what the clip shows, once"),
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
    assert sorted(path.name for path in out.iterdir()) == [".hfq-clips.jsonl", "001.mp4"]
    assert "'../../x' (001.mp4)" in capsys.readouterr().err


def test_a_category_that_no_clip_can_hold_is_refused_before_any_work(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"prompt": "a red circle moving left over a black background", "category": "x" * 81}
    prompts.write_text(json.dumps(line), "utf-8")
    assert generate("--prompts", prompts, *SETTINGS, "-o", tmp_path / "clips") == 2
    assert "a category that is too long for a clip; expected at most 80 characters, found 81" in capsys.readouterr().err
    assert not (tmp_path / "clips").exists()

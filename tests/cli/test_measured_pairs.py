"""`hfq score measure`: which clip is held against which, and what of a folder is no clip."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
sys.path.insert(0, str(Path(__file__).parents[1] / "registry" / "scores"))
sys.path.insert(0, str(Path(__file__).parent))
from factory import make_delta
from score_files import entry, write
from test_measured_clips import GATE, MEASURE, SETTINGS, Capture, clip, home, made_by, remux, typed

import hfq
from hfq.cli import run
from hfq.registry.clips.clip_document import prompt_sha256

__all__ = ["home"]


def both(home: Path, ours: str, theirs: str, index: int, *, noise: int = 20, of: dict[str, Any] | None = None) -> None:
    """A clip of the delta under one name and the base's of the same prompt and seed under another, both with tags."""
    for folder, name, of_base in (("ours", ours, False), ("base", theirs, True)):
        (home / folder).mkdir(exist_ok=True)
        clip(home / folder / name, index, made_by(home, index, of_base=of_base, **(of or {})), 0 if of_base else noise)


def refused(capsys: Capture, code: int, error: str, *more: str) -> dict[str, Any]:
    """Nothing is recorded of what is refused, on either side, and the message is one line."""
    found, document, _ = typed(capsys, *MEASURE, *more)
    assert (found, document["error"]["code"]) == (code, error), document
    assert typed(capsys, "show", "m@good")[1]["imports"] == []
    capsys.readouterr()
    assert run([*MEASURE, *more]) == code
    assert "\n" not in [line for line in capsys.readouterr().err.splitlines() if "[" in line][-1]
    result: dict[str, Any] = document["error"]
    return result


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_sha256": prompt_sha256("something else")}, "prompt "),
        ({"seed": 8}, "seed 1 against 8"),
        ({"settings": {**SETTINGS, "first_frame_sha256": "b" * 64}}, "first frame aaaaaaaaaaaa against bbbbbbbbbbbb"),
    ],
)
def test_clips_of_one_name_that_show_different_things_are_refused(
    home: Path, capsys: Capture, changes: dict[str, Any], said: str
) -> None:
    both(home, "c0.mp4", "c0.mp4", 0)
    (home / "ours" / "c1.mp4").parent.mkdir(exist_ok=True)
    first = {"settings": {**SETTINGS, "first_frame_sha256": "a" * 64}} if "settings" in changes else {}
    clip(home / "ours" / "c1.mp4", 1, made_by(home, 1, of_base=False, **first), 20)
    document = made_by(home, 1, of_base=True)
    clip(home / "base" / "c1.mp4", 1, replace(document, **changes))
    error = refused(capsys, 3, "clip-pair")
    assert error["where"] == "ours/c1.mp4 and base/c1.mp4"
    assert error["found"].startswith(said)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("steps", 20, "steps: 6 against 20"), ("shift", 3.0, "shift: 5 against 3"),
     ("guidance", 1.0, "guidance: 3 against 1"),
     ("scheduler", "euler", "scheduler: unipc against euler"), ("frames", 5, "frames: 3 against 5"),
     ("height", 64, "height: 32 against 64")],
)  # fmt: skip
def test_pairs_that_were_generated_otherwise_are_measured_only_on_demand_and_fail_the_gate(
    home: Path, capsys: Capture, name: str, value: Any, said: str
) -> None:
    both(home, "c0.mp4", "c0.mp4", 0)
    both(home, "c1.mp4", "c1.mp4", 1)
    (home / "base" / "c1.mp4").unlink()
    clip(home / "base" / "c1.mp4", 1, made_by(home, 1, of_base=True, settings={**SETTINGS, name: value}))
    error = refused(capsys, 2, "settings-differ")
    assert (error["where"], error["found"]) == ("ours/c1.mp4 and base/c1.mp4", said)
    assert typed(capsys, *MEASURE, "--anyway")[0] == 0
    code, found, _ = typed(capsys, *GATE)
    assert code == 4
    assert any(f"the base's settings: {name}: " in reason or f"than the base: {name}: " in reason
               for reason in found["reasons"])  # fmt: skip


def test_settings_mixed_the_other_way_round_on_both_sides_do_not_pass(home: Path, capsys: Capture) -> None:
    """Neither side shares the setting, so neither records it: that alone would be a note."""
    for index, (ours, theirs) in enumerate(((6, 20), (20, 6))):
        for folder, steps, of_base in (("ours", ours, False), ("base", theirs, True)):
            (home / folder).mkdir(exist_ok=True)
            document = made_by(home, index, of_base=of_base, settings={**SETTINGS, "steps": steps})
            clip(home / folder / f"c{index}.mp4", index, document, 0 if of_base else 20)
    assert typed(capsys, *MEASURE)[0] == 2
    assert typed(capsys, *MEASURE, "--anyway")[0] == 0
    code, found, _ = typed(capsys, *GATE)
    assert code == 4
    assert [reason for reason in found["reasons"] if "steps" in reason]


def test_a_setting_by_hand_does_not_go_before_what_the_clips_say(home: Path, capsys: Capture) -> None:
    both(home, "c0.mp4", "c0.mp4", 0)
    error = refused(capsys, 2, "settings-differ", "--setting", "steps=40")
    assert (error["where"], error["expected"], error["found"]) == ("ours/c0.mp4", "steps 40", "6")


def test_clips_of_other_names_are_paired_by_prompt_and_seed(home: Path, capsys: Capture) -> None:
    for index in range(2):
        both(home, f"delta_{index}.mp4", f"{7 - index:03}.mp4", index, noise=10 * (index + 1))
    code, found, err = typed(capsys, *MEASURE)
    assert code == 0
    assert found["pairs"]["by_tags"] == [
        {"clip": "delta_0", "reference": "007"}, {"clip": "delta_1", "reference": "006"},
    ]  # fmt: skip
    assert (found["pairs"]["measured"], found["pairs"]["confirmed"], found["pairs"]["by_name"]) == (2, 2, 0)
    assert "paired by prompt and seed: delta_0 and 007" in err
    assert "by their names alone" not in err
    psnr = next(one for one in found["variant"]["scores"] if one["metric"] == "psnr")
    assert psnr["mean"] > 25  # of other clips it would be below 15
    code, gated, _ = typed(capsys, *GATE)
    assert (code, gated["reasons"]) == (0, [])  # the gate puts the same clips together
    base = hfq.open_registry().get("m@good").base.id
    compared = typed(capsys, "compare", "m@good", f"base:{base}")[1]
    assert [one["overall"]["videos"] for one in compared["metrics"]] == [2, 2, 2]


def test_what_the_registry_knows_of_a_clip_without_a_tag_pairs_it(home: Path, capsys: Capture) -> None:
    both(home, "tagged.mp4", "base_0.mp4", 0)
    hfq.open_registry().record_clip(home / "ours" / "tagged.mp4", made_by(home, 0, of_base=False))
    remux(home / "ours" / "tagged.mp4", home / "ours" / "plain.mp4")
    (home / "ours" / "tagged.mp4").unlink()
    code, found, _ = typed(capsys, *MEASURE)
    assert (code, found["pairs"]["by_tags"]) == (0, [{"clip": "plain", "reference": "base_0"}])


def test_pairs_that_nothing_confirms_are_said_to_be_by_name(home: Path, capsys: Capture) -> None:
    both(home, "c0.mp4", "c0.mp4", 0)
    both(home, "tagged.mp4", "c1.mp4", 1)
    remux(home / "ours" / "tagged.mp4", home / "ours" / "c1.mp4")
    (home / "ours" / "tagged.mp4").unlink()
    code, found, err = typed(capsys, *MEASURE)
    assert (code, found["pairs"]["confirmed"], found["pairs"]["by_name"]) == (0, 1, 1)
    assert "1 of 2 pairs are by their names alone" in err
    # The prompt that one of them says is the prompt of both.
    assert [one["known_prompts"] for one in found["base"]["scores"]] == [2, 2, 2]


def test_a_name_with_the_prompt_before_it_was_rewritten_does_not_contradict(home: Path, capsys: Capture) -> None:
    for folder, of_base in (("ours", False), ("base", True)):
        (home / folder).mkdir()
        clip(home / "x.mp4", 0, made_by(home, 0, of_base=of_base), 0 if of_base else 20)
        if of_base:
            remux(home / "x.mp4", home / folder / "a cat runs-0.mp4")
        else:
            (home / "x.mp4").rename(home / folder / "a cat runs-0.mp4")
    assert typed(capsys, *MEASURE)[0] == 0
    base = hfq.open_registry().get("m@good").base.id
    assert typed(capsys, "compare", "m@good", f"base:{base}", "--anyway")[0] == 0


def test_two_variants_measured_with_other_seeds_are_not_compared(home: Path, capsys: Capture) -> None:
    make_delta(home / "late", seed="late")
    hfq.open_registry().register(home / "late", aliases=["m@late"])
    both(home, "c0.mp4", "c0.mp4", 0)
    assert typed(capsys, *MEASURE)[0] == 0
    (home / "other").mkdir()
    (home / "otherbase").mkdir()
    late = replace(made_by(home, 0, of_base=False, seed=9), delta=hfq.open_registry().resolve("m@late"))
    clip(home / "other" / "c0.mp4", 5, late, 20)
    clip(home / "otherbase" / "c0.mp4", 5, made_by(home, 0, of_base=True, seed=9))
    measure = ("score", "measure", "m@late", "--clips", "other", "--reference", "otherbase")
    assert typed(capsys, *measure)[0] == 0
    code, found, _ = typed(capsys, "compare", "m@good", "m@late")
    assert (code, found["error"]["code"]) == (2, "not-comparable")
    assert "seed 0 against 9" in found["error"]["found"]


LEFT_OVER = (".000.1234.partial.mp4", "001.partial.mp4", "._c0.mp4", ".hidden.mkv", "002.PARTIAL.mp4")


def test_left_overs_are_named_and_not_measured(home: Path, capsys: Capture) -> None:
    both(home, "c0.mp4", "c0.mp4", 0)
    for name in LEFT_OVER:
        (home / "ours" / name).write_bytes(b"half of a clip")
    code, found, err = typed(capsys, *MEASURE)
    assert code == 0
    assert found["pairs"]["left_over"] == sorted(f"ours/{name}" for name in LEFT_OVER)
    for name in LEFT_OVER:
        assert f"left out, hidden or unfinished: ours/{name}" in err


@pytest.mark.parametrize(
    ("one", "other"),
    [("a b.mp4", "a_b.mp4"), ("c0.mp4", "c0.mkv"), ("c0.mp4", "c0.MP4"), ("videos 1.mp4", "frames_1.mp4")],
)  # fmt: skip
def test_names_that_scores_cannot_tell_apart_are_both_given(home: Path, capsys: Capture, one: str, other: str) -> None:
    both(home, one, one, 0)
    (home / "ours" / other).write_bytes((home / "ours" / one).read_bytes())
    error = refused(capsys, 1, "malformed")
    assert error["found"] == " and ".join(sorted((one, other)))


def test_a_list_of_other_files_is_not_the_clip_that_it_names(home: Path, capsys: Capture) -> None:
    both(home, "c0.mp4", "c0.mp4", 0)
    (home / "ours" / "c0.mp4").rename(home / "elsewhere.mp4")
    (home / "ours" / "c0.mp4").write_text(f"ffconcat version 1.0\nfile {home}/elsewhere.mp4\n")
    error = refused(capsys, 1, "not-a-clip")
    assert error["where"] == "ours/c0.mp4"


NUMBERED = ("video-{:03}", "video_{:03}", "video.{:03}", "clip 12-{:03}", "clip {}-3", "seed42-{}", "2026-11-{:02}",
            "0b5e8f7e-3f1c-4c1e-9a55-{:012}", "my video-{}")  # fmt: skip


@pytest.mark.parametrize("form", NUMBERED)
def test_numbered_clips_are_of_no_known_prompt_and_each_counts(home: Path, capsys: Capture, form: str) -> None:
    names = [form.format(number) for number in range(1, 41)]
    listed = [entry(name, 0.9 + n / 1000) for n, name in enumerate(names)]
    write(home / "run.json", {"subject_consistency": [0.92, listed]})
    code, found, err = typed(capsys, "score", "import", "m@good", "run.json")
    assert code == 0
    score = found["scores"][0]
    assert (score["videos"], score["known_prompts"], score["of_unknown_prompt"]) == (40, 0, 40)
    assert "nobody knows which prompt 40 videos" in err
    assert run(["score", "import", "m@good", "run.json", "--of-base"]) == 0
    (home / "policy.toml").write_text(
        (home / "policy.toml").read_text().replace('"temporal_flicker"', '"subject_consistency"')
        .replace('["hfq"]', '["vbench"]').replace('content_class = "required"', 'content_class = "optional"')
        .replace("each_category = true", "each_category = false")
        .replace("min_videos = 2", "min_videos = 40").replace("min_prompts = 2", "min_prompts = 40")
    )  # fmt: skip
    gated = typed(capsys, "gate", "m@good", "--workload", "still", "--policy", "policy.toml")[1]
    prompts = next(check for check in gated["checks"] if check["kind"] == "prompts")
    assert (prompts["found"], prompts["passed"]) == (40, True)
    capsys.readouterr()
    assert run(["show", "m@good"]) == 0
    assert "prompts      0 known; 40 videos of no known prompt" in capsys.readouterr().out


def test_a_measured_clip_with_a_tag_is_of_its_prompt_whatever_its_name(home: Path, capsys: Capture) -> None:
    for index in range(2):
        both(home, f"video-{index:03}.mp4", f"video-{index:03}.mp4", index)
    found = typed(capsys, *MEASURE)[1]
    assert {(one["known_prompts"], one["of_unknown_prompt"]) for one in found["variant"]["scores"]} == {(2, 0)}

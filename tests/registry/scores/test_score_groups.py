"""Which videos are of one prompt, and which video of one side is the same clip on the other."""

from __future__ import annotations

from typing import Any

import pytest
from score_files import metric

from hfq.registry.scores.full_info import make_video, make_videos
from hfq.registry.scores.paired import compare, pair_scores, retained
from hfq.registry.scores.values import MetricScores, VideoScore, prompt_hash
from hfq.schema.errors import NotComparableError


def test_videos_of_one_prompt_are_one_group_whatever_their_names() -> None:
    """Ten samples of one prompt are no ten prompts, and no bound may be as narrow as if they were."""
    prompt, other = "a" * 64, "b" * 64

    def side(shift: float) -> MetricScores:
        of_one = [VideoScore(f"clip {n}", prompt, None, None, 0.5 + shift * n) for n in range(10)]
        return metric([*of_one, VideoScore("another", other, None, None, 0.5)])

    paired = pair_scores(side(0.01), side(0.0))
    assert {pair.group for pair in paired.pairs} == {prompt, other}
    found = compare(paired)
    assert (found.overall.videos, found.overall.prompts) == (11, 2)
    assert retained(paired.pairs, "higher").prompts == 2


def test_names_that_only_look_alike_are_groups_of_their_own() -> None:
    names = [f"video-{n:03}" for n in range(40)]
    paired = pair_scores(metric(dict.fromkeys(names, 0.5)), metric(dict.fromkeys(names, 0.4)))
    assert compare(paired).overall.prompts == 40


def test_what_one_side_knows_of_a_prompt_holds_for_both() -> None:
    known = [VideoScore(f"video-{n}", "ab"[n % 2] * 64, None, n, 0.5) for n in range(6)]
    unknown = [VideoScore(f"video-{n}", None, None, n, 0.5) for n in range(6)]
    for sides in ((known, unknown), (unknown, known)):
        paired = pair_scores(metric(sides[0]), metric(sides[1]))
        assert compare(paired).overall.prompts == 2
        assert {pair.prompt_sha256 for pair in paired.pairs} == {"a" * 64, "b" * 64}


def test_clips_of_other_names_are_paired_by_prompt_and_seed_alone() -> None:
    def seeded(name: str, prompt: str | None, seed: int | None, value: float) -> VideoScore:
        return VideoScore(name, None if prompt is None else prompt * 64, None, None, value, seed)

    ours = [seeded("x", "a", 1, 0.1), seeded("y", "a", 2, 0.2), seeded("z", "b", None, 0.3), seeded("n", None, 5, 0.4)]
    theirs = [
        seeded("1", "a", 2, 0.5),
        seeded("2", "a", 1, 0.6),
        seeded("3", "b", None, 0.7),
        seeded("4", None, 5, 0.8),
    ]
    found = pair_scores(metric(ours), metric(theirs))
    assert [(pair.stem, pair.first, pair.second) for pair in found.pairs] == [("x", 0.1, 0.6), ("y", 0.2, 0.5)]
    assert (found.only_first, found.only_second) == (("n", "z"), ("3", "4"))
    # Two clips of one prompt and seed on a side: neither is taken for the other's.
    twice = [seeded("p", "a", 1, 0.1), seeded("q", "a", 1, 0.2)]
    with pytest.raises(NotComparableError, match="no video in common"):
        pair_scores(metric(twice), metric([seeded("r", "a", 1, 0.3)]))
    sampled = [seeded("p-0", "a", 1, 0.1), seeded("p-1", "a", 1, 0.2)]
    other = [seeded("r-1", "a", 1, 0.3), seeded("r-0", "a", 1, 0.4)]
    assert [(pair.first, pair.second) for pair in pair_scores(metric(sampled), metric(other)).pairs] == [
        (0.1, 0.4), (0.2, 0.3),
    ]  # fmt: skip


@pytest.mark.parametrize("what", [{"prompt": "b"}, {"seed": 4}])
def test_one_name_for_two_scenes_is_no_comparison(what: dict[str, Any]) -> None:
    def one(prompt: str = "a", seed: int = 3) -> MetricScores:
        return metric([VideoScore("x", prompt * 64, None, None, 0.5, seed)])

    with pytest.raises(NotComparableError, match=r"x is not the same clip on both sides: (prompt|seed)"):
        pair_scores(one(), one(**what))


@pytest.mark.parametrize(
    ("stem", "prompt"),
    [
        ("a cat runs-0", "a cat runs"), ("a cat runs-24", "a cat runs"), ("a cat, 3.5 km/h-4", "a cat, 3.5 km/h"),
        ("prompt 3-0", "prompt 3"), ("video-000", None), ("video_000", None), ("video.000", None), ("clip 12-3", None),
        ("My Video 3-1", None), ("a cat runs", None), ("a cat runs-000", None), ("a_cat_runs-0", None), ("cat-0", None),
        ("2026-11-30", None), ("take 2026-11-3", None), ("seed42-1", None), ("12 34-5", None), ("", None), ("-1", None),
        ("scene 1-3", None), ("result 7-0", None), ("Wan2.2 1-4", None), ("my demo no. 4-2", None),
        ("0b5e8f7e-3f1c-4c1e-9a55-000000000001", None),
    ],
)  # fmt: skip
def test_which_names_hold_a_prompt(stem: str, prompt: str | None) -> None:
    assert make_video(stem, 0.5, None).prompt_sha256 == (None if prompt is None else prompt_hash(prompt))


def test_a_long_numbered_series_is_no_prompt() -> None:
    long = make_videos([(f"holiday in spain-{n}", 0.5) for n in range(40)], None)
    assert {video.prompt_sha256 for video in long} == {None}
    short = make_videos([(f"a cat runs-{n}", 0.5) for n in range(25)], None)
    assert {video.prompt_sha256 for video in short} == {prompt_hash("a cat runs")}

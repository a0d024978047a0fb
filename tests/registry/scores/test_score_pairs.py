"""Paired differences, retained shares and where they have bounds; settings; overlap."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_files import metric, pairs, videos

from hfq.registry.scores.intervals import mean_interval, ratio_bound, unseen_share
from hfq.registry.scores.overlap import find_overlap
from hfq.registry.scores.paired import Pair, compare, pair_scores, retained
from hfq.registry.scores.ranges import limits_of
from hfq.registry.scores.settings import compare_settings, require_alike
from hfq.registry.scores.values import (
    Measurement,
    ReviewOutcome,
    VideoScore,
    count_reviews,
    prompt_hash,
    set_labels,
    set_name,
    video_stem,
)
from hfq.schema.errors import DuplicateVideoError, MeasurementError, NotComparableError, SettingsDifferError

RNG = np.random.default_rng(11)


# --- differences -----------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_its_differences_within_the_range_of_the_metric() -> None:
    first, second = RNG.uniform(0.4, 0.7, 24), RNG.uniform(0.8, 0.9, 24)
    found = compare(pairs(first.tolist(), second.tolist())).overall
    assert (found.videos, found.prompts, found.no_interval) == (24, 24, None)
    assert (found.mean_first, found.mean_second) == pytest.approx((first.mean(), second.mean()))
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert found.interval is not None
    # Scores in 0..1 differ by at most 1.
    assert (found.interval.low, found.interval.high) == mean_interval(first - second, (-1.0, 1.0), 0.95)
    cosines = compare(pairs(first.tolist(), second.tolist(), name="overall_consistency")).overall.interval
    assert cosines is not None
    assert (cosines.low, cosines.high) == mean_interval(first - second, (-2.0, 2.0), 0.95)


def test_the_interval_of_many_videos_is_the_normal_one_and_what_can_hide() -> None:
    first, second = RNG.normal(0.6, 0.1, 2000), RNG.normal(0.9, 0.02, 2000)
    interval = compare(pairs(first.tolist(), second.tolist())).overall.interval
    differences = first - second
    error = 1.96 * differences.std() / math.sqrt(2000)
    assert interval is not None
    assert interval.low == pytest.approx(differences.mean() - error - 0.7 / 2000, abs=0.1 * error)
    assert interval.high == pytest.approx(differences.mean() + error + 1.3 / 2000, abs=0.1 * error)


def test_pairing_takes_out_what_prompts_have_in_common() -> None:
    base = RNG.uniform(0.2, 0.9, 30)
    apart = compare(pairs(RNG.permutation(base - 0.05).tolist(), base.tolist())).overall.interval
    paired = compare(pairs((base - 0.05).tolist(), base.tolist())).overall.interval
    assert apart is not None
    assert paired is not None
    assert paired.high - paired.low < apart.high - apart.low
    assert paired.low < -0.05 < paired.high


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (pairs([0.5] * 19, [0.6] * 19), "19 prompts, 20 needed"),
        (pairs([0.5] * 20, [0.6] * 20, suite="opens2v", name="motion_fb"), "the range of the metric is not known"),
        (pairs([0.5] * 20, [0.6] * 20, suite="hfq-features:x", name="y"), "the range of the metric is not known"),
        (pairs([1.5] * 20, [0.6] * 20), "a value outside the range of the metric"),
    ],
)
def test_no_interval_that_would_claim_too_much(made: Any, why: str) -> None:
    found = compare(made).overall
    assert (found.interval, found.no_interval) == (None, why)
    share = retained(made.pairs, "higher", limits=limits_of(made.metric_suite, made.metric))
    assert (share.lower, share.no_bound) == (None, why)
    assert share.ratio is not None


def test_samples_of_one_prompt_are_no_more_evidence_than_one() -> None:
    values = {f"prompt number {i}": (a, b) for i, (a, b) in enumerate(RNG.uniform(0.3, 0.9, (22, 2)).tolist())}
    once = [metric({f"{name}-0": pair[side] for name, pair in values.items()}) for side in (0, 1)]
    often = [metric({f"{name}-{k}": pair[side] for name, pair in values.items() for k in range(5)}) for side in (0, 1)]
    single, copied = compare(pair_scores(*once)).overall, compare(pair_scores(*often)).overall
    assert (copied.videos, copied.prompts) == (110, 22)
    assert copied.mean == pytest.approx(single.mean)
    assert copied.interval is not None
    assert single.interval is not None
    assert (copied.interval.low, copied.interval.high) == pytest.approx((single.interval.low, single.interval.high))
    few = [metric({f"{name}-{k}": 0.5 for name in list(values)[:19] for k in range(5)}) for _ in (0, 1)]
    assert retained(pair_scores(*few).pairs, "higher", limits=(0.0, 1.0)).no_bound == "19 prompts, 20 needed"


def test_each_prompt_counts_once_however_many_samples_it_has() -> None:
    groups = [[(0.1, 0.9), (0.2, 0.9), (0.3, 0.9)], [(0.8, 0.9)], [(0.5, 0.7), (0.6, 0.7)], [(0.4, 0.5)]]
    sides = [
        metric({f"prompt {g}-{k}": pair[side] for g, group in enumerate(groups) for k, pair in enumerate(group)})
        for side in (0, 1)
    ]
    found = compare(pair_scores(*sides)).overall
    assert (found.videos, found.prompts) == (7, 4)
    assert (found.mean_first, found.mean_second) == pytest.approx(((0.2 + 0.8 + 0.55 + 0.4) / 4, 0.75))
    share = retained(pair_scores(*sides).pairs, "higher")
    assert share.ratio == pytest.approx(found.mean_first / found.mean_second)


def test_categories_are_compared_apart() -> None:
    first = [
        *videos([0.5, 0.7], category="animal"),
        *videos([0.2], category="food", prefix="f"),
        *videos([1], prefix="x"),
    ]
    second = [*videos([0.6, 0.6]), *videos([0.9], prefix="f"), *videos([1], prefix="x")]
    found = compare(pair_scores(metric(first), metric(second)))
    assert list(found.by_category) == ["animal", "food"]
    assert found.by_category["animal"].mean == pytest.approx(0.0)
    food = found.by_category["food"]
    assert (food.videos, food.mean, food.interval) == (1, pytest.approx(-0.7), None)
    assert found.uncategorised == 1
    assert found.overall.videos == 4


@given(st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), min_size=20, max_size=30), st.floats(0, 0.5))
@settings(max_examples=20)
def test_swapping_sides_mirrors_and_shifting_both_changes_nothing(
    values: list[tuple[float, float]], shift: float
) -> None:
    first, second = [a for a, _ in values], [b for _, b in values]
    found = compare(pairs(first, second)).overall
    mirrored = compare(pairs(second, first)).overall
    moved = compare(pairs([a + shift for a in first], [b + shift for b in second])).overall
    assert found.interval is not None
    assert mirrored.interval is not None
    assert moved.interval is not None
    assert mirrored.mean == pytest.approx(-found.mean, abs=1e-12)
    assert (mirrored.interval.low, mirrored.interval.high) == pytest.approx(
        (-found.interval.high, -found.interval.low), abs=1e-9
    )
    # Differences that are equal up to rounding may be weighed in another order.
    assert (moved.interval.low, moved.interval.high) == pytest.approx(
        (found.interval.low, found.interval.high), abs=1e-9
    )


def test_the_same_scores_give_the_same_interval_in_any_order() -> None:
    first, second = (videos(RNG.uniform(0.3, 0.9, 25).tolist()) for _ in (0, 1))
    there = compare(pair_scores(metric(first), metric(second)))
    back = compare(pair_scores(metric(first[::-1]), metric(second[::-1])))
    assert there == back


# --- retained share --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_the_bound_takes_the_worst_of_one_more_prompt(direction: Any) -> None:
    """The lowest value of the numerator and the highest of the denominator, whichever side these are."""
    first, second = RNG.uniform(0.4, 0.7, 25), RNG.uniform(0.8, 0.95, 25)
    found = retained(pairs(first.tolist(), second.tolist()).pairs, direction, limits=(0.0, 1.0), confidence=0.9)
    above, below = (first, second) if direction == "higher" else (second, first)
    assert found.ratio == pytest.approx(above.mean() / below.mean())
    assert found.lower == ratio_bound(above, below, (0.0, 1.0), 0.9)
    assert found.lower is not None
    assert found.lower < found.ratio


def test_a_constant_share_has_the_bound_that_a_collapse_out_of_sight_leaves() -> None:
    base = [0.9] * 100
    found = retained(pairs([0.97 * 0.9] * 100, base).pairs, "higher", limits=(0.0, 1.0))
    hidden = unseen_share(100, 0.95)
    assert found.ratio == pytest.approx(0.97)
    assert found.lower == pytest.approx(0.97 * 0.9 * (1 - hidden) / (0.9 * (1 - hidden) + hidden), abs=0.001)


@pytest.mark.parametrize(
    ("first", "second", "ratio", "why"),
    [
        ([], [], None, "no video"),
        ([0.5], [1.0], 0.5, "1 prompts, 20 needed"),
        ([0.5, 0.5], [0.0, 0.0], None, "the mean to hold it against is not above 0"),
        ([0.5, 0.5], [1.0, -1.0], None, "the mean to hold it against is not above 0"),
        ([0.5] * 20, [1.0] * 11 + [-1.0] * 9, 5.0, "the mean to hold it against may be 0 or less"),
        ([-1.0, -1.0], [1.0, 1.0], -1.0, "2 prompts, 20 needed"),
    ],
)
def test_a_share_without_meaning_or_bound_says_why(
    first: list[float], second: list[float], ratio: Any, why: str
) -> None:
    made = tuple(Pair(f"{i}", f"{i}", None, None, a, b) for i, (a, b) in enumerate(zip(first, second, strict=True)))
    found = retained(made, "higher", limits=(-1.0, 1.0))
    assert (found.ratio, found.lower, found.no_bound) == (None if ratio is None else pytest.approx(ratio), None, why)


# --- pairing ---------------------------------------------------------------------------------------------------------


def test_videos_are_matched_by_normalised_stem() -> None:
    listed = metric({"a cat with videos-0": 0.5, "only here-0": 0.1})
    rewritten = metric({"a_cat_with_frames-0": 0.9, "only_there-1": 0.2})
    found = pair_scores(listed, rewritten)
    assert [(pair.stem, pair.first, pair.second) for pair in found.pairs] == [("a cat with videos-0", 0.5, 0.9)]
    assert (found.only_first, found.only_second) == (("only here-0",), ("only_there-1",))
    assert found.pairs[0].prompt_sha256 == hashlib.sha256(b"a cat with videos").hexdigest()
    back = pair_scores(rewritten, listed)
    assert back.pairs[0].prompt_sha256 == found.pairs[0].prompt_sha256
    assert back.pairs[0].group == found.pairs[0].group


@pytest.mark.parametrize(
    "other",
    [
        metric({"a": 1.0}, name="color"),
        metric({"a": 1.0}, suite="vbench-i2v"),
        metric({"a": 1.0}, direction="lower"),
        metric({"a": 1.0}, prompt_set="yours"),
        metric({"a": 1.0}),
        metric({"b": 1.0}),
        metric({}),
        metric([VideoScore("a", "0" * 64, None, None, 1.0)]),
    ],
)
def test_what_is_not_the_same_measure_is_not_compared(other: Any) -> None:
    with pytest.raises(NotComparableError):
        pair_scores(metric([VideoScore("a", "1" * 64, None, None, 1.0)], prompt_set="mine"), other)


@pytest.mark.parametrize("sides", [(None, "mine"), ("mine", None), ("mine", "yours")])
def test_prompt_sets_are_never_joined_and_no_name_is_a_set_of_its_own(sides: tuple[str | None, str | None]) -> None:
    first, second = (metric({"a": 1.0}, prompt_set=name) for name in sides)
    with pytest.raises(NotComparableError, match=f"expected {set_name(sides[1])}, found {set_name(sides[0])}"):
        pair_scores(first, second)
    assert pair_scores(second, second).prompt_set == sides[1]


def test_sets_that_are_shown_together_have_labels_of_their_own() -> None:
    assert set_labels([None, None]) == {None: ""}
    labels = set_labels([None, "mine", "yours", "no prompt set named"])
    assert len(set(labels.values())) == 4
    assert all(labels.values())


def test_two_videos_that_no_other_file_could_tell_apart() -> None:
    with pytest.raises(DuplicateVideoError):
        metric({"a b": 1.0, "a_b": 1.0})


@pytest.mark.parametrize(
    ("path", "stem"),
    [("/v/a.b.mp4", "a.b"), ("C:\\v\\a.MP4", "a"), ("v/a\\b.gif", "a\\b"), ("frames/a_3.5/", "a_3.5"), ("", "")],
)
def test_stems(path: str, stem: str) -> None:
    assert video_stem(path) == stem


# --- settings --------------------------------------------------------------------------------------------------------

RUN = {"guidance": 3.5, "guidance_2": 4.0, "steps": 40, "shift": 5.0, "frames": 81, "height": 480, "width": 832}
RUN |= {"scheduler": "unipc", "seed": 1}


def test_other_guidance_steps_or_shift_is_no_comparison() -> None:
    assert compare_settings(RUN, dict(RUN)) == ()
    other = RUN | {"guidance": 5.0, "steps": 50, "shift": 3.0, "seed": 2, "host": "x"}
    found = compare_settings(RUN, other)
    assert [(part.name, part.kind) for part in found] == [
        ("guidance", "decisive"), ("shift", "decisive"), ("steps", "decisive"), ("host", "minor"), ("seed", "minor"),
    ]  # fmt: skip
    with pytest.raises(
        SettingsDifferError, match=r"guidance: 3.5 against 5.0; shift: .*; steps: 40 against 50"
    ) as caught:
        require_alike(found)
    assert caught.value.exit_code == 2
    require_alike(compare_settings(RUN, RUN | {"seed": 3}))


def test_what_neither_side_records_is_said_and_not_refused() -> None:
    found = compare_settings({"steps": 40}, {"steps": 40, "host": "x"})
    kinds = {part.name: part.kind for part in found}
    assert kinds["guidance"] == "unknown"
    assert kinds["host"] == "minor"
    assert "boundary" not in kinds
    require_alike(found)


@pytest.mark.parametrize("swapped", [False, True])
def test_what_one_side_alone_records_is_refused(swapped: bool) -> None:
    sides = [{"steps": 40, "first_frame": "blank"}, {"steps": 40}]
    found = compare_settings(*(sides[::-1] if swapped else sides))
    (blocking,) = [part for part in found if part.kind == "one-sided"]
    words = "first_frame: not recorded against blank" if swapped else "first_frame: blank against not recorded"
    assert (found[0], str(blocking)) == (blocking, words)
    with pytest.raises(SettingsDifferError, match=f"does not record .*{words}; .*--setting") as caught:
        require_alike(found)
    assert caught.value.exit_code == 2


# --- overlap, reviews, measurements ----------------------------------------------------------------------------------


def test_prompts_seen_before_are_found_by_hash() -> None:
    a, b, c = (prompt_hash(text) for text in "abc")
    found = find_overlap([a, a, b, None, c], calibration={a, "f" * 64}, selection=[b])
    assert (found.prompts, found.unhashed) == (3, 1)
    assert (found.calibration, found.selection, found.seen) == ((a,), (b,), frozenset((a, b)))
    assert str(found) == ("of 3 prompts 1 are in the calibration and 1 in the selection; unknown for 1 videos")
    assert find_overlap([], [a]).seen == frozenset()


def test_a_clip_is_accepted_when_everyone_accepts_it() -> None:
    outcomes = [
        ReviewOutcome("a b", True), ReviewOutcome("a_b", False), ReviewOutcome("a b", True), ReviewOutcome("c", True),
        ReviewOutcome("other", True),
    ]  # fmt: skip
    counts = count_reviews(outcomes, ["a b", "c", "d"])
    assert (counts.clips, counts.reviewed, counts.accepted, counts.by_prompt) == (3, 2, 1, ())


def test_reviews_of_clips_of_one_prompt_are_counted_together() -> None:
    outcomes = [ReviewOutcome(stem, stem != "b 1") for stem in ("a 1", "a 2", "b 1", "b 2", "c")]
    counts = count_reviews(outcomes, [one.stem for one in outcomes], {"a 1": "A", "a 2": "A", "b 1": "B", "b_2": "B"})
    assert (counts.reviewed, counts.accepted, counts.by_prompt) == (5, 4, (1.0, 0.5, 1.0))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_measurement_is_finite_and_positive(value: float) -> None:
    with pytest.raises(MeasurementError, match="s/clip"):
        Measurement("latency", value, "H200", "real", {})

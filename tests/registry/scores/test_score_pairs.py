"""Paired differences and their intervals against enumeration and normal theory; settings; overlap."""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from score_files import metric, pairs, videos

from hfq.registry.scores.overlap import find_overlap
from hfq.registry.scores.paired import Pair, compare, pair_scores, retained
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


def exact(groups: list[list[tuple[float, float]]], statistic: Callable[[float, float], float]) -> list[float]:
    """The statistic of every way to draw as many groups as there are, sorted: what a bootstrap samples from."""
    result = []
    for draw in itertools.product(groups, repeat=len(groups)):
        drawn = [pair for group in draw for pair in group]
        result.append(statistic(statistics.fmean(a for a, _ in drawn), statistics.fmean(b for _, b in drawn)))
    return sorted(result)


def quantile(values: list[float], share: float) -> tuple[float, float]:
    """Neighbours of a quantile: 10,000 draws land within 1 % of the distribution around it."""
    size = len(values)
    return values[max(0, math.floor((share - 0.01) * size))], values[min(size - 1, math.ceil((share + 0.01) * size))]


# --- differences -----------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_all_resamples() -> None:
    first, second = [0.52, 0.61, 0.70, 0.55, 0.44], [0.90, 0.93, 0.91, 0.95, 0.85]
    found = compare(pairs(first, second)).overall
    everything = exact([[pair] for pair in zip(first, second, strict=True)], lambda a, b: a - b)
    assert (found.videos, found.prompts) == (5, 5)
    assert (found.mean_first, found.mean_second) == pytest.approx((0.564, 0.908))
    assert found.mean == pytest.approx(statistics.fmean(first) - statistics.fmean(second))
    assert found.interval is not None
    for end, share in ((found.interval.low, 0.025), (found.interval.high, 0.975)):
        low, high = quantile(everything, share)
        assert low - 1e-12 <= end <= high + 1e-12


def test_the_interval_of_many_videos_is_the_normal_one() -> None:
    first, second = RNG.normal(0.6, 0.1, 400).tolist(), RNG.normal(0.9, 0.05, 400).tolist()
    interval = compare(pairs(first, second)).overall.interval
    differences = [a - b for a, b in zip(first, second, strict=True)]
    error = 1.96 * statistics.stdev(differences) / 20
    assert interval is not None
    assert interval.low == pytest.approx(statistics.fmean(differences) - error, abs=0.05 * error)
    assert interval.high == pytest.approx(statistics.fmean(differences) + error, abs=0.05 * error)


def test_pairing_takes_out_what_prompts_have_in_common() -> None:
    base = RNG.uniform(0.2, 0.9, 30)
    interval = compare(pairs((base - 0.05).tolist(), base.tolist())).overall.interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((-0.05, -0.05))


def test_samples_of_one_prompt_are_drawn_together() -> None:
    """Five copies of a video are no more evidence than one."""
    values = {f"prompt number {i}": (a, b) for i, (a, b) in enumerate(RNG.uniform(0.3, 0.9, (8, 2)).tolist())}
    once = [metric({f"{name}-0": pair[side] for name, pair in values.items()}) for side in (0, 1)]
    often = [metric({f"{name}-{k}": pair[side] for name, pair in values.items() for k in range(5)}) for side in (0, 1)]
    single, copied = compare(pair_scores(*once)).overall, compare(pair_scores(*often)).overall
    assert (copied.videos, copied.prompts) == (40, 8)
    assert copied.mean == pytest.approx(single.mean)
    assert copied.interval is not None
    assert single.interval is not None
    assert (copied.interval.low, copied.interval.high) == pytest.approx((single.interval.low, single.interval.high))


def test_prompts_of_unequal_numbers_of_samples() -> None:
    groups = [[(0.1, 0.9), (0.2, 0.9), (0.3, 0.9)], [(0.8, 0.9)], [(0.5, 0.7), (0.6, 0.7)], [(0.4, 0.5)]]
    sides = [
        metric({f"prompt {g}-{k}": pair[side] for g, group in enumerate(groups) for k, pair in enumerate(group)})
        for side in (0, 1)
    ]
    found = compare(pair_scores(*sides)).overall
    everything = exact(groups, lambda a, b: a - b)
    assert found.interval is not None
    for end, share in ((found.interval.low, 0.025), (found.interval.high, 0.975)):
        low, high = quantile(everything, share)
        assert low - 1e-12 <= end <= high + 1e-12


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


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12),
    st.floats(-5, 5),
)
def test_swapping_sides_mirrors_and_shifting_one_shifts(values: list[tuple[float, float]], shift: float) -> None:
    first, second = [a for a, _ in values], [b for _, b in values]
    found = compare(pairs(first, second), resamples=200).overall
    mirrored = compare(pairs(second, first), resamples=200).overall
    moved = compare(pairs([a + shift for a in first], second), resamples=200).overall
    assert found.interval is not None
    assert mirrored.interval is not None
    assert moved.interval is not None
    assert mirrored.mean == pytest.approx(-found.mean, abs=1e-12)
    assert (mirrored.interval.low, mirrored.interval.high) == pytest.approx(
        (-found.interval.high, -found.interval.low), abs=1e-9
    )
    assert (moved.interval.low, moved.interval.high) == pytest.approx(
        (found.interval.low + shift, found.interval.high + shift), abs=1e-9
    )


def test_the_same_scores_give_the_same_interval_in_any_order() -> None:
    first, second = videos([0.3, 0.9, 0.5, 0.7]), videos([0.4, 0.8, 0.9, 0.9])
    there = compare(pair_scores(metric(first), metric(second)))
    back = compare(pair_scores(metric(first[::-1]), metric(second[::-1])))
    assert there == back


def test_more_prompts_than_fit_in_one_block() -> None:
    interval = compare(pairs(RNG.normal(0, 1, 3000).tolist(), [0.0] * 3000), resamples=1000).overall.interval
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / math.sqrt(3000), rel=0.15)


# --- retained share --------------------------------------------------------------------------------------------------


def test_the_lower_bound_is_that_of_all_resamples() -> None:
    first, second = [0.52, 0.61, 0.70, 0.55, 0.44], [0.90, 0.93, 0.91, 0.95, 0.85]
    drawn = [[pair] for pair in zip(first, second, strict=True)]
    found = retained(pairs(first, second).pairs, "higher", confidence=0.9)
    assert found.ratio == pytest.approx(statistics.fmean(first) / statistics.fmean(second))
    assert found.lower is not None
    low, high = quantile(exact(drawn, lambda a, b: a / b), 0.1)
    assert low - 1e-12 <= found.lower <= high + 1e-12
    swapped = retained(pairs(first, second).pairs, "lower", confidence=0.9)
    assert swapped.ratio == pytest.approx(statistics.fmean(second) / statistics.fmean(first))
    low, high = quantile(exact(drawn, lambda a, b: b / a), 0.1)
    assert swapped.lower is not None
    assert low - 1e-12 <= swapped.lower <= high + 1e-12


def test_a_constant_share_has_no_spread() -> None:
    base = RNG.uniform(0.4, 0.9, 25)
    found = retained(pairs((0.97 * base).tolist(), base.tolist()).pairs, "higher")
    assert (found.ratio, found.lower) == pytest.approx((0.97, 0.97))


@pytest.mark.parametrize(
    ("first", "second", "ratio", "bound"),
    [
        ([], [], None, None),
        ([0.5], [1.0], 0.5, None),
        ([0.5, 0.5], [0.0, 0.0], None, None),
        ([0.5, 0.5], [1.0, -1.0], None, None),
        ([1.0, 0.0, 1.0], [1.0, 0.0, 0.0], 2.0, None),  # a resample may draw no positive base value
        ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], 0.0, 0.0),
        ([-1.0, -1.0], [1.0, 1.0], -1.0, -1.0),
    ],
)
def test_a_share_without_meaning_is_none(first: list[float], second: list[float], ratio: Any, bound: Any) -> None:
    made = tuple(Pair(f"{i}", f"{i}", None, None, a, b) for i, (a, b) in enumerate(zip(first, second, strict=True)))
    found = retained(made, "higher")
    assert (found.ratio, found.lower) == (ratio, bound)


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
        ReviewOutcome("a b", True), ReviewOutcome("a_b", False), ReviewOutcome("c", True), ReviewOutcome("other", True),
    ]  # fmt: skip
    counts = count_reviews(outcomes, ["a b", "c", "d"])
    assert (counts.clips, counts.reviewed, counts.accepted) == (3, 2, 1)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_measurement_is_finite_and_positive(value: float) -> None:
    with pytest.raises(MeasurementError, match="s/clip"):
        Measurement("latency", value, "H200", "real", {})

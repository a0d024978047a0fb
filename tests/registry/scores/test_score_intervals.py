"""Bounds of means for few prompts, against sums by hand, exact tails and independent formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfq.registry.scores.intervals import (
    DRAWS,
    draw_weights,
    mean_bound,
    mean_interval,
    prompts_needed,
    ratio_bound,
    share_bound,
    unseen_share,
)

RNG = np.random.default_rng(5)
SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=30)


def tail(hits: int, count: int, share: float) -> float:
    """Probability of `hits` or more of `count`, in exact arithmetic."""
    p = Fraction(share)
    return float(sum(math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(hits, count + 1)))


def weighed_tail(values: list[Fraction], at: Fraction) -> float:
    """P(sum of w x < at) for w ~ Dirichlet(1, ..., 1) and distinct x, in exact arithmetic: the distribution function of
    a B-spline (Curry and Schoenberg 1966).
    """
    order = len(values) - 1
    above = sum((x - at) ** order / math.prod((x - other) for other in values if other != x) for x in values if x > at)
    return float(1 - above)


@pytest.mark.parametrize(("hits", "count"), [(1, 5), (7, 10), (18, 20), (20, 20), (45, 50), (79, 80), (297, 300)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_the_bound_of_a_share_has_the_tail_that_it_claims(hits: int, count: int, confidence: float) -> None:
    assert tail(hits, count, share_bound(hits, count, confidence)) == pytest.approx(1 - confidence, rel=1e-6)


def test_no_hit_has_no_bound_above_nought_and_all_hits_leave_the_share_that_can_hide() -> None:
    assert share_bound(0, 7, 0.95) == 0
    for count in (1, 20, 59, 300):
        assert share_bound(count, count, 0.95) == pytest.approx(0.05 ** (1 / count), abs=1e-9)
        assert 1 - unseen_share(count, 0.95) == pytest.approx(0.05 ** (1 / count), abs=1e-12)


@pytest.mark.parametrize(("hits", "count"), [(20, 20), (18, 20), (30, 40), (76, 80), (5, 20)])
def test_the_bound_of_yes_and_no_is_that_of_a_share(hits: int, count: int) -> None:
    values = [1.0] * hits + [0.0] * (count - hits)
    assert mean_bound(values, 0.0, 0.95) == pytest.approx(share_bound(hits, count, 0.95), abs=0.004)


@pytest.mark.parametrize("count", [3, 8, 20])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_bound_is_a_quantile_of_the_weighed_mean(count: int, confidence: float) -> None:
    values = RNG.uniform(0.3, 0.9, count)
    exact = [Fraction(0), *map(Fraction, values.tolist())]
    found = weighed_tail(exact, Fraction(mean_bound(values, 0.0, confidence)))
    # Four standard deviations of a share of the draws.
    assert found == pytest.approx(1 - confidence, abs=4 * math.sqrt(confidence * (1 - confidence) / DRAWS))


def test_the_bound_of_many_prompts_is_the_normal_one() -> None:
    values = RNG.normal(0.6, 0.1, 5000)
    expected = values.mean() - 1.6449 * values.std() / math.sqrt(5000) - 0.6 / 5000
    assert mean_bound(values, 0.0, 0.95) == pytest.approx(expected, abs=0.0002)


@given(SHARES)
@settings(max_examples=30)
def test_a_bound_lies_between_the_worst_and_the_best_and_falls_with_the_worst(values: list[float]) -> None:
    found = mean_bound(values, 0.0, 0.95)
    assert 0 <= found <= max(values)
    assert mean_bound(values, -1.0, 0.95) <= found
    assert mean_bound(values, 0.0, 0.99) <= found


@given(SHARES, st.randoms())
@settings(max_examples=20)
def test_the_order_of_prompts_does_not_matter(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert mean_bound(shuffled, 0.0, 0.95) == mean_bound(values, 0.0, 0.95)


def test_both_ends_of_an_interval_are_one_sided_bounds() -> None:
    values = RNG.uniform(-0.2, 0.3, 25)
    low, high = mean_interval(values, (-1.0, 1.0), 0.95)
    assert low == mean_bound(values, -1.0, 0.975)
    assert high == -mean_bound(-values, -1.0, 0.975)
    assert low < values.mean() < high


def test_a_ratio_is_bounded_by_r_where_the_difference_from_r_times_the_base_is_bounded_by_nought() -> None:
    base = RNG.uniform(0.4, 0.8, 30)
    first = base * RNG.uniform(0.8, 1.0, 30)
    found = ratio_bound(first, base, (0.0, 1.0), 0.95)
    assert found is not None
    assert mean_bound(first - found * base, 0.0 - found, 0.95) == pytest.approx(0.0, abs=0.002)
    assert found < first.mean() / base.mean()


def test_a_base_that_may_be_nought_bounds_nothing() -> None:
    assert ratio_bound([0.3] * 20, [0.5] * 10 + [-0.1] * 10, (-1.0, 1.0), 0.95) is not None
    assert ratio_bound([0.3] * 20, [0.5] * 10 + [-0.4] * 10, (-1.0, 1.0), 0.95) is None


def test_the_prompts_that_it_takes_are_those_whose_best_bound_reaches() -> None:
    assert prompts_needed(1.0, 1.0, (0.0, 1.0), 0.95, 0.95) == 59
    assert prompts_needed(1.0, 1.0, (0.0, 1.0), 0.99, 0.95) == 299
    assert mean_bound([1.0] * 61, 0.0, 0.95) > 0.95 > mean_bound([1.0] * 57, 0.0, 0.95)
    needed = prompts_needed(0.93, 0.95, (0.0, 1.0), 0.95, 0.95)
    assert needed is not None
    for prompts, reached in ((needed - 3, False), (needed + 3, True)):
        bound = ratio_bound([0.93] * prompts, [0.95] * prompts, (0.0, 1.0), 0.95)
        assert bound is not None
        assert (bound >= 0.95) is reached
    assert prompts_needed(0.95, 1.0, (0.0, 1.0), 0.95, 0.95) is None
    assert prompts_needed(0.9, 1.0, (0.0, 1.0), 0.95, 0.95) is None
    assert prompts_needed(0.9, 0.9, (0.5, 1.0), 0.5, 0.95) == 1  # not even the worst value falls below


def test_the_weights_are_the_same_every_time_and_more_for_a_higher_confidence() -> None:
    first, again = (np.concatenate(list(draw_weights(40, 0.95))) for _ in range(2))
    assert first.shape == (DRAWS, 41)
    assert np.array_equal(first, again)
    assert sum(len(block) for block in draw_weights(20, 0.9999)) * 0.0001 >= 100
    assert sum(len(block) for block in draw_weights(1000, 0.95)) == DRAWS

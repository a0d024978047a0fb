"""Routing: the cheapest that passes, by measured cost per accepted clip, and "not measured" where it is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfq.registry.scores.gate import Check, GateResult
from hfq.registry.scores.policy import load_policy
from hfq.registry.scores.routing import Candidate, Cost, clip_costs, route
from hfq.registry.scores.values import Measurement, ReviewCounts

DRAFTS = load_policy().workload("mood-boards")
BRAND = load_policy().workload("brand-character")
SETTINGS: dict[str, Any] = {"frames": 81, "height": 480, "width": 832, "steps": 40}
PASSED = GateResult("0" * 64, "mood-boards", True, (), (), ())
FAILED = GateResult(
    "0" * 64, "mood-boards", False, (Check("metric", "color", False, None, 1.0, "color: not measured"),), (), ()
)


def latency(seconds: float, *, device: str = "H200", kernels: Any = "real", **changes: Any) -> Measurement:
    return Measurement("latency", seconds, device, kernels, SETTINGS | changes)


BASE = [latency(100.0)]
BY_MEANS = "passes by means, without a confidence bound"
AT_81 = "with frames 81, height 480, steps 40, width 832"


def clip_cost(variant: Any, escalated: Any, review: ReviewCounts | None) -> Cost:
    """The only cost."""
    (cost,) = clip_costs(variant, escalated, review)
    return cost


def candidate(
    name: str, seconds: float | None = None, accepted: int | None = None, *, gate: GateResult = PASSED, bits: Any = None
) -> Candidate:
    measured = [] if seconds is None else [latency(seconds)]
    return Candidate(name, gate, measured, None if accepted is None else ReviewCounts(100, 100, accepted), bits)


# --- cost ------------------------------------------------------------------------------------------------------------


def test_cost_per_accepted_clip_by_hand() -> None:
    cost = clip_cost([latency(40.0)], BASE, ReviewCounts(200, 50, 40))
    # 40 s for the clip, and for one in five 100 s more.
    assert (cost.clip, cost.escalated, cost.fallback) == (40.0, 100.0, pytest.approx(0.2))
    assert cost.accepted == pytest.approx(60.0)
    assert cost.break_even == pytest.approx(0.6)
    assert cost.worthwhile is True
    assert (str(cost.conditions), cost.missing) == (f"on H200 {AT_81}", ())


@given(c4=st.floats(0.1, 1000), c16=st.floats(0.1, 1000), accepted=st.integers(0, 100))
def test_below_break_even_is_cheaper_and_above_is_dearer(c4: float, c16: float, accepted: int) -> None:
    cost = clip_cost([latency(c4)], [latency(c16)], ReviewCounts(100, 100, accepted))
    assert cost.accepted is not None
    assert cost.break_even is not None
    if abs(cost.accepted - c16) > 1e-9 * c16:
        assert cost.worthwhile is (cost.accepted < c16)


@pytest.mark.parametrize(
    ("measured", "base", "words"),
    [
        ([], BASE, "latency: not measured"),
        ([latency(10, kernels="simulated")], BASE, "latency: not measured with real kernels"),
        ([latency(10)], [], "latency: not measured for the escalation target"),
        ([latency(10)], [latency(90, kernels="simulated")], "latency: not measured for the escalation target"),
        ([latency(10, device="A100")], BASE, "on one device with the same settings"),
        ([latency(10, frames=17)], BASE, "on one device with the same settings"),
        ([latency(10, offload=True)], BASE, "on one device with the same settings"),
        ([Measurement("throughput", 10, "H200", "real", SETTINGS)], BASE, "latency: not measured"),
    ],
)
def test_what_cannot_be_compared_is_not_measured(measured: Any, base: Any, words: str) -> None:
    cost = clip_cost(measured, base, ReviewCounts(10, 10, 9))
    assert (cost.clip, cost.accepted, cost.break_even, cost.worthwhile) == (None, None, None, None)
    assert words in cost.missing[0]


def test_without_reviews_the_fallback_rate_is_not_measured() -> None:
    for review in (None, ReviewCounts(100, 0, 0)):
        cost = clip_cost([latency(40.0)], BASE, review)
        assert (cost.accepted, cost.worthwhile, cost.missing) == (None, None, ("fallback rate: not measured",))
        assert cost.break_even == pytest.approx(0.6)
    for seconds in (100.0, 110.0):
        assert clip_cost([latency(seconds)], BASE, None).worthwhile is False


def test_as_dear_as_the_target_is_not_worth_its_while() -> None:
    found = route(DRAFTS, [candidate("a", 50.0, 50)], BASE)
    assert (found.costs["a"].accepted, found.costs["a"].worthwhile, found.variant) == (100.0, False, None)


def test_what_was_measured_again_was_measured_last() -> None:
    again = [latency(50.0), latency(10.0, frames=17), latency(45.0)]
    found = clip_costs(again, [*BASE, latency(20.0, frames=17)], None)
    assert [cost.clip for cost in found] == [10.0, 45.0]


def test_the_last_comparable_latency_counts_and_the_seed_does_not_matter() -> None:
    measured = [latency(50.0), latency(45.0, seed=3), latency(10.0, frames=17)]
    assert clip_cost(measured, BASE, None).clip == 45.0


# --- route -----------------------------------------------------------------------------------------------------------


def test_the_cheapest_accepted_clip_wins_not_the_fastest_clip() -> None:
    fast, good = candidate("fast", 30.0, 40), candidate("good", 50.0, 95)
    found = route(DRAFTS, [fast, good], BASE)
    # 30 + 0.6 * 100 = 90 against 50 + 0.05 * 100 = 55.
    assert found.variant == "good"
    assert found.reason == (
        f"{BY_MEANS}, and the cheapest measured: 55 s per accepted clip on H200 {AT_81}, 100 s with the escalation "
        "target"
    )
    assert found.costs["fast"].accepted == pytest.approx(90)
    assert found.notes == ("fast: passes too",)


def test_what_fails_its_gate_is_not_chosen_however_cheap() -> None:
    found = route(DRAFTS, [candidate("cheap", 1.0, 100, gate=FAILED), candidate("dear", 90.0, 100)], BASE)
    assert found.variant == "dear"
    assert found.notes == ("cheap: fails the gate: color: not measured",)


def test_the_base_when_nothing_passes() -> None:
    found = route(DRAFTS, [candidate("a", gate=FAILED)], BASE)
    assert found.variant is None
    assert found.reason == f"no variant passes the gate; the base, at 100 s per clip on H200 {AT_81}"
    assert "not measured" in route(DRAFTS, [], []).reason


def test_the_base_when_too_many_clips_are_made_again() -> None:
    found = route(DRAFTS, [candidate("a", 40.0, 35)], BASE)
    assert found.variant is None
    assert found.notes == ("a: no cheaper than the escalation target: fallback rate 65.0%, break-even 60.0%",)


def test_without_a_measured_cost_the_fewest_bits_and_it_says_so() -> None:
    found = route(DRAFTS, [candidate("b", bits=8.1), candidate("a", bits=4.6), candidate("0")], BASE)
    assert found.variant == "a"
    assert "fewest bits per weight (4.6); cost per accepted clip not measured" in found.reason
    assert "latency: not measured; fallback rate: not measured" in found.reason
    only = route(DRAFTS, [candidate("a")], BASE)
    assert only.reason.startswith(f"the only variant that {BY_MEANS}; cost per accepted clip not measured")
    assert route(DRAFTS, [candidate("b"), candidate("a")], BASE).reason.startswith(f"{BY_MEANS}, first by id")
    mixed = route(DRAFTS, [candidate("a", bits=4.6), candidate("b", 60.0, 90, bits=8.1)], BASE)
    assert (mixed.variant, "the cost of 1 others that pass is not measured" in mixed.reason) == ("b", True)


def test_a_budget_needs_a_measured_cost() -> None:
    known, unknown = candidate("known", 50.0, 90), candidate("unknown", bits=4.5)
    assert route(DRAFTS, [known, unknown], BASE, budget=60.0).variant == "known"
    found = route(DRAFTS, [known, unknown], BASE, budget=59.9)
    assert found.variant is None
    assert found.reason.endswith(f"the base, at 100 s per clip on H200 {AT_81}, over the budget of 59.9")
    assert found.notes[0] == f"known: 60 s per accepted clip on H200 {AT_81}, over the budget of 59.9"
    assert "cannot be held against the budget" in found.notes[1]


def test_a_policy_that_prefers_the_base_names_what_passes() -> None:
    found = route(BRAND, [candidate("a", 10.0, 100), candidate("b", gate=FAILED)], BASE)
    assert found.variant is None
    assert found.reason == (
        "the policy serves brand-character with the base: higher precision unless someone decides otherwise for this "
        "character"
    )
    assert found.notes[1] == "a: passes the gate and can be named by hand"


# --- what cannot be ranked -------------------------------------------------------------------------------------------

ALL = ReviewCounts(100, 100, 100)


def measured(name: str, *latencies: Measurement, bits: float | None = None) -> Candidate:
    return Candidate(name, PASSED, latencies, ALL, bits)


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        ({"frames": 33}, "on H200 with frames 33"),
        ({"steps": 20}, "on H200 with steps 20"),
        ({"height": 240}, "on H200 with height 240"),
        ({"device": "B300"}, "on B300"),
        ({"offload": True}, "on H200 with offload True"),
    ],
)
def test_seconds_of_another_device_or_of_other_clips_are_not_ranked(other: dict[str, Any], shown: str) -> None:
    """The dearer figure has the fewer bits: whoever ranks the seconds chooses the other."""
    base = [*BASE, latency(90.0, **other)]
    few, fast = measured("few", latency(80.0), bits=4.5), measured("fast", latency(30.0, **other), bits=8.0)
    for order in ([few, fast], [fast, few]):
        found = route(DRAFTS, order, base)
        assert found.variant == "few"
        assert "with the fewest bits per weight (4.5); costs cannot be ranked: " in found.reason
        assert f"fast 30 s {shown}" in found.reason
        assert "few 80 s on H200" in found.reason
        assert {name: cost.accepted for name, cost in found.costs.items()} == {"few": 80.0, "fast": 30.0}


def test_candidates_are_ranked_under_the_conditions_that_they_share() -> None:
    """On the new device, measured last, each alone would be shown its best figure."""
    base = [*BASE, latency(50.0, device="B300")]
    one, two = measured("one", latency(40.0), latency(10.0, device="B300")), measured("two", latency(30.0))
    found = route(DRAFTS, [one, two], base)
    assert (found.variant, found.costs["one"].accepted) == ("two", 40.0)
    assert found.reason.startswith(f"{BY_MEANS}, and the cheapest measured: 30 s")


def test_the_conditions_that_were_measured_last_decide_where_all_were_measured_under_two() -> None:
    base = [*BASE, latency(90.0, device="B300")]
    one = measured("one", latency(40.0), latency(30.0, device="B300"))
    two = measured("two", latency(50.0), latency(20.0, device="B300"))
    assert route(DRAFTS, [one, two], base).variant == "two"


def test_whoever_was_measured_otherwise_than_most_is_named_and_not_ranked() -> None:
    base = [*BASE, latency(50.0, device="B300")]
    same = [measured("a", latency(40.0)), measured("b", latency(30.0))]
    found = route(DRAFTS, [*same, measured("c", latency(5.0, device="B300"), bits=1.0)], base)
    assert found.variant == "b"
    assert found.reason.endswith("100 s with the escalation target; measured otherwise and not ranked: c 5 s on B300")
    assert "c: passes too" in found.notes


def test_settings_that_nobody_recorded_are_taken_to_be_equal_and_said() -> None:
    base = [Measurement("latency", 100.0, "H200", "real", {})]
    bare = Candidate("bare", PASSED, [Measurement("latency", 40.0, "H200", "real", {"seed": 1})], ALL)
    found = route(DRAFTS, [bare], base)
    assert "40 s per accepted clip on H200, 100 s with the escalation target" in found.reason
    assert found.notes == ("costs: frames, height, width, steps not recorded with the latencies, taken to be equal",)
    assert route(DRAFTS, [measured("a", latency(40.0))], BASE).notes == ()


# --- escalation to another variant -----------------------------------------------------------------------------------


def test_the_fall_back_is_what_the_policy_escalates_to_at_its_own_cost() -> None:
    strong = Candidate("strong", PASSED, [latency(60.0)], ALL, 8.0)
    bad = candidate("bad", 10.0, 100, gate=FAILED)
    found = route(DRAFTS, [bad, strong], [latency(60.0)], target="strong")
    assert found.variant == "strong"
    assert found.reason == (
        "no variant passes the gate but that which the policy escalates to; strong, which the policy escalates to, "
        f"at 60 s per clip on H200 {AT_81}"
    )
    assert found.notes == ("bad: fails the gate: color: not measured", "strong: the escalation target")


def test_a_cheaper_variant_goes_before_the_escalation_target() -> None:
    strong = Candidate("strong", PASSED, [latency(60.0)], ALL, 8.0)
    found = route(DRAFTS, [strong, candidate("light", 30.0, 90)], [latency(60.0)], target="strong")
    # 30 + 0.1 * 60.
    assert (found.variant, found.costs["light"].accepted) == ("light", 36.0)
    dear = route(DRAFTS, [strong, candidate("light", 59.0, 90)], [latency(60.0)], target="strong")
    assert dear.variant == "strong"
    assert dear.reason.startswith("no variant that passes is cheaper and within the budget; strong, which the policy")


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        ([], "strong, which the policy escalates to although it has no score to pass by, at 60 s per clip"),
        ([candidate("strong", gate=FAILED)], "although it fails the gate itself, at 60 s per clip"),
    ],
)
def test_a_target_that_does_not_pass_itself_is_named_with_that(candidates: Any, words: str) -> None:
    found = route(DRAFTS, candidates, [latency(60.0)], target="strong")
    assert found.variant == "strong"
    assert words in found.reason
    assert "the base" not in found.reason
    unmeasured = route(DRAFTS, candidates, [], target="strong")
    assert unmeasured.reason.endswith("and whose cost per clip is not measured")


def test_a_bound_is_not_called_means() -> None:
    bounded = load_policy().workload("product-ad-drafts")
    assert route(bounded, [candidate("a", 40.0, 90)], BASE).reason.startswith("passes, and the cheapest measured: 50 s")

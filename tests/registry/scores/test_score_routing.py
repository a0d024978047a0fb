"""Routing: the cheapest that passes, by measured cost per accepted clip, and "not measured" where it is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfq.registry.scores.gate import Check, GateResult
from hfq.registry.scores.policy import load_policy
from hfq.registry.scores.routing import Candidate, clip_cost, route
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
    assert (cost.device, cost.missing) == ("H200", ())


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
    slower = clip_cost([latency(110.0)], BASE, None)
    assert slower.worthwhile is False


def test_the_last_comparable_latency_counts_and_the_seed_does_not_matter() -> None:
    measured = [latency(50.0), latency(45.0, seed=3), latency(10.0, frames=17)]
    assert clip_cost(measured, BASE, None).clip == 45.0


# --- route -----------------------------------------------------------------------------------------------------------


def test_the_cheapest_accepted_clip_wins_not_the_fastest_clip() -> None:
    fast, good = candidate("fast", 30.0, 40), candidate("good", 50.0, 95)
    found = route(DRAFTS, [fast, good], BASE)
    # 30 + 0.6 * 100 = 90 against 50 + 0.05 * 100 = 55.
    assert found.variant == "good"
    assert found.reason.startswith("passes, and the cheapest measured: 55 s per accepted clip on H200, 100 s with")
    assert found.costs["fast"].accepted == pytest.approx(90)
    assert found.notes == ("fast: passes too",)


def test_what_fails_its_gate_is_not_chosen_however_cheap() -> None:
    found = route(DRAFTS, [candidate("cheap", 1.0, 100, gate=FAILED), candidate("dear", 90.0, 100)], BASE)
    assert found.variant == "dear"
    assert found.notes == ("cheap: fails the gate: color: not measured",)


def test_the_base_when_nothing_passes() -> None:
    found = route(DRAFTS, [candidate("a", gate=FAILED)], BASE)
    assert (found.variant, found.reason) == (None, "no variant passes the gate; the base, at 100 s per clip on H200")
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
    assert only.reason.startswith("the only variant that passes; cost per accepted clip not measured")
    assert route(DRAFTS, [candidate("b"), candidate("a")], BASE).reason.startswith("passes, first by id")
    mixed = route(DRAFTS, [candidate("a", bits=4.6), candidate("b", 60.0, 90, bits=8.1)], BASE)
    assert (mixed.variant, "the cost of 1 others that pass is not measured" in mixed.reason) == ("b", True)


def test_a_budget_needs_a_measured_cost() -> None:
    known, unknown = candidate("known", 50.0, 90), candidate("unknown", bits=4.5)
    assert route(DRAFTS, [known, unknown], BASE, budget=60.0).variant == "known"
    found = route(DRAFTS, [known, unknown], BASE, budget=59.9)
    assert found.variant is None
    assert found.reason.endswith("the base, at 100 s per clip on H200, over the budget of 59.9")
    assert found.notes[0] == "known: 60 s per accepted clip, over the budget of 59.9"
    assert "cannot be held against the budget" in found.notes[1]


def test_a_policy_that_prefers_the_base_names_what_passes() -> None:
    found = route(BRAND, [candidate("a", 10.0, 100), candidate("b", gate=FAILED)], BASE)
    assert found.variant is None
    assert found.reason == (
        "the policy serves brand-character with the base: higher precision unless someone decides otherwise for this "
        "character"
    )
    assert found.notes[1] == "a: passes the gate and can be named by hand"

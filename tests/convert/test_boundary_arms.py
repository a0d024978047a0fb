"""The arms of the boundary comparison, and the intervals that say what differs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from hfq.convert.boundary_arms import boundary_arms, compare_arms, random_blocks
from hfq.convert.call_sample import CallSample
from hfq.convert.kept_calls import ModelCall


def sample_of(count: int) -> CallSample:
    """Calls of as many steps that weigh the same."""
    return CallSample([ModelCall(step, 500.0, "cond", 0, "p", {}) for step in range(count)])


def test_the_arms_of_a_14b_expert() -> None:
    arms = boundary_arms(40, "single")
    assert arms["none"] == set()
    assert arms["first 2"] == {0, 1}
    assert arms["last 3"] == {37, 38, 39}
    assert arms["first 2 + last 3"] == {0, 1, 37, 38, 39}
    controls = [kept for name, kept in arms.items() if name.startswith("random 5, seed ")]
    assert len(controls) == 3
    assert all(len(kept) == 5 and kept <= set(range(40)) for kept in controls)
    assert len(set(controls)) == 3


@pytest.mark.parametrize(("depth", "controls"), [(6, 3), (7, 3), (8, 3), (40, 3)])
@pytest.mark.parametrize("role", ["high_noise", "low_noise", "single"])
def test_no_two_arms_keep_the_same_blocks(depth: int, controls: int, role: str) -> None:
    """Of six blocks there are six choices of five, and seeds repeat them: a repeated one is no second control."""
    arms = boundary_arms(depth, role)
    assert len(set(arms.values())) == len(arms)
    named = [name for name in arms if name.startswith("random")]
    assert len(named) == controls
    for name in named:
        assert arms[name] == random_blocks(5, depth, role, int(name.rpartition(" ")[2]))


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_an_arm_that_keeps_everything_is_none(depth: int) -> None:
    assert boundary_arms(depth, "single") == {"none": frozenset()}


def test_the_random_blocks_can_be_recomputed_anywhere() -> None:
    def digest(block: int) -> str:
        return hashlib.sha256(b"hfq.select/1\t7\tlow_noise\t%d" % block).hexdigest()

    assert random_blocks(4, 30, "low_noise", 7) == set(sorted(range(30), key=digest)[:4])
    assert random_blocks(4, 30, "high_noise", 7) != random_blocks(4, 30, "low_noise", 7)


def test_differences_are_paired_by_call() -> None:
    rng = np.random.default_rng(3)
    none = rng.lognormal(-6, 1, 40)
    arms = {"none": frozenset[int](), "first 2": frozenset({0, 1}), "last 3": frozenset({5, 6, 7})}
    found = compare_arms(
        arms, {"none": list(none), "first 2": list(none - 1e-4), "last 3": list(rng.permutation(none))}, sample_of(40)
    )
    assert found["none"]["to_none"] is None
    assert found["none"]["nmse"] == pytest.approx(sample_of(40).mean(none))
    assert none.min() < found["none"]["nmse"] < none.mean()
    # The calls differ a hundredfold, the difference is the same in each: only pairing can see that.
    assert found["first 2"]["to_none"]["difference"] == pytest.approx(-1e-4)
    assert found["first 2"]["to_none"]["interval"] == pytest.approx([-1e-4, -1e-4])
    low, high = found["first 2"]["interval"]
    assert high - low > 1e-3
    low, high = found["last 3"]["to_none"]["interval"]
    assert low < 0 < high
    assert found["last 3"]["kept"] == ["blocks.5", "blocks.6", "blocks.7"]


def test_intervals_are_as_wide_as_they_should_be() -> None:
    """The tails of a Gaussian drawn in cost a tenth: the deviation of a winsorized mean of quartiles is 1.09 times."""
    values = np.random.default_rng(1).normal(5.0, 1.0, 400)
    found = compare_arms({"none": frozenset()}, {"none": list(values)}, sample_of(400))["none"]
    half = 1.96 * 1.09 * values.std() / np.sqrt(400)
    low, high = found["interval"]
    assert (low, high) == pytest.approx((found["nmse"] - half, found["nmse"] + half), abs=0.15 * half)
    assert found["nmse"] == pytest.approx(5.0, abs=2 * half)
    one = compare_arms({"none": frozenset()}, {"none": [0.5]}, sample_of(1))["none"]
    assert (one["nmse"], one["interval"]) == (0.5, None)

"""The bound of a gate holds in every family of benchmarks/gate_bounds.py, whose tables docs/policy.md shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gate_bounds import CHOSEN, CONFIDENCE, COUNTS, FAMILIES, METHODS, Family, error_share, table

from hfq.registry.scores.intervals import MIN_PROMPTS, ratio_bound

PAGE = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
BY_NAME = {family.name: family for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family.kind} {family.name}")
def test_a_bound_errs_in_no_more_cases_than_it_claims(family: Family) -> None:
    for count in (n for n in COUNTS if n >= MIN_PROMPTS):
        wrong, width = error_share(family, CHOSEN, count, trials=300)
        assert wrong <= 0.07
        assert width > 0


@pytest.mark.parametrize("method", ["percentile bootstrap", "Student's t", "Johnson's t"])
def test_what_looks_at_the_sample_alone_misses_rare_collapses(method: str) -> None:
    assert error_share(BY_NAME["10% lose 100%"], method, 20, trials=300)[0] > 0.07
    assert error_share(BY_NAME["2% lose 100%"], method, 80, trials=300)[0] > 0.15


def test_many_samples_at_once_are_bounded_as_one_is() -> None:
    family = BY_NAME["noisy base"]
    first, second = family.sample(np.random.default_rng(1), 4, 20)
    for ours, base in zip(first, second, strict=True):
        bound = ratio_bound(ours, base, (0.0, 1.0), CONFIDENCE)
        assert bound is not None
        for ratio, above in ((bound - 0.005, True), (bound + 0.005, False)):
            found = METHODS[CHOSEN]((ours - ratio * base)[None], -ratio)
            assert (found[0] > 0) is np.bool_(above)


def test_the_page_has_the_tables_of_the_script() -> None:
    """The middle column of three rows is made anew; every other row is there by name."""
    for name in ("10% lose 100%", "0.9", "noisy base"):
        wrong, width = error_share(BY_NAME[name], CHOSEN, 20)
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {BY_NAME[name].kind} | {name} |")]
        shown_wrong, shown_width = row.split(" | ")[4].split(" %, ")
        assert float(shown_wrong) / 100 == pytest.approx(wrong, abs=0.01)
        assert float(shown_width) == pytest.approx(width, abs=0.005)
    names = [line.split(" | ")[:2] for line in table(trials=20).splitlines() if line.startswith("| ")]
    assert [start for start in names if not any(line.startswith(" | ".join(start)) for line in PAGE.splitlines())] == []

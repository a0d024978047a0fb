"""The tables of docs/results.md, from a made-up document, and the intervals in them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from result_arms import COMPARISONS, all_arms
from result_statistics import bootstrap, paired_difference, paired_ratio
from result_table import replace_tables, summarise_rows, tables

CALLS, PAIRS, FORCED = 12, 6, 3
SHARE = {"right": 5, "of": 6, "share": 0.8333, "wilson_95": [0.4365, 0.9699]}
ACCURACY = dict.fromkeys(("shape", "colour", "direction", "background", "shape_colour_direction", "all"), SHARE)


def row(key: str, label: str, family: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {"key": key, "arm": label, "family": family, "accuracy": ACCURACY}
    if family == "base":
        return found
    found |= {
        "expert_nmse": {role: (0.02 + 0.01 * rng.random(CALLS)).tolist() for role in ("high_noise", "low_noise")},
        "psnr_db": (24 + rng.random(PAIRS)).tolist(),
        "convert_seconds": 0.41,
        "packed_bits_per_weight": 4.5,
        "block_bits_per_weight": 4.5,
    }
    if family != "mxfp4":
        found |= {
            "delta_bytes": 128_000,
            "stored_bits_per_weight": 3.0517,
            "weight_nmse": {"high_noise": 7.13e-3, "low_noise": 7.1e-3},
            "linear_output_nmse": {"high_noise": None, "low_noise": None},
        }
    return found


def document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": rows, "figures": summarise_rows(rows, FORCED)}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [row(arm.key, arm.label, arm.family, seed) for seed, arm in enumerate(all_arms())]


def body(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_every_arm_and_comparison_is_shown_and_every_line_has_the_columns_of_its_table(
    rows: list[dict[str, Any]],
) -> None:
    text = tables(document(rows))
    for block in text.split("\n\n"):
        assert len({len(cells) for cells in body(block)}) <= 1, block
    for entry in rows:
        shown = sum(cells[0] == entry["arm"] for cells in body(text))
        assert shown >= (1 if entry["family"] == "base" else 3), entry["arm"]
    for comparison in COMPARISONS:
        assert comparison.title in text
    assert "no delta" in text


def test_figures_survive_the_file(rows: list[dict[str, Any]]) -> None:
    made = document(rows)
    assert tables(json.loads(json.dumps(made))) == tables(made)


def test_plain_rounding_is_paired_with_nothing_and_other_arms_with_that_of_their_family(
    rows: list[dict[str, Any]],
) -> None:
    arms = summarise_rows(rows, FORCED)["arms"]
    assert arms["rtn-hif4"]["to_plain"] is None
    assert arms["rtn-hif8"]["to_plain"] is None
    assert arms["boundary-hif8"]["to_plain"]["against"] == "rtn-hif8"
    assert arms["mxfp4.released"]["to_plain"]["against"] == "rtn-hif4"
    assert "BF16" not in arms


def test_an_arm_that_is_missing_refused_or_failed_spoils_no_other(rows: list[dict[str, Any]]) -> None:
    some = [entry for entry in rows if entry["key"] not in ("rtn-hif4", "svdquant-gptq-hif4.r4.none")]
    some[5] = {"key": some[5]["key"], "arm": some[5]["arm"], "family": some[5]["family"], "refused": "too low"}
    some[6] = {"key": some[6]["key"], "arm": some[6]["arm"], "family": some[6]["family"], "failed": "OSError: disk"}
    text = tables(document(some))
    lines = {cells[0]: cells for cells in body(text.split("\n\n")[0])}
    assert lines[some[5]["arm"]][1] == "refused: too low"
    assert lines[some[6]["arm"]][1] == "failed: OSError: disk"
    assert lines["tail-aware-hif4, p99"][-1] == ""  # its plain rounding is missing
    assert "svdquant-gptq-hif4, rank 4, no clip" not in text


def test_a_single_arm_makes_a_table(rows: list[dict[str, Any]]) -> None:
    assert rows[1]["arm"] in tables(document(rows[1:2]))


def test_the_page_keeps_what_is_around_the_tables() -> None:
    page = "# A\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n"
    assert replace_tables(page, "new") == "# A\n<!-- table: begin -->\nnew\n<!-- table: end -->\nafter\n"
    with pytest.raises(ValueError, match="table: end"):
        replace_tables("<!-- table: end --> <!-- table: begin -->", "new")


def test_a_paired_ratio_is_that_of_the_logarithms() -> None:
    rng = np.random.default_rng(5)
    against = np.exp(rng.normal(size=40))
    noise = np.exp(0.1 * rng.normal(size=40))
    ratio, low, high = paired_ratio((0.8 * against * noise).tolist(), against.tolist())
    logs = np.log(0.8 * noise)
    error = logs.std(ddof=1) / np.sqrt(40)
    assert ratio == pytest.approx(np.exp(logs.mean()))
    # The bootstrap against the normal approximation: pairing has taken the spread of `against` away.
    assert np.log(low) == pytest.approx(logs.mean() - 1.96 * error, abs=0.2 * error)
    assert np.log(high) == pytest.approx(logs.mean() + 1.96 * error, abs=0.2 * error)


def test_calls_of_one_prompt_are_not_many_samples() -> None:
    """Identical calls within a prompt carry no more than one each: the interval over prompts must not shrink."""
    per_prompt = np.exp(np.random.default_rng(3).normal(size=8))
    repeated = np.repeat(per_prompt, 16)
    ones = np.ones_like(repeated)
    over_prompts = paired_ratio(repeated.tolist(), ones.tolist(), groups=8)
    assert over_prompts == pytest.approx(paired_ratio(per_prompt.tolist(), np.ones(8).tolist()))
    over_calls = paired_ratio(repeated.tolist(), ones.tolist())
    assert over_calls[2] / over_calls[1] < over_prompts[2] / over_prompts[1]


def test_differences_are_paired() -> None:
    against = np.random.default_rng(1).normal(24, 5, size=24)
    mean, low, high = paired_difference((against + 0.25).tolist(), against.tolist())
    assert [mean, low, high] == pytest.approx([0.25] * 3)
    assert bootstrap(against)[2] - bootstrap(against)[1] > 1
    with pytest.raises(ValueError, match="24 values against 23"):
        paired_difference(against.tolist(), against[1:].tolist())

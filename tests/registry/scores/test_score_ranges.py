"""Values that a metric cannot have: refused on import, and a failed check of the gate where they are stored already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from score_files import entry, pairs, write
from test_score_policy import MEANS, policy

from hfq.registry.scores.detect import read_score_file
from hfq.registry.scores.gate import Evidence, evaluate
from hfq.registry.scores.measure import SCALES
from hfq.registry.scores.opens2v import METRICS, NATURAL
from hfq.registry.scores.ranges import LIMITS
from hfq.registry.scores.vbench import DIMENSIONS
from hfq.registry.scores.vbench_i2v import I2V_DIMENSIONS
from hfq.schema.errors import ScoreRangeError


def test_every_metric_that_is_read_has_limits() -> None:
    assert set(LIMITS["vbench"]) == set(DIMENSIONS)
    assert set(LIMITS["vbench-i2v"]) == set(I2V_DIMENSIONS)
    assert set(LIMITS["opens2v"]) == {*METRICS, NATURAL}
    assert set(LIMITS["hfq"]) == set(SCALES)


def vbench(name: str, stated: float, values: list[float]) -> dict[str, Any]:
    image = {"image_path": "a.png"} if name in ("i2v_subject", "i2v_background", "camera_motion") else {}
    return {name: [stated, [entry(f"a cat {n}-0", value, **image) for n, value in enumerate(values)]]}


@pytest.mark.parametrize("name", sorted({*DIMENSIONS, *I2V_DIMENSIONS} - {"imaging_quality"}))
def test_a_percentage_is_refused_and_the_same_share_is_not(tmp_path: Path, name: str) -> None:
    write(tmp_path / "share.json", vbench(name, 0.955, [0.95, 0.96]))
    assert read_score_file(tmp_path / "share.json")[0].recomputed == pytest.approx(0.955)
    file = write(tmp_path / "percent.json", vbench(name, 95.5, [95.0, 96.0]))
    with pytest.raises(ScoreRangeError, match=r"found 95\.5 for its aggregate and 2 more; these look") as e:
        read_score_file(file)
    assert (e.value.exit_code, e.value.code, e.value.where) == (1, "score-range", f"{file}: {name}")
    assert e.value.expected == ("-1..1" if name.endswith("_style") or name.startswith("overall") else "0..1")


def test_imaging_quality_may_be_on_either_scale_and_on_no_third(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    for stated, values in ((0.7, [68.0, 72.0]), (70.0, [68.0, 72.0]), (0.7, [0.68, 0.72])):
        write(file, vbench("imaging_quality", stated, values))
        assert read_score_file(file)[0].recomputed == pytest.approx(0.7)
    write(file, vbench("imaging_quality", 70.0, [6800.0, 7200.0]))
    with pytest.raises(ScoreRangeError, match=r"expected 0\.\.1, found 68 for a cat 0-0 and 1 more"):
        read_score_file(file)


def test_one_value_of_many_is_found_and_rounding_is_not(tmp_path: Path) -> None:
    file = write(tmp_path / "run.json", vbench("subject_consistency", 1.0, [1.0000002, 1.0, -1e-8]))
    assert len(read_score_file(file)[0].videos) == 3
    write(file, vbench("subject_consistency", 0.9, [0.9, 0.9, 1.02]))
    with pytest.raises(ScoreRangeError, match=r"found 1\.02 for a cat 2-0;"):
        read_score_file(file)
    write(file, vbench("motion_smoothness", 99.0, []))
    with pytest.raises(ScoreRangeError, match="its aggregate"):
        read_score_file(file)


@pytest.mark.parametrize(
    ("metric", "good", "bad"),
    [
        ("aes_score", [0.0, 5.6, 10.0], [56.0, -1.0]),
        ("cur_score", [0.0, 0.4, 1.0], [40.0, -0.1]),
        ("arc_score", [0.0, 1.0], [1.1]),
        ("gme_score", [-0.1, 0.7], [70.0, -1.2]),
        ("motion_fb", [0.0, 300.0], [-0.1]),
        ("motion_lk", [0.0, 255.0], [256.0]),
        ("retrieval_score", [0.0, 0.02], [2.0]),
    ],
)
def test_opens2v_metrics_have_their_own_limits(
    tmp_path: Path, metric: str, good: list[float], bad: list[float]
) -> None:
    for value in good:
        file = write(tmp_path / "a.json", {"singleobj_1": {metric: value}})
        assert read_score_file(file)[0].recomputed == value
    for value in bad:
        file = write(tmp_path / "a.json", {"singleobj_1": {metric: value}})
        with pytest.raises(ScoreRangeError, match="for singleobj_1"):
            read_score_file(file)


def test_a_gate_fails_what_an_older_release_let_in() -> None:
    ours, base = [95.0 + n / 10 for n in range(5)], [0.97] * 5
    result = evaluate(policy(**MEANS), "drafts", Evidence([pairs(ours, base)]))
    assert [check.kind for check in result.checks if not check.passed] == ["plausible", "plausible"]
    assert result.reasons == (
        "vbench subject_consistency: 5 values of the variant are outside 0..1, such as 95; import them again on the "
        "metric's own scale",
        f"vbench subject_consistency: {95.2 / 0.97:.4g} times the base, over the 2 that is plausible: compare the two "
        "scales",
    )
    both = evaluate(policy(**MEANS), "drafts", Evidence([pairs(ours, ours)]))
    assert ["of the base are outside" in reason for reason in both.reasons] == [False, True]


@pytest.mark.parametrize(("ratio", "passed"), [(1.02, True), (1.99, True), (2.0, True), (2.01, False), (99.0, False)])
@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_a_ratio_beyond_belief_does_not_pass(ratio: float, passed: bool, direction: str) -> None:
    """Of most features no limits are known: only the ratio can tell."""
    suite = "hfq-features:dino"
    share = ratio if direction == "higher" else 1 / ratio
    scores = pairs([0.5 * share] * 5, [0.5] * 5, suite=suite, name="sharpness", direction=direction)
    result = evaluate(policy(gate={"suites": [suite], "metric": "sharpness"}, **MEANS), "drafts", Evidence([scores]))
    assert result.passed is passed
    assert [check.kind for check in result.checks if not check.passed] == ([] if passed else ["plausible"])

"""Policies and gates: the default one, documents that mean nothing, and gates with numbers by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from score_files import metric, pairs, videos

from hfq.registry.scores.gate import Evidence, accepted_bound, evaluate, require_passed
from hfq.registry.scores.paired import pair_scores
from hfq.registry.scores.policy import Policy, load_policy, parse_policy
from hfq.registry.scores.settings import compare_settings
from hfq.registry.scores.values import ReviewCounts
from hfq.schema.errors import (
    GateFailedError,
    HfqError,
    MalformedFileError,
    MissingPathError,
    PolicyError,
    SchemaViolationError,
    TooLargeError,
    UnknownSchemaVersionError,
    UnknownWorkloadError,
    UnreadableFileError,
)

GATE = {
    "metric": "subject_consistency", "suites": ["vbench"], "min_retained": 0.95, "each_category": False,
    "source": "ours",
}  # fmt: skip
WORKLOAD = {
    "name": "drafts", "suitability": "high", "control": "look at it", "prefer": "cheapest", "escalate_to": "base",
    "min_videos": 4, "min_prompts": 4, "min_paired_share": 0.8, "held_out": False, "required_categories": [],
    "content_class": "optional", "min_category_videos": 3, "review_in_use": 0.5, "gate": [GATE],
}  # fmt: skip


def document(*, gate: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    workload = WORKLOAD | {"gate": [GATE | (gate or {})]} | changes
    return {"schema": "hfq.policy/1", "name": "mine", "confidence": 0.95, "workload": [workload]}


def policy(*, gates: list[dict[str, Any]] | None = None, **changes: Any) -> Policy:
    text = document(**changes)
    if gates is not None:
        text["workload"][0]["gate"] = gates
    return parse_policy(json.dumps(text).encode(), "p", is_json=True)


def share(ratio: float, count: int = 5, **kind: Any) -> Any:
    """Pairs whose every video keeps the same share: the bound is the share itself."""
    return pairs([0.5 * ratio] * count, [0.5] * count, **kind)


# --- the default policy ----------------------------------------------------------------------------------------------


def test_the_default_policy_has_the_six_workloads_of_the_routing_table() -> None:
    default = load_policy()
    assert [(part.name, part.suitability, part.prefer) for part in default.workloads] == [
        ("mood-boards", "high", "cheapest"),
        ("prompt-exploration", "high", "cheapest"),
        ("background-atmosphere", "medium-high", "cheapest"),
        ("product-ad-drafts", "medium", "cheapest"),
        ("brand-character", "low-medium", "base"),
        ("regulated-identity", "low", "base"),
    ]
    assert all(gate.source.startswith("ours") for part in default.workloads for gate in part.gates)
    assert all(part.escalate_to == "base" for part in default.workloads)
    subject = {
        part.name: gate.min_retained
        for part in default.workloads
        for gate in part.gates
        if gate.metric == "subject_consistency"
    }
    assert subject == {
        "mood-boards": 0.95, "prompt-exploration": 0.95, "product-ad-drafts": 0.95, "brand-character": 0.98,
        "regulated-identity": 0.98,
    }  # fmt: skip
    motion = [gate.min_retained for part in default.workloads for gate in part.gates if "motion" in gate.metric]
    assert motion == [0.99] * 6
    identity = [default.workload(name) for name in ("brand-character", "regulated-identity")]
    assert all(part.held_out and part.content_class == "required" and part.review for part in identity)


def test_the_published_w4a4_scores_fail_every_default_workload_with_a_subject() -> None:
    default = load_policy()
    measured = [
        pairs([0.5324] * 120, [0.9331] * 120, category="human", name="subject_consistency"),
        pairs([0.9803] * 120, [0.9923] * 120, category="human", name="motion_smoothness"),
    ]
    for name in ("mood-boards", "product-ad-drafts", "regulated-identity"):
        result = evaluate(default, name, Evidence(measured), content_class="human")
        assert not result.passed
        assert any("0.5706 of the base, lower 95% bound 0.5706" in reason for reason in result.reasons)
        assert any("motion_smoothness: 0.9879 of the base" in reason for reason in result.reasons)


def test_an_id_follows_from_the_content() -> None:
    assert policy().id == policy().id
    assert policy().id != policy(min_videos=5).id
    as_toml = b'schema = "hfq.policy/1"\nname = "mine"\nconfidence = 0.95\n[[workload]]\n'
    as_toml += "".join(f"{key} = {json.dumps(value)}\n" for key, value in WORKLOAD.items() if key != "gate").encode()
    as_toml += (
        b"[[workload.gate]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in GATE.items()).encode()
    )
    assert parse_policy(as_toml, "p") == policy()


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"colour": 1}, SchemaViolationError, "colour"),
        ({"review_in_use": 1.5}, SchemaViolationError, "review_in_use"),
        ({"min_videos": 1}, SchemaViolationError, "min_videos"),
        ({"min_videos": 4.5}, SchemaViolationError, "min_videos"),
        ({"gate": []}, SchemaViolationError, "gate"),
        ({"prefer": "dearest"}, SchemaViolationError, "prefer"),
        ({"escalate_to": "../x"}, SchemaViolationError, "escalate_to"),
        ({"name": "x\n"}, SchemaViolationError, "name"),
        ({"min_prompts": 5}, PolicyError, "more prompts than videos"),
    ],
)
def test_workloads_that_are_refused(changes: dict[str, Any], error: type[HfqError], words: str) -> None:
    text = document()
    text["workload"][0] |= changes
    with pytest.raises(error, match=words):
        parse_policy(json.dumps(text).encode(), "p", is_json=True)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"metric": "subject_consistancy"}, "no metric of vbench"),
        ({"suites": ["hfq"], "metric": "psnr"}, "no metric of hfq"),
        ({"suites": ["vbench", "vbench-i2v"], "metric": "color"}, "no metric of vbench-i2v"),
        ({"suites": ["vbensh"]}, "unknown suite"),
    ],
)
def test_gates_that_could_never_hold_are_refused(gate: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        policy(gate=gate)


def test_features_of_any_extractor_can_be_gated() -> None:
    suites = ["hfq-features:dino-vitb16"]
    gated = policy(gate={"suites": suites, "metric": "subject_first"})
    kept = share(0.99, name="subject_first", suite=suites[0])
    assert evaluate(gated, "drafts", Evidence([kept])).passed


def test_documents_that_are_refused(tmp_path: Path) -> None:
    twice = document()
    twice["workload"] *= 2
    for text, error in (
        (b"schema = [", MalformedFileError),
        (b"\xff", MalformedFileError),
        (b"x = " + b"[" * 5000, MalformedFileError),
        (b'schema = "hfq.policy/2"', UnknownSchemaVersionError),
        (b'schema = "hfq.recipe/1"', SchemaViolationError),
        (b'schema = "hfq.policy/1"\nconfidence = nan\nname = "a"\nworkload = []', PolicyError),
        (b'schema = "hfq.policy/1"\nconfidence = 0.9\nname = 2020-01-01\nworkload = []', SchemaViolationError),
    ):
        with pytest.raises(error):
            parse_policy(text, "p")
    with pytest.raises(PolicyError, match="twice"):
        parse_policy(json.dumps(twice).encode(), "p", is_json=True)
    with pytest.raises(PolicyError, match="gate twice"):
        policy(gates=[GATE, GATE])
    (tmp_path / "large.toml").write_bytes(b"#" * (1024 * 1024 + 1))
    os.mkfifo(tmp_path / "fifo")
    for path, error in (("large.toml", TooLargeError), ("fifo", UnreadableFileError), ("none", MissingPathError)):
        with pytest.raises(error):
            load_policy(tmp_path / path)
    (tmp_path / "mine.json").write_text(json.dumps(document()))
    assert load_policy(tmp_path / "mine.json") == policy()


def test_an_unknown_workload_names_the_known_ones() -> None:
    with pytest.raises(UnknownWorkloadError, match="expected drafts") as caught:
        evaluate(policy(), "draft", Evidence([]))
    assert caught.value.exit_code == 2


# --- gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "passed"), [(1.02, True), (0.9501, True), (0.9499, False), (0.5, False)])
def test_the_bound_decides(ratio: float, passed: bool) -> None:
    result = evaluate(policy(), "drafts", Evidence([share(ratio)]))
    assert result.passed is passed
    check = next(part for part in result.checks if part.kind == "retained")
    assert (check.found, check.needed, check.passed) == (pytest.approx(ratio), 0.95, passed)
    assert result.reasons == (() if passed else (check.text,))
    assert result.conditions == (
        "look at it", "a person reviews 50% of the delivered clips", "rejected clips are made again with base",
    )  # fmt: skip


def test_scattered_videos_fail_where_their_mean_would_pass() -> None:
    first, second = [0.9, 0.9, 0.9, 0.9, 0.65], [0.85] * 5
    result = evaluate(policy(), "drafts", Evidence([pairs(first, second)]))
    check = next(part for part in result.checks if part.kind == "retained")
    # 5.8 % of all draws hold the bad video three times or more, 0.7 % four times: the 5 % quantile is that of three.
    assert check.found == pytest.approx((0.9 * 2 + 0.65 * 3) / 5 / 0.85)
    assert "1.0000 of the base, lower 95% bound 0.8824, 0.95 needed (ours)" in check.text
    assert not result.passed


def test_lower_is_better_is_turned_round() -> None:
    worse = share(1.2, direction="lower")
    assert not evaluate(policy(), "drafts", Evidence([worse])).passed
    assert evaluate(policy(), "drafts", Evidence([share(1.02, direction="lower")])).passed


def test_what_is_not_measured_does_not_pass_and_every_reason_is_given() -> None:
    gates = [GATE, GATE | {"metric": "motion_smoothness", "min_retained": 0.99}]
    mine = policy(gates=gates, review={"min_share": 0.5, "min_accepted": 0.5})
    result = evaluate(mine, "drafts", Evidence([share(0.9, 3)]))
    assert result.reasons == (
        "vbench subject_consistency: 3 videos, 4 needed",
        "vbench subject_consistency: 3 prompts, 4 needed",
        "vbench subject_consistency: 0.9000 of the base, lower 95% bound 0.9000, 0.95 needed (ours)",
        "motion_smoothness of vbench: not measured",
        "human review: not measured",
    )
    with pytest.raises(GateFailedError, match="motion_smoothness of vbench: not measured") as caught:
        require_passed(result, "delta:0123")
    assert (caught.value.exit_code, caught.value.code) == (4, "gate-failed")
    require_passed(evaluate(policy(), "drafts", Evidence([share(1)])), "delta:0123")


def test_another_suites_metric_of_the_same_name_does_not_count() -> None:
    result = evaluate(policy(), "drafts", Evidence([share(1.0, suite="vbench-i2v")]))
    assert result.reasons == ("subject_consistency of vbench: not measured",)


def test_the_gate_holds_on_every_prompt_set_that_was_scored() -> None:
    good, bad = share(1.0, prompt_set="vbench"), share(0.9, prompt_set="opens2v-eval")
    result = evaluate(policy(), "drafts", Evidence([good, bad]))
    assert len(result.reasons) == 1
    assert "on opens2v-eval" in result.reasons[0]


def test_a_clip_too_broken_to_be_scored_does_not_vanish() -> None:
    base = metric(videos([0.5] * 10))
    kept = pair_scores(metric(videos([0.5] * 7)), base)
    result = evaluate(policy(), "drafts", Evidence([kept]))
    assert result.reasons == ("vbench subject_consistency: 7 of the base's 10 videos are scored, 80% needed",)
    assert evaluate(policy(), "drafts", Evidence([pair_scores(metric(videos([0.5] * 8)), base)])).passed


def test_other_settings_than_the_base_fail() -> None:
    run = {"guidance": 3.5, "steps": 40}
    result = evaluate(policy(), "drafts", Evidence([share(1)], compare_settings(run, {"guidance": 5.0, "steps": 40})))
    assert result.reasons == ("generated with other settings than the base: guidance: 3.5 against 5.0",)
    alike = evaluate(policy(), "drafts", Evidence([share(1)], compare_settings(run, run | {"seed": 2})))
    assert alike.passed
    assert "setting seed: not recorded against 2" in alike.notes


def test_required_categories_and_the_class_of_the_job() -> None:
    mine = policy(
        required_categories=["animal"], content_class="required", gate={"each_category": True}, min_category_videos=3
    )
    first = [*videos([0.5] * 30, category="animal"), *videos([0.4] * 3, category="human", prefix="h")]
    second = [*videos([0.5] * 30), *videos([0.45] * 3, prefix="h")]
    evidence = Evidence([pair_scores(metric(first), metric(second))])
    nameless = evaluate(mine, "drafts", evidence)
    assert nameless.reasons == ("the content class of the job is not named",)
    assert evaluate(mine, "drafts", evidence, content_class="animal").passed
    human = evaluate(mine, "drafts", evidence, content_class="human")
    assert human.reasons == (
        "vbench subject_consistency in human: 0.8889 of the base, lower 95% bound 0.8889, 0.95 needed (ours)",
    )
    food = evaluate(mine, "drafts", evidence, content_class="food")
    assert food.reasons == (
        "vbench subject_consistency in food: 0 videos, 3 needed",
        "vbench subject_consistency in food: no confidence bound from 0 prompts, 0.95 needed (ours)",
    )


def test_prompts_of_the_calibration_do_not_count_where_held_out_is_asked() -> None:
    scores = share(1.0, 6)
    seen = frozenset(pair.prompt_sha256 for pair in scores.pairs[:3])
    evidence = Evidence([scores], seen=seen)
    assert evaluate(policy(), "drafts", evidence).passed
    held_out = evaluate(policy(held_out=True), "drafts", evidence)
    assert held_out.reasons == (
        "vbench subject_consistency: 3 videos, 4 needed",
        "vbench subject_consistency: 3 prompts, 4 needed",
    )
    assert any("3 videos left out" in note for note in held_out.notes)
    unhashed = pair_scores(metric(videos([0.5] * 4, hashed=False)), metric(videos([0.5] * 4, hashed=False)))
    result = evaluate(policy(held_out=True), "drafts", Evidence([unhashed], seen=seen))
    assert result.passed
    assert any("4 videos of unknown prompt" in note for note in result.notes)


def test_samples_are_not_prompts() -> None:
    scores = [metric({f"a red cat-{sample}": 0.5 for sample in range(5)}) for _ in range(2)]
    result = evaluate(policy(), "drafts", Evidence([pair_scores(*scores)]))
    assert result.reasons == (
        "vbench subject_consistency: 1 prompts, 4 needed",
        "vbench subject_consistency: no confidence bound from 1 prompts, 0.95 needed (ours)",
    )


def test_human_review_is_a_share_and_a_bound() -> None:
    mine = policy(review={"min_share": 0.5, "min_accepted": 0.6})
    for counts, reasons in (
        (ReviewCounts(100, 50, 45), ()),
        (
            ReviewCounts(100, 49, 45),
            ("human review: 49 of 100 clips, 50% needed",),
        ),
        (
            ReviewCounts(10, 10, 7),
            ("human review: 7 of 10 accepted, lower 95% bound 0.442, 0.6 needed",),
        ),
        (ReviewCounts(0, 0, 0), ("human review: not measured",)),
    ):
        assert evaluate(mine, "drafts", Evidence([share(1)], review=counts)).reasons == reasons


@pytest.mark.parametrize(("accepted", "reviewed"), [(0, 5), (7, 10), (45, 50), (20, 20)])
def test_the_bound_of_the_accepted_share_solves_its_equation(accepted: int, reviewed: int) -> None:
    """Wilson's bound is the p whose z-score of the observed share is the normal quantile, here 1.6449 at 95 %."""
    low, high = 0.0, accepted / reviewed
    for _ in range(80):
        middle = (low + high) / 2
        score = (accepted / reviewed - middle) / max(1e-300, (middle * (1 - middle) / reviewed) ** 0.5)
        low, high = (middle, high) if score > 1.6448536269514722 else (low, middle)
    assert accepted_bound(accepted, reviewed, 0.95) == pytest.approx(low, abs=1e-9)
    assert accepted_bound(0, 0, 0.95) == 0

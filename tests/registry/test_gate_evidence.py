"""What a gate is given from the registry: copied clips by name, reviews by prompt, and the base's score of the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factory import digest
from scored import SETTINGS, register_delta, score

from hfq.registry import Registry
from hfq.registry.clips.clip_document import Variant
from hfq.registry.evaluation import Evaluation
from hfq.registry.score_sources import ScoreFiles
from hfq.registry.score_store import StoredScore
from hfq.registry.scores.origin import ClipOrigin
from hfq.registry.scores.policy import Policy, parse_policy
from hfq.registry.scores.values import MetricScores, ReviewOutcome, VideoScore


def policy(metric: str, suite: str, **more: object) -> Policy:
    workload = {
        "name": "drafts", "suitability": "high", "control": "look", "prefer": "cheapest", "escalate_to": "base",
        "min_videos": 20, "min_prompts": 20, "min_paired_share": 1.0, "held_out": False, "required_categories": [],
        "content_class": "optional", "min_category_videos": 20, "review_in_use": 0.5,
        "gate": [{"metric": metric, "suites": [suite], "min_retained": 0.5, "each_category": False, "source": "ours"}],
    } | more  # fmt: skip
    document = {"schema": "hfq.policy/1", "name": "mine", "confidence": 0.95, "workload": [workload]}
    return parse_policy(json.dumps(document).encode(), "p", is_json=True)


@pytest.mark.parametrize(("at_100_db", "named"), [(2, True), (3, False)])
def test_copied_clips_are_named_where_they_can_be_told(
    registry: Registry, tmp_path: Path, at_100_db: int, named: bool
) -> None:
    """A clip of 100 dB may differ in a pixel: with more of them than copies nobody knows which are copies."""
    who = register_delta(registry, tmp_path / "a")
    base = Variant("base", registry.get(who.id).base.id)
    origin = ClipOrigin(clips=24, claimed=24, registered=23, unknown=0, identical=2)
    columns = {"ssim": [0.9] * 24, "psnr": [100.0] * at_100_db + [30.0] * (24 - at_100_db)}
    scores = tuple(
        MetricScores(None, "hfq", name, "higher", "as measured", None, tuple(
            VideoScore(f"video {n}", digest(f"own {n}"), None, None, value) for n, value in enumerate(values)
        ))
        for name, values in (*columns.items(), ("temporal_flicker", [0.9] * 24))
    )  # fmt: skip
    registry.import_scores(who, ScoreFiles(scores, digest("clips"), origin), SETTINGS)
    score(registry, base, [0.9] * 24, name="temporal_flicker", suite="hfq")
    (reason,) = registry.gate(policy("temporal_flicker", "hfq"), "drafts", who).result.reasons
    assert reason.startswith("hfq temporal_flicker: 2 of 24 clips have exactly the reference's pixels")
    assert ("(video" in reason) is named


def test_reviews_of_clips_of_one_prompt_count_once(registry: Registry, tmp_path: Path) -> None:
    """40 accepted of 50 show more than 60 %, unless they are ten prompts of which two were rejected."""
    who = register_delta(registry, tmp_path / "a")
    base = Variant("base", registry.get(who.id).base.id)
    asks = policy("subject_consistency", "vbench", review={"min_share": 1.0, "min_accepted": 0.6})
    outcomes = [ReviewOutcome(f"video {n}", n >= 10) for n in range(50)]
    registry.add_reviews(who, outcomes, digest("reviews"))
    for prompts, passed in (
        ([digest(f"p{n}") for n in range(50)], True),
        ([digest(f"p{n // 5}") for n in range(50)], False),
    ):
        for variant in (base, who):
            score(registry, variant, [0.9] * 50, prompts=prompts)
        result = registry.gate(asks, "drafts", who).result
        assert [check.passed for check in result.checks if check.subject == "accepted"] == [passed]


def test_a_mean_stands_beside_the_base_of_the_same_videos_and_settings_alone() -> None:
    def stored(stems: str, **settings: int) -> StoredScore:
        found = tuple(VideoScore(stem, None, None, None, 0.5) for stem in stems)
        scores = MetricScores(None, "vbench", "color", "higher", "as in the file", None, found)
        return StoredScore(scores, settings, digest("source"), "2026-01-01T00:00:00Z")

    ours = stored("ab", steps=40)
    for theirs, same in (
        (stored("ab", steps=40), True),
        (stored("abc", steps=40), False),
        (stored("ab", steps=20), False),
    ):
        assert Evaluation(base_scores=(theirs,)).of_base(ours) is (theirs if same else None)

"""Scores in the registry: what was imported comes back, twice is once, and corrections do not erase."""

from __future__ import annotations

import math
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from factory import digest, make_delta

sys.path.insert(0, str(Path(__file__).parent / "scores"))
from score_files import entry, metric, videos, write

from hfq.registry import Registry
from hfq.registry.clips.clip_document import Variant
from hfq.registry.judging import Demand
from hfq.registry.score_sources import ScoreFiles, read_outcomes, read_score_files
from hfq.registry.score_store import read_measurements, read_reviews, read_scores, scored_deltas
from hfq.registry.scores.policy import load_policy
from hfq.registry.scores.values import Measurement, MetricScores, prompt_hash
from hfq.schema.errors import MalformedFileError, ScoreFileError, UnknownIdError, UsageError

SETTINGS = {"steps": 40, "guidance": 5.0, "shift": 5.0, "frames": 81, "height": 480, "width": 832}
PROMPTS = ["a cat runs", "a dog sits", "a tree in wind"]


@pytest.fixture
def delta(registry: Registry, tmp_path: Path) -> Variant:
    make_delta(tmp_path / "delta")
    return Variant("delta", registry.register(tmp_path / "delta"))


def vbench(path: Path, values: list[float]) -> Path:
    listed = [entry(f"{prompt}-0", value) for prompt, value in zip(PROMPTS, values, strict=True)]
    unscored = entry("a clip of one frame-0", None)
    return write(path, {
        "subject_consistency": [math.fsum(values) / 3, [*listed, unscored]],
        "imaging_quality": [0.6, [entry(f"{prompt}-0", 60.0) for prompt in PROMPTS]],
    })  # fmt: skip


def counts(registry: Registry) -> tuple[int, ...]:
    with closing(sqlite3.connect(registry.path)) as connection:
        tables = ("score", "score_video", "measurement", "review")
        return tuple(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)


def test_every_video_comes_back_as_it_was_imported(registry: Registry, delta: Variant, tmp_path: Path) -> None:
    found = read_score_files([vbench(tmp_path / "run.json", [0.9, 0.8, 0.7])], prompt_set="vbench")
    assert registry.import_scores(delta, found, SETTINGS) == 2
    stored, _ = registry.scores(delta)
    assert {one.scores.metric: one.scores for one in stored} == {one.metric: one for one in found.scores}
    assert stored[1].scores.unscored == ("a clip of one frame-0",)
    assert [video.prompt_sha256 for video in stored[1].scores.videos] == [prompt_hash(text) for text in PROMPTS]
    assert all(one.settings == SETTINGS for one in stored)
    with closing(sqlite3.connect(registry.path)) as connection:
        listed = {metric: rest for metric, *rest in connection.execute("SELECT metric, mean, videos FROM score")}
    assert listed["subject_consistency"] == [pytest.approx((0.9 + 0.8 + 0.7) / 3, abs=1e-12), 3]


def test_the_same_import_is_the_same_rows_and_a_corrected_one_counts(
    registry: Registry, delta: Variant, tmp_path: Path
) -> None:
    found = read_score_files([vbench(tmp_path / "run.json", [0.9, 0.8, 0.7])])
    registry.import_scores(delta, found, {})
    before = counts(registry)
    assert registry.import_scores(delta, found, {}) == 0
    assert counts(registry) == before
    assert registry.import_scores(delta, found, SETTINGS) == 2
    stored, _ = registry.scores(delta)
    assert [one.settings for one in stored] == [SETTINGS, SETTINGS]
    assert counts(registry)[0] == 2 * before[0]
    again = read_score_files([vbench(tmp_path / "run2.json", [0.5, 0.5, 0.5])])
    assert registry.import_scores(delta, again, SETTINGS) == 2
    assert registry.scores(delta)[0][1].scores.recomputed == pytest.approx(0.5)


def test_suites_and_prompt_sets_do_not_replace_each_other(registry: Registry, delta: Variant) -> None:
    parts = [
        metric({"a-0": 0.5}, suite="vbench", prompt_set="vbench"),
        metric({"a-0": 0.6}, suite="vbench", prompt_set="ours"),
        metric({"a-0": 0.7}, suite="vbench-i2v", prompt_set="ours"),
    ]
    assert registry.import_scores(delta, ScoreFiles(tuple(parts), digest("file")), {}) == 3
    assert [one.scores.recomputed for one in registry.scores(delta)[0]] == [0.6, 0.5, 0.7]


def test_a_base_has_scores_of_its_own(registry: Registry, delta: Variant) -> None:
    base = registry.variant(f"delta:{delta.id[:12]}", of_base=True)
    assert base == Variant("base", registry.get(delta.id).base.id)
    assert registry.variant(str(base)) == registry.variant(base.id[:12]) == registry.variant(None) == base
    registry.import_scores(base, ScoreFiles((metric({"a-0": 0.5}),), digest("file")), {})
    assert [len(registry.scores(who)[0]) for who in (base, delta)] == [1, 0]
    with registry.database.reading() as session:
        assert scored_deltas(session, base.id, [("vbench", "subject_consistency")]) == ()
    registry.import_scores(delta, ScoreFiles((metric({"a-0": 0.5}),), digest("file")), {})
    with registry.database.reading() as session:
        assert scored_deltas(session, base.id, [("vbench", "subject_consistency")]) == (delta.id,)
        assert scored_deltas(session, base.id, [("vbench-i2v", "subject_consistency")]) == ()
        assert scored_deltas(session, digest("another base"), [("vbench", "subject_consistency")]) == ()


@pytest.mark.parametrize("text", ["base:0123456789ab", "nobody", "base:xyzw", "base:12"])
def test_a_base_that_nobody_registered_is_unknown(registry: Registry, delta: Variant, text: str) -> None:
    with pytest.raises(UnknownIdError):
        registry.variant(text)


def test_measurements_come_back_in_order_and_a_repeated_one_is_the_same_row(registry: Registry, delta: Variant) -> None:
    first = Measurement("latency", 41.2, "H200", "real", SETTINGS)
    second = Measurement("latency", 40.0, "H200", "real", SETTINGS)
    other = Measurement("latency", 41.2, "H200", "simulated", SETTINGS)
    assert [registry.add_measurement(delta, one) for one in (first, first, other, second, first)] == [
        True, False, True, True, True,
    ]  # fmt: skip
    with registry.database.reading() as session:
        assert read_measurements(session, delta.id) == (first, other, second, first)


def test_outcomes_come_back_and_a_file_counts_once(registry: Registry, delta: Variant, tmp_path: Path) -> None:
    file = tmp_path / "review.jsonl"
    file.write_text('{"video": "out/a-0.mp4", "accepted": true, "category": "people"}\n\n'
                    '{"video": "b-0", "accepted": false}\n')  # fmt: skip
    outcomes, sha256 = read_outcomes(file)
    assert [registry.add_reviews(delta, outcomes, sha256) for _ in range(2)] == [True, False]
    with registry.database.reading() as session:
        stored = read_reviews(session, delta.id)
    assert [(one.stem, one.accepted, one.category) for one in stored] == [
        ("a-0", True, "people"), ("b-0", False, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "[]\n", "{}\n", '{"video": "a"}', '{"video": "", "accepted": true}', '{"video": "a", "accepted": 1}',
        '{"video": "a", "accepted": true, "why": "x"}', '{"video": "a", "accepted": true, "category": ""}',
        '{"video": 3, "accepted": true}', "not json", '{"video": "a", "accepted": true',
    ],
)  # fmt: skip
def test_a_line_that_is_no_outcome_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(MalformedFileError):
        read_outcomes(tmp_path / "r.jsonl")


def test_runs_of_a_judge_are_joined_and_other_metrics_are_not(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / f"{n}.json", {"singleobj_1": str(n), "singleobj_2": "4" if n == 2 else "error"})
        for n in (2, 4)
    ]
    found = read_score_files(runs)
    (judged,) = found.scores
    assert [(video.stem, video.value) for video in judged.videos] == [("singleobj_1", 3.0)]
    assert judged.unscored == ("singleobj_2",)
    with pytest.raises(ScoreFileError, match="in two files"):
        read_score_files([vbench(tmp_path / "a.json", [0.1, 0.2, 0.3]), vbench(tmp_path / "b.json", [0.4, 0.5, 0.6])])


@pytest.mark.parametrize("value", [float("nan"), 10**400])
def test_a_setting_that_json_does_not_have_is_refused_and_nothing_is_written(
    registry: Registry, delta: Variant, value: Any
) -> None:
    with pytest.raises(UsageError):
        registry.import_scores(delta, ScoreFiles((metric({"a-0": 0.5}),), digest("file")), {"steps": value})
    assert counts(registry) == (0, 0, 0, 0)


def scored(registry: Registry, who: Variant, name: str, value: float, prompts: int = 25) -> None:
    parts: list[MetricScores] = [
        metric(videos([value * (1 + index / 1000) for index in range(prompts)]), name=name),
    ]
    registry.import_scores(who, ScoreFiles(tuple(parts), digest(f"{who} {name} {value}")), SETTINGS)


def test_a_gate_reads_the_last_scores_and_only_its_own_metrics(registry: Registry, delta: Variant) -> None:
    base = registry.variant(delta.id, of_base=True)
    for name in ("subject_consistency", "motion_smoothness"):
        scored(registry, base, name, 0.9)
        scored(registry, delta, name, 0.5)
    policy = load_policy()
    assert registry.gate(policy, "mood-boards", delta).result.passed is False
    for name in ("subject_consistency", "motion_smoothness"):
        scored(registry, delta, name, 0.9)
    other = ScoreFiles((metric(videos([0.5] * 25), name="color"),), digest("other"))
    registry.import_scores(base, other, {**SETTINGS, "steps": 10})
    registry.import_scores(delta, other, SETTINGS)
    gated = registry.gate(policy, "mood-boards", delta)
    assert gated.result.reasons == ()
    assert set(gated.overlap) == {"vbench subject_consistency", "vbench motion_smoothness"}
    with registry.database.reading() as session:
        assert len(read_scores(session, delta.id)) == 3


def test_of_variants_without_a_cost_the_one_with_the_fewest_bits_is_chosen(registry: Registry, tmp_path: Path) -> None:
    who = {}
    for name, kept in (("low", 1), ("high", 2), ("failing", 3), ("unscored", 4)):
        make_delta(tmp_path / name, seed=name, kept=kept)
        who[name] = Variant("delta", registry.register(tmp_path / name))
    base = registry.variant(who["low"].id, of_base=True)
    for metric_name in ("subject_consistency", "motion_smoothness"):
        for one, value in ((base, 0.9), (who["low"], 0.9), (who["high"], 0.9), (who["failing"], 0.5)):
            scored(registry, one, metric_name, value)
    asked: list[str] = []

    def bits_of(folder: Path) -> float:
        asked.append(folder.name)
        return {"low": 4.5, "high": 8.0}[folder.name]

    routed = registry.route(load_policy(), "mood-boards", base, Demand(bits_of=bits_of))
    assert routed.route.variant is not None
    assert routed.gates[routed.route.variant].delta_id == who["low"].id
    assert "the fewest bits per weight (4.5)" in routed.route.reason
    assert sorted(asked) == ["high", "low"]
    assert routed.unscored == (who["unscored"].id,)
    tight = registry.route(load_policy(), "mood-boards", base, Demand(budget=10.0))
    assert (tight.route.variant, len(tight.route.notes)) == (None, 3)

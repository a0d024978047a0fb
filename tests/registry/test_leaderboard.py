"""The leaderboard: best first, of one base, of clips made alike, with the base among them and overlap beside them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from factory import digest, make_delta
from scored import SETTINGS, register_delta, score, select_on

from hfq.cli import run
from hfq.registry import Registry
from hfq.registry.clips.clip_document import Variant
from hfq.registry.leaderboard import Leaderboard
from hfq.schema.errors import AmbiguousIdError, AmbiguousScoresError, UnknownIdError, UnknownScoresError

METRIC = "subject_consistency"


def order(found: Leaderboard) -> list[tuple[int | None, str]]:
    return [(row.rank, row.variant.id) for row in found.rows]


def base_of(registry: Registry, who: Variant) -> Variant:
    return registry.variant(who.id, of_base=True)


@pytest.fixture
def three(registry: Registry, tmp_path: Path) -> list[Variant]:
    """Deltas of one base with means .7, .9, .8; the base has .85."""
    found = [register_delta(registry, tmp_path / name) for name in ("a", "b", "c")]
    for who, value in zip(found, (0.7, 0.9, 0.8), strict=True):
        score(registry, who, [value, value])
    score(registry, base_of(registry, found[0]), [0.8, 0.9])
    return found


def test_the_best_stand_first_and_the_base_among_them(registry: Registry, three: list[Variant]) -> None:
    a, b, c = three
    base = base_of(registry, a)
    found = registry.leaderboard(METRIC)
    assert order(found) == [(1, b.id), (None, base.id), (2, c.id), (3, a.id)]
    assert (found.base_id, found.total, found.reference, found.left_out) == (base.id, 3, "base", ())
    assert [row.mean for row in found.rows] == pytest.approx([0.9, 0.85, 0.8, 0.7])
    assert {row.videos for row in found.rows} == {2}
    assert order(registry.leaderboard(METRIC, limit=1)) == [(1, b.id), (None, base.id)]
    assert registry.leaderboard(METRIC, limit=1).total == 3


def test_of_a_metric_where_lower_is_better_the_lowest_stand_first(registry: Registry, three: list[Variant]) -> None:
    for who, value in zip(three, (3.0, 1.0, 2.0), strict=True):
        score(registry, who, [value], name="error", suite="hfq", direction="lower")
    found = registry.leaderboard("error")
    assert [row.variant for row in found.rows] == [three[1], three[2], three[0]]
    assert (found.direction, found.reference) == ("lower", "most deltas")


def test_the_last_import_counts_also_when_it_is_an_earlier_one_again(registry: Registry, three: list[Variant]) -> None:
    a, b, _ = three
    score(registry, a, [0.95, 0.95])
    score(registry, b, [0.1])
    found = registry.leaderboard(METRIC)
    assert [(row.variant, row.mean) for row in found.rows if row.rank in (1, 3)] == [
        (a, pytest.approx(0.95)), (b, pytest.approx(0.1)),
    ]  # fmt: skip
    score(registry, b, [0.9, 0.9])  # known rows, which count again
    found = registry.leaderboard(METRIC)
    assert [(row.variant, row.mean) for row in found.rows if row.rank in (1, 2)] == [
        (a, pytest.approx(0.95)), (b, pytest.approx(0.9)),
    ]  # fmt: skip
    assert found.total == 3


def test_scores_of_other_settings_are_counted_and_left_out(
    registry: Registry, three: list[Variant], tmp_path: Path
) -> None:
    other, unrecorded, seeded = (register_delta(registry, tmp_path / name) for name in ("other", "unrecorded", "seed"))
    score(registry, other, [0.99], settings={**SETTINGS, "steps": 20})
    score(registry, unrecorded, [0.98], settings={})
    score(registry, seeded, [0.97], settings={**SETTINGS, "seed": 7})
    found = registry.leaderboard(METRIC)
    assert [row.variant for row in found.rows[:2]] == [unrecorded, seeded]
    assert [(one.scores, [str(difference) for difference in one.settings]) for one in found.left_out] == [
        (1, ["steps: 40 against 20"])
    ]
    assert {one.kind for one in found.rows[0].settings} == {"one-sided"}
    assert [str(one) for one in found.rows[1].settings] == ["seed: not recorded against 7"]
    assert (found.rows[2].settings, found.unrecorded) == ((), ("scheduler",))
    assert found.total == 5


def test_without_a_score_of_the_base_the_settings_of_most_deltas_decide(registry: Registry, tmp_path: Path) -> None:
    found = [register_delta(registry, tmp_path / name) for name in ("a", "b", "c")]
    for who, steps in zip(found, (20, 20, 40), strict=True):
        score(registry, who, [0.5], settings={**SETTINGS, "steps": steps})
    board = registry.leaderboard(METRIC)
    assert {row.variant for row in board.rows} == set(found[:2])
    assert (board.reference, board.settings["steps"], board.left_out[0].scores) == ("most deltas", 20, 1)


def test_prompts_that_a_delta_was_made_with_are_shown_beside_its_mean(registry: Registry, tmp_path: Path) -> None:
    """`factory` calibrates on the prompts 0, 1 and 2."""
    make_delta(tmp_path / "chosen", seed="chosen")
    select_on(tmp_path / "chosen", [digest("prompt 2"), digest("prompt 3")])
    chosen = Variant("delta", registry.register(tmp_path / "chosen"))
    plain = register_delta(registry, tmp_path / "plain", prompts=None)
    prompts = [digest(f"prompt {n}") for n in (1, 2, 3, 4)]
    score(registry, chosen, [0.9] * 5, prompts=[*prompts, None])
    score(registry, plain, [0.8] * 4, prompts=prompts)
    score(registry, base_of(registry, plain), [0.7] * 4, prompts=prompts)
    assert [row.overlap for row in registry.leaderboard(METRIC).rows] == [
        "of 4 prompts 2 are in the calibration and 2 in the selection; unknown for 1 videos",
        "of 4 prompts 0 are in the calibration and 0 in the selection",
        None,
    ]


def test_suites_and_prompt_sets_are_never_mixed(registry: Registry, three: list[Variant]) -> None:
    a, b, _ = three
    score(registry, a, [0.99], prompt_set="ours")
    score(registry, b, [0.98], suite="hfq", prompt_set="ours")
    for how in ({}, {"suite": "vbench"}, {"prompt_set": "ours"}):
        with pytest.raises(AmbiguousScoresError, match=r"--suite vbench --prompt-set 'ours'"):
            registry.leaderboard(METRIC, **how)
    assert order(registry.leaderboard(METRIC, suite="vbench", prompt_set="ours")) == [(1, a.id)]
    assert order(registry.leaderboard(METRIC, suite="hfq")) == [(1, b.id)]
    assert registry.leaderboard(METRIC, prompt_set="").total == 3


def test_bases_are_told_apart(registry: Registry, three: list[Variant], tmp_path: Path) -> None:
    other = register_delta(registry, tmp_path / "other", base="wan21")
    score(registry, other, [0.99])
    with pytest.raises(AmbiguousIdError, match="--base"):
        registry.leaderboard(METRIC)
    record = registry.get(other.id).base
    for text in (record.id[:8], f"base:{record.id}", record.experts[1].bf16_root[:10].upper()):
        assert order(registry.leaderboard(METRIC, text)) == [(1, other.id)]
    with pytest.raises(UnknownIdError):
        registry.leaderboard(METRIC, "0123456789")


@pytest.mark.parametrize(("metric", "how"), [("psnr", {}), (METRIC, {"suite": "hfq"}), (METRIC, {"prompt_set": "x"})])
def test_what_nothing_was_scored_by_is_unknown(
    registry: Registry, three: list[Variant], metric: str, how: dict[str, str]
) -> None:
    with pytest.raises(UnknownScoresError):
        registry.leaderboard(metric, **how)


def test_scores_that_came_before_their_delta_are_ranked_once_it_is_registered(
    registry: Registry, three: list[Variant], tmp_path: Path
) -> None:
    late = Variant("delta", make_delta(tmp_path / "late", seed="late"))
    score(registry, late, [0.99])
    assert registry.leaderboard(METRIC).total == 3
    registry.register(tmp_path / "late")
    assert registry.leaderboard(METRIC).rows[0].variant == late


def test_the_groups_come_from_an_index_alone_and_the_leaders_in_its_order(
    registry: Registry, three: list[Variant]
) -> None:
    which = "FROM score WHERE metric = 'x' AND base_key = 1 AND counts = 1"
    kinds = "metric_suite, prompt_set, direction, settings_key"
    queries = {
        f"SELECT {kinds}, count(mean) {which} GROUP BY {kinds}": "COVERING",
        f"SELECT * {which} AND metric_suite = 'x' AND prompt_set IS NULL AND direction = 'higher' "
        "AND settings_key = 1 AND mean IS NOT NULL ORDER BY mean DESC, key DESC LIMIT 20": "",
    }
    with closing(sqlite3.connect(registry.path)) as connection:
        for query, kind in queries.items():
            (step,) = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
            assert f"{kind} INDEX ix_score_of_base".strip() in step, step


def test_the_command_prints_a_table_and_says_what_is_not_in_it(
    registry: Registry, three: list[Variant], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(registry, register_delta(registry, tmp_path / "other"), [0.99], settings={**SETTINGS, "steps": 20})
    registry.set_alias("wan22@prod", three[1].id)
    assert run(["leaderboard", "--metric", METRIC, "--limit", "2"]) == 0
    out, err = capsys.readouterr()
    title, header, first, base, second, *rest = out.splitlines()
    assert title == f"{METRIC} of vbench, higher is better, {base_of(registry, three[0])}"
    assert header.split() == ["RANK", "VARIANT", "RECIPE", "MEAN", "VIDEOS", "ALIASES", "OVERLAP"]
    assert first.split()[:6] == ["1", str(three[1]), "tail-aware-hif4", "0.9000", "2", "wan22@prod"]
    assert "of 2 prompts 0 are in the calibration and 0 in the selection" in first
    assert base.split() == ["base", str(base_of(registry, three[0])), "-", "0.8500", "2", "-", "-"]
    assert second.split()[1] == str(three[2])
    assert rest == ["setting      not recorded: scheduler"]
    assert "1 scores left out, their settings are not the base's: steps: 40 against 20" in err
    assert "2 of 3 deltas shown" in err
    assert run(["leaderboard", "--metric", METRIC, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in document["rows"]] == [1, None, 2, 3]
    assert document["rows"][1]["variant"] == {"kind": "base", "id": base_of(registry, three[0]).id}
    assert run(["leaderboard", "--metric", "nothing"]) == 5

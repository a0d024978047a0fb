"""What was imported by mistake is taken back: it does not count any more, and stays visible."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
sys.path.insert(0, str(Path(__file__).parent))
from factory import make_delta
from scored import score
from test_measured_clips import POLICY, clip, made_by
from test_score_commands import (
    PROMPTS,
    Capture,
    flags,
    home,
    measured,
    prompts,
    result_file,
    scored,
    text,
    typed,
)
from test_score_commands import SETTINGS as HOW

import hfq
from hfq.cli import run
from hfq.registry.clips.clip_document import Variant
from hfq.registry.score_imports import read_imports
from hfq.registry.score_store import read_scores
from hfq.schema.errors import UnknownIdError, UnknownScoresError, UsageError

__all__ = ["home", "prompts", "scored"]
METRIC = "subject_consistency"
DRAFTS = ("gate", "m@good", "--workload", "drafts", "--policy", "policy.toml")


def bring_in(capsys: Capture, prompts: Path, value: float, who: str = "m@good", *more: str) -> dict[str, Any]:
    file = result_file(prompts.parent / f"run{value}_eval_results.json", value)
    order = ["score", "import", who, file, "--full-info", prompts, "--prompt-set", "vbench", *flags(HOW), *more]
    code, found = typed(capsys, *order)
    assert code == 0
    return found


def shown(capsys: Capture, who: str = "m@good") -> tuple[float | None, list[str]]:
    """The mean that counts, and the states of all imports of the delta."""
    found = typed(capsys, "show", who)[1]
    means = [one["mean"] for one in found["scores"] if one["metric"] == METRIC]
    states = [one["state"] for one in found["imports"] if one["variant"]["kind"] == "delta"]
    return (round(means[0] - 0.0019, 3) if means else None), states


def test_an_import_can_be_taken_back_and_the_one_before_counts(home: Path, prompts: Path, capsys: Capture) -> None:
    first, second = bring_in(capsys, prompts, 0.9), bring_in(capsys, prompts, 0.5)
    assert shown(capsys) == (0.5, ["replaced", "counts"])
    code, done = typed(capsys, "score", "withdraw", f"import:{second['import'][:12]}", "--reason", "another's clips")
    assert (code, done["id"], done["state"], done["new"]) == (0, second["import"], "withdrawn", True)
    assert shown(capsys) == (0.9, ["counts", "withdrawn"])
    out = text(capsys, "show", "m@good")[1]
    assert f"import:{second['import'][:12]}" in out
    assert "withdrawn (another's clips)" in out
    code, done = typed(capsys, "score", "withdraw", second["import"], "--reason", "twice")
    assert (code, done["new"], done["reason"]) == (0, False, "another's clips")
    assert typed(capsys, "score", "withdraw", first["import"][:12], "--reason", "this too")[0] == 0
    assert shown(capsys) == (None, ["withdrawn", "withdrawn"])
    assert bring_in(capsys, prompts, 0.5)["new"] == 2  # whoever imports it again means it
    assert shown(capsys) == (0.5, ["withdrawn", "withdrawn", "counts"])
    assert hfq.open_registry().check() == ()


def test_an_earlier_import_again_counts_again(home: Path, prompts: Path, capsys: Capture) -> None:
    ids = [bring_in(capsys, prompts, value)["import"] for value in (0.9, 0.5, 0.9)]
    assert len(set(ids)) == 3
    assert shown(capsys) == (0.9, ["replaced", "replaced", "counts"])
    again = bring_in(capsys, prompts, 0.9)
    assert (again["new"], again["import"]) == (0, ids[2])
    typed(capsys, "score", "withdraw", "m@good", "--reason", "x")
    assert shown(capsys) == (0.5, ["replaced", "counts", "withdrawn"])
    typed(capsys, "score", "withdraw", "m@good", "--reason", "x")
    assert shown(capsys) == (0.9, ["counts", "withdrawn", "withdrawn"])
    assert hfq.open_registry().check() == ()


def test_nothing_reads_what_is_withdrawn(scored: Path, prompts: Path, capsys: Capture) -> None:
    base = hfq.open_registry().get("m@good").base.id
    assert typed(capsys, *DRAFTS)[0] == 0
    assert typed(capsys, "leaderboard", "--metric", METRIC)[1]["total"] == 2
    wrong = bring_in(capsys, prompts, 0.2)["import"]
    assert typed(capsys, *DRAFTS)[0] == 4
    assert typed(capsys, "score", "withdraw", wrong, "--reason", "wrong file")[0] == 0
    assert typed(capsys, *DRAFTS)[0] == 0
    assert typed(capsys, "score", "withdraw", "m@bad", "--reason", "x")[0] == 0
    board = typed(capsys, "leaderboard", "--metric", METRIC)[1]
    assert (board["total"], [row["variant"]["kind"] for row in board["rows"]]) == (1, ["base", "delta"])
    assert typed(capsys, "compare", "m@bad", f"base:{base}")[1]["error"]["code"] == "not-comparable"
    routed = typed(capsys, "route", "--workload", "drafts", "--policy", "policy.toml")[1]
    assert routed["unscored"] == [hfq.open_registry().resolve("m@bad")]
    code, _ = typed(capsys, "score", "withdraw", "m@good", "--of-base", "--reason", "not the base's")
    assert code == 0
    assert typed(capsys, *DRAFTS)[1]["reasons"] == ["subject_consistency of vbench: not measured"]
    kinds = [event["kind"] for event in typed(capsys, "show", "m@good")[1]["events"]]
    assert kinds.count("withdrawn") == 1


def test_a_cost_and_a_review_can_be_corrected_and_withdrawn(scored: Path, capsys: Capture) -> None:
    def costs() -> list[float]:
        return [one["value"] for one in typed(capsys, "show", "m@good")[1]["costs"]]

    def reviewed(*lines: tuple[str, bool]) -> dict[str, int]:
        if lines:
            (scored / "r.jsonl").write_text("".join(json.dumps({"video": n, "accepted": a}) + "\n" for n, a in lines))
            assert run(["score", "review", "m@good", "r.jsonl"]) == 0
        found: dict[str, int] = typed(capsys, "show", "m@good")[1]["reviews"]
        return found

    measured("m@good", 40)
    measured("m@good", 4000)
    assert costs() == [4000]
    typed(capsys, "score", "withdraw", "m@good", "--reason", "a slip of the pen")
    assert costs() == [40]
    measured("m@good", 4000)
    assert costs() == [4000]
    assert reviewed((f"{PROMPTS[0]}-0", False), (f"{PROMPTS[1]}-0", True)) == {
        "clips": 2, "reviewed": 2, "accepted": 1,
    }  # fmt: skip
    assert reviewed((f"{PROMPTS[0].replace(' ', '_')}-0.mp4", True)) == {"clips": 2, "reviewed": 2, "accepted": 2}
    assert reviewed((f"{PROMPTS[0]}-0", False), (f"{PROMPTS[1]}-0", True))["accepted"] == 1  # the first file again
    for expected in (2, 1):
        typed(capsys, "score", "withdraw", "m@good", "--reason", "a correction of the correction")
        assert reviewed()["accepted"] == expected
    typed(capsys, "score", "withdraw", "m@good", "--reason", "all of it")
    assert typed(capsys, "show", "m@good")[1]["reviews"] is None
    assert hfq.open_registry().check() == ()


def test_several_people_in_one_file_decide_together(scored: Path, capsys: Capture) -> None:
    (scored / "r.jsonl").write_text('{"video": "a", "accepted": true}\n{"video": "a", "accepted": false}\n')
    assert run(["score", "review", "m@good", "r.jsonl"]) == 0
    assert typed(capsys, "show", "m@good")[1]["reviews"] == {"clips": 1, "reviewed": 1, "accepted": 0}


@pytest.mark.parametrize(
    ("which", "reason", "code", "error"),
    [
        ("import:0123456789ab", "x", 5, "unknown-id"),
        ("import:", "x", 5, "unknown-id"),
        ("import:12", "x", 5, "unknown-id"),
        ("nobody", "x", 5, "unknown-id"),
        ("m@bad", "x", 5, "unknown-scores"),
        ("m@good", "", 2, "usage"),
        ("m@good", "  ", 2, "usage"),
        ("m@good", "two\nlines", 2, "usage"),
        ("m@good", "x" * 401, 2, "usage"),
    ],
)
def test_what_cannot_be_withdrawn(
    home: Path, prompts: Path, capsys: Capture, which: str, reason: str, code: int, error: str
) -> None:
    bring_in(capsys, prompts, 0.9)
    found, document = typed(capsys, "score", "withdraw", which, "--reason", reason)
    assert (found, document["error"]["code"]) == (code, error)
    assert shown(capsys) == (0.9, ["counts"])


def test_from_python(home: Path, prompts: Path, capsys: Capture) -> None:
    registry = hfq.open_registry()
    imports = [bring_in(capsys, prompts, 0.5 + n / 1000)["import"] for n in range(40)]
    first = registry.withdraw_import(imports[3], "by its id")
    assert (first.is_new, first.record.id, first.record.state) == (True, imports[3], "withdrawn")
    assert registry.withdraw_import("m@good", "the last").record.id == imports[-1]
    with pytest.raises(UsageError):
        registry.withdraw_import("m@good", "")
    with pytest.raises(UnknownIdError):
        registry.withdraw_import("import:zzzz", "x")
    with pytest.raises(UnknownScoresError):
        registry.withdraw_import("m@bad", "x")
    (home / "none").mkdir()
    with pytest.raises(UnknownIdError):
        hfq.open_registry(home / "none" / "r.sqlite").withdraw_import("import:0123", "x")
    assert not (home / "none" / "r.sqlite").exists()


def test_the_base_of_a_delta_that_was_measured_is_that_of_its_pair(home: Path, capsys: Capture) -> None:
    """Measuring another delta against another run of the base changes nothing for the first."""
    (home / "policy.toml").write_text(POLICY)
    ids = {name: hfq.open_registry().resolve(f"m@{name}") for name in ("good", "bad")}
    for name, noise in (("good", 20), ("bad", 20)):
        for folder, of_base in ((name, False), (f"{name}-base", True)):
            (home / folder).mkdir(exist_ok=True)
            for index in range(2):
                document = made_by(home, index, of_base=of_base)
                if not of_base:
                    document = replace(document, delta=ids[name])
                # The second run of the base is of other pictures.
                seed = index + (40 if name == "bad" else 0)
                clip(home / folder / f"c{index}.mp4", seed, document, 0 if of_base else noise)
    gate = ("gate", "m@good", "--workload", "still", "--policy", "policy.toml", "--content-class", "people")

    def measure(name: str) -> dict[str, Any]:
        return typed(capsys, "score", "measure", f"m@{name}", "--clips", name, "--reference", f"{name}-base")[1]

    first = measure("good")
    before = typed(capsys, *gate)[1]
    assert before["passed"]
    measure("bad")
    assert typed(capsys, *gate)[1] == before
    base = Variant("base", hfq.open_registry().get("m@good").base.id)
    compared = typed(capsys, "compare", "m@good", f"base:{base.id}")[1]["metrics"]
    flicker = next(one for one in compared if one["metric"] == "temporal_flicker")
    theirs = next(one for one in first["base"]["scores"] if one["metric"] == "temporal_flicker")
    assert flicker["overall"]["mean_second"] == pytest.approx(theirs["mean"], abs=1e-12)
    # Both sides of a measurement are one import: taking it back takes back the base's figures of it as well.
    last = typed(capsys, "score", "withdraw", "m@bad", "--reason", "the wrong folder")[1]
    assert "beside its base" in last["what"]
    with hfq.open_registry().database.reading() as session:
        now = {one.scores.metric: one.scores.recomputed for one in read_scores(session, base.id)}
    assert now["temporal_flicker"] == pytest.approx(theirs["mean"], abs=1e-12)
    assert measure("good")["variant"]["new"] == 0
    assert hfq.open_registry().check() == ()


def test_a_score_of_a_delta_that_is_not_registered_yet_can_be_withdrawn_by_its_import(
    home: Path, tmp_path: Path, capsys: Capture
) -> None:
    late = Variant("delta", make_delta(tmp_path / "late", seed="late"))
    registry = hfq.open_registry()
    score(registry, late, [0.9])
    with registry.database.reading() as session:
        (record,) = read_imports(session, late.id)
    assert registry.withdraw_import(f"import:{record.id}", "too early").is_new
    with registry.database.reading() as session:
        assert [one.state for one in read_imports(session, late.id)] == ["withdrawn"]

"""Selection prompts: kept with the registration, so that they outlive the folder."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from factory import digest, make_delta
from scored import register_delta, score, select_on

from hfq.registry import Registry
from hfq.registry.clips.clip_document import Variant
from hfq.registry.judging import overlap_of
from hfq.registry.prompts import Seen
from hfq.registry.scores.policy import load_policy
from hfq.schema.errors import DigestMismatchError

CHOSEN = (digest("prompt 1"), digest("chosen on this"))
CALIBRATED = tuple(digest(f"prompt {number}") for number in range(3))


def selected(registry: Registry, folder: Path, prompts: Sequence[str] = CHOSEN) -> Variant:
    make_delta(folder, seed=folder.name)
    select_on(folder, prompts)
    return Variant("delta", registry.register(folder))


def forget(registry: Registry) -> None:
    """What an upgrade leaves of the registrations before it."""
    with closing(sqlite3.connect(registry.path)) as connection:
        connection.execute("DELETE FROM delta_selection")
        connection.commit()


def count(registry: Registry, table: str) -> int:
    with closing(sqlite3.connect(registry.path)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_they_outlive_the_folder_and_are_stored_once_per_analysis(registry: Registry, tmp_path: Path) -> None:
    first, second = selected(registry, tmp_path / "a"), selected(registry, tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    for who in (first, second):
        assert registry.scores(who)[1] == Seen(CALIBRATED, CHOSEN)
    assert (count(registry, "analysis"), count(registry, "analysis_prompt")) == (1, 2)


def test_a_delta_that_was_not_selected_and_a_base_have_none(registry: Registry, tmp_path: Path) -> None:
    who = register_delta(registry, tmp_path / "a")
    assert registry.scores(who)[1] == Seen(CALIBRATED, ())
    base = registry.variant(who.id, of_base=True)
    score(registry, base, [0.5])
    (stored,), seen = registry.scores(base)
    assert seen is None
    assert overlap_of(stored, seen) is None


def test_what_an_older_release_registered_is_not_known_until_the_folder_comes_again(
    registry: Registry, tmp_path: Path
) -> None:
    who = selected(registry, tmp_path / "a")
    score(registry, who, [0.5, 0.6], prompts=[CHOSEN[0], CHOSEN[1]])
    forget(registry)
    (stored,), seen = registry.scores(who)
    assert seen == Seen(CALIBRATED, None)
    unknown = "of 2 prompts 1 are in the calibration and 0 in the selection; selection prompts not known"
    assert str(overlap_of(stored, seen)).startswith(unknown)
    assert str(registry.leaderboard("subject_consistency").rows[0].overlap).startswith(unknown)
    registry.register(tmp_path / "a")
    (stored,), seen = registry.scores(who)
    assert overlap_of(stored, seen) == "of 2 prompts 1 are in the calibration and 2 in the selection"
    assert registry.check() == ()


def test_a_gate_that_holds_prompts_out_fails_when_it_does_not_know_them(registry: Registry, tmp_path: Path) -> None:
    who = selected(registry, tmp_path / "a")
    policy = load_policy()
    held_out = next(one.name for one in policy.workloads if one.held_out)
    unknown = "the prompts that the variant was selected on are not known; `hfq register` of its folder adds them"
    assert unknown not in registry.gate(policy, held_out, who).result.reasons
    forget(registry)
    assert unknown in registry.gate(policy, held_out, who).result.reasons


def test_one_analysis_with_other_prompts_is_a_contradiction(registry: Registry, tmp_path: Path) -> None:
    selected(registry, tmp_path / "a")
    with pytest.raises(DigestMismatchError, match="the same analysis with other prompts"):
        selected(registry, tmp_path / "b", [CHOSEN[0]])
    assert registry.list()[1] == 1

"""Scores of revision 0004 after an upgrade are what this release would have written itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from factory import digest, make_delta
from scored import SETTINGS, register_delta, score, select_on

from hfq.registry import Registry, open_registry, upgrade
from hfq.registry.clips.clip_document import Variant
from hfq.registry.prompts import Seen

TABLES = (
    "base", "base_expert", "witness", "recipe", "recipe_stage", "calibration", "calibration_prompt", "delta",
    "kept_site", "edge", "location", "event", "alias", "score_video",
)  # fmt: skip


def as_of_0004(registry: Registry, path: Path) -> Registry:
    """The same rows under the tables of revision 0004."""
    old = open_registry(path)
    upgrade.upgrade(old.database, "0004")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ATTACH ? AS new", (str(registry.path),))
        for table in TABLES:
            columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
            connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
        columns = [row[1] for row in connection.execute("PRAGMA table_info(score)")]
        listed = ", ".join(columns)
        taken = ", ".join("document" if name == "settings" else f"score.{name}" for name in columns)
        connection.execute(
            f"INSERT INTO main.score ({listed}) SELECT {taken} FROM new.score "
            "JOIN new.score_settings ON new.score_settings.key = settings_key"
        )
        connection.commit()
    return old


def contents(registry: Registry) -> list[list[Any]]:
    columns = "score.key, score.id, mean, videos, prompts_sha256, base_key, counts, prompt_set, metric, imported_at"
    queries = (
        f"SELECT {columns}, document FROM score JOIN score_settings ON score_settings.key = settings_key ORDER BY 1",
        "SELECT document FROM score_settings ORDER BY 1",
        "SELECT * FROM score_video ORDER BY 1, 2",
    )
    with closing(sqlite3.connect(registry.path)) as connection:
        return [connection.execute(query).fetchall() for query in queries]


def test_scores_keep_their_ids_and_gain_what_a_leaderboard_reads(registry: Registry, tmp_path: Path) -> None:
    make_delta(tmp_path / "a", seed="a")
    select_on(tmp_path / "a", [digest("chosen on this")])
    who = Variant("delta", registry.register(tmp_path / "a"))
    other = register_delta(registry, tmp_path / "b", base="wan21")
    base = registry.variant(who.id, of_base=True)
    for values in ([0.9, 0.8], [0.9, 0.7], [0.9, 0.6]):
        score(registry, who, values)
        score(registry, who, values, prompt_set="ours")
    score(registry, other, [0.5, 0.6], prompts=[None, digest("prompt 1")], settings={**SETTINGS, "steps": 20})
    score(registry, base, [0.95])
    score(registry, who, [], name="color")
    score(registry, Variant("delta", digest("unregistered")), [0.1])
    old = as_of_0004(registry, tmp_path / "old.sqlite")
    done = upgrade.upgrade(old.database)
    assert done.before == "0004"
    assert contents(old) == contents(registry)
    assert old.leaderboard("subject_consistency", base.id, prompt_set="").rows[1].mean == 0.75
    assert {found.code for found in old.check()} == {"unknown-variant"}
    calibrated = tuple(digest(f"prompt {number}") for number in range(3))
    assert old.scores(who)[1] == Seen(calibrated, None)
    old.register(tmp_path / "a")
    assert old.scores(who)[1] == Seen(calibrated, (digest("chosen on this"),))

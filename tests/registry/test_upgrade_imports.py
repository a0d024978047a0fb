"""Scores, costs and reviews of revision 0008 after an upgrade: sorted into imports, and what counted still counts."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from factory import digest
from scored import SETTINGS, register_delta

from hfq.registry import Registry, open_registry, upgrade
from hfq.registry.clips.clip_document import Variant
from hfq.registry.score_store import read_base_scores
from hfq.registry.score_writer import Side
from hfq.registry.scores.origin import ClipOrigin
from hfq.registry.scores.values import Measurement, MetricScores, ReviewOutcome, VideoScore


def as_of_0008(registry: Registry, path: Path) -> Registry:
    """The same rows under the tables of revision 0008, where a score is superseded by the next of its measure."""
    old = open_registry(path)
    upgrade.upgrade(old.database, "0008")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ATTACH ? AS new", (str(registry.path),))
        names = [row[0] for row in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
        for table in names:
            if table.startswith("sqlite") or table == "hfq_revision":
                continue
            columns = [row[1] for row in connection.execute(f"PRAGMA main.table_info({table})")]
            kept = ", ".join(f'"{name}"' for name in columns if name != "superseded_by")
            connection.execute(f"INSERT INTO main.{table} ({kept}) SELECT {kept} FROM new.{table}")
        connection.execute(
            "UPDATE main.score SET superseded_by = (SELECT min(later.key) FROM main.score AS later WHERE "
            "later.variant_id = score.variant_id AND later.metric_suite = score.metric_suite AND "
            "later.metric = score.metric AND later.prompt_set IS score.prompt_set AND later.key > score.key)"
        )
        connection.commit()
    return old


def side(who: Variant, values: list[float], *, names: tuple[str, ...] = ("temporal_flicker",)) -> Side:
    videos = tuple(VideoScore(f"c{n}", digest(f"prompt {n + 9}"), None, None, value) for n, value in enumerate(values))
    parts = [MetricScores(None, "hfq", name, "higher", "", None, videos) for name in names]
    return Side(who, parts, SETTINGS, digest(f"{who} {values}"), ClipOrigin(2, 2, 2, 0))


@pytest.fixture
def old(registry: Registry, tmp_path: Path) -> Registry:
    """Two deltas measured beside two runs of the base, and a third beside the first run; costs and reviews."""
    a, b, c = (register_delta(registry, tmp_path / name) for name in "abc")
    base = registry.variant(a.id, of_base=True)
    good, bad = side(base, [0.9, 0.9]), side(base, [0.3, 0.3])
    for who, reference in ((a, good), (b, bad), (c, bad)):
        registry.record_scores([side(who, [0.8, 0.8], names=("psnr", "temporal_flicker"))])
        registry.record_scores([reference])
    for value in (50.0, 40.0):
        registry.add_measurement(a, Measurement("latency", value, "H200", "real", {}))
    registry.add_reviews(a, [ReviewOutcome("c0", True), ReviewOutcome("c1", False)], digest("first"))
    registry.add_reviews(b, [ReviewOutcome("c0", True)], digest("other"))
    return as_of_0008(registry, tmp_path / "old.sqlite")


def rows(registry: Registry, query: str) -> list[Any]:
    with closing(sqlite3.connect(registry.path)) as connection:
        return connection.execute(query).fetchall()


def test_every_row_is_in_one_import_and_nothing_is_lost(old: Registry) -> None:
    queries = [
        "SELECT key, id, mean FROM score ORDER BY 1",
        "SELECT score_key, position, stem, value FROM score_video ORDER BY 1, 2",
        "SELECT score_key, clips FROM score_clips ORDER BY 1",
        "SELECT key, value, recorded_at FROM measurement ORDER BY 1",
        "SELECT key, stem, accepted, recorded_at FROM review ORDER BY 1",
    ]
    kept = [rows(old, query) for query in queries]
    counting = rows(old, "SELECT key FROM score WHERE superseded_by IS NULL ORDER BY 1")
    done = upgrade.upgrade(old.database)
    assert done.before == "0008"
    assert [rows(old, query) for query in queries] == kept
    assert rows(old, "SELECT key FROM score WHERE counts ORDER BY 1") == counting
    kinds = rows(old, "SELECT kind, count(*) FROM score_import GROUP BY kind ORDER BY 1")
    assert kinds == [("cost", 2), ("review", 2), ("scores", 3)]
    assert {finding.code for finding in old.check()} == set()


def test_a_delta_keeps_the_bases_run_that_was_measured_with_it(old: Registry) -> None:
    upgrade.upgrade(old.database)
    deltas = {delta.id: delta for delta in old.list()[0]}
    base = old.variant(next(iter(deltas)), of_base=True)
    beside = []
    with old.database.reading() as session:
        for _, delta_id in rows(old, "SELECT min(key), variant_id FROM score_import GROUP BY 2 ORDER BY 1"):
            (found,) = read_base_scores(session, delta_id, base.id)
            beside.append(found.scores.recomputed)
    assert beside == pytest.approx([0.9, 0.3, 0.3])


def test_what_was_upgraded_can_be_withdrawn(old: Registry) -> None:
    upgrade.upgrade(old.database)
    (first,) = rows(old, "SELECT id FROM score_import WHERE kind = 'scores' ORDER BY key LIMIT 1")[0]
    (who,) = rows(old, f"SELECT variant_id FROM score_import WHERE id = '{first}'")[0]
    assert old.withdraw_import(f"import:{first[:12]}", "a mistake").is_new
    assert old.scores(Variant("delta", who))[0] == ()
    assert rows(old, "SELECT count(*), count(withdrawn_at) FROM score_import") == [(7, 1)]
    assert {finding.code for finding in old.check()} == set()


def test_an_empty_registry_is_upgraded(tmp_path: Path) -> None:
    old = open_registry(tmp_path / "empty.sqlite")
    upgrade.upgrade(old.database, "0008")
    upgrade.upgrade(old.database)
    assert old.check() == ()

"""kill -9 in the middle: what was reported is there, what is there is whole, and work can go on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from factory import make_delta
from processes import Writers

from hfq.registry import Registry

KEPT = 150  # per expert: enough rows that a transaction takes a while


def test_killed_writers_leave_whole_registrations_only(registry: Registry, tmp_path: Path) -> None:
    folders = [tmp_path / f"delta-{number}" for number in range(48)]
    ids = {str(folder): make_delta(folder, seed=folder.name, kept=KEPT, quantized=1) for folder in folders}
    for after, then_s in ((1, 0.0), (4, 0.007), (9, 0.013), (16, 0.02)):
        writers = Writers(registry.path, [folders[start::6] for start in range(6)])
        writers.release()
        reported = writers.kill(after=after, then_s=then_s)
        assert_whole(registry)
        registered = {delta.id for delta in registry.list()[0]}
        assert {ids[folder] for folder in reported} <= registered
    finishing = Writers(registry.path, [folders[start::2] for start in range(2)])
    finishing.release()
    finishing.finish()
    assert {delta.id for delta in registry.list()[0]} == set(ids.values())
    assert_whole(registry)


def test_processes_killed_while_they_create_the_registry_leave_one_that_works(
    registry: Registry, tmp_path: Path
) -> None:
    make_delta(tmp_path / "delta")
    for then_s in (0.0, 0.03, 0.06, 0.1, 0.15, 0.2):
        writers = Writers(registry.path, [[tmp_path / "delta"]] * 3)
        writers.release()
        reported = writers.kill(after=0, then_s=then_s)
        assert registry.list()[1] >= bool(reported)
        registry.register(tmp_path / "delta")
        assert registry.list()[1] == 1
        assert registry.check() == ()
        for file in tmp_path.glob("registry.sqlite*"):
            file.unlink()


def assert_whole(registry: Registry) -> None:
    """Every delta has all its kept sites, its three edges, its folder and its event; SQLite finds no fault."""
    if registry.database.revision() is None:
        return
    with closing(sqlite3.connect(registry.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        partial = connection.execute(
            f"""SELECT id FROM delta
                WHERE kept != {2 * KEPT}
                   OR kept != (SELECT count(*) FROM kept_site WHERE delta_key = delta.key)
                   OR 3 != (SELECT count(*) FROM edge WHERE child_id = delta.id)
                   OR 1 != (SELECT count(*) FROM location WHERE delta_key = delta.key)
                   OR 1 != (SELECT count(*) FROM event WHERE delta_id = delta.id)"""
        ).fetchall()
        assert partial == []

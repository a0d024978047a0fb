"""A registry of an older revision: said so, copied, upgraded, and nothing of it lost."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import alembic.command
import alembic.script
import pytest
import sqlalchemy as sa
from factory import make_delta

from hfq.migrations import HEAD, REVISIONS, VERSION_TABLE
from hfq.registry import Filters, Registry, upgrade
from hfq.registry.models import Table
from hfq.schema.errors import RegistryError, RegistryVersionError

ONE, TWO, THREE = (
    "06eb9eaf86d9463b10d21f20b4cad021b191f2a7416e7f806f1f7123d3e1764f",
    "5625098a7fd8600c57b8c3ab012aa91abe5926327100e5df5bec596481be9422",
    "694471453f2c86056293bfc39042c846706f640c468fd3f6c8c35eace25fe3c9",
)


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_an_old_registry_is_neither_read_nor_written_but_explained(old_registry: Registry, tmp_path: Path) -> None:
    make_delta(tmp_path / "delta")
    before = dump(old_registry.path)
    for use in (
        old_registry.list,
        lambda: old_registry.get(ONE),
        lambda: old_registry.register(tmp_path / "delta"),
        lambda: old_registry.set_alias("prod", ONE),
        old_registry.check,
    ):
        with pytest.raises(RegistryVersionError, match="hfq db upgrade") as caught:
            use()
        assert caught.value.found == "0001"
    assert (old_registry.status().state, old_registry.status().revision) == ("older", "0001")
    assert dump(old_registry.path) == before


def test_an_upgrade_keeps_every_row_and_fills_in_what_is_new(old_registry: Registry, tmp_path: Path) -> None:
    kept = rows(old_registry.path, "SELECT * FROM kept_site ORDER BY 1, 2, 3")
    locations = rows(old_registry.path, "SELECT * FROM location ORDER BY 1")
    assert len(kept) == 10
    done = upgrade.upgrade(old_registry.database)
    assert (done.before, done.after) == ("0001", HEAD)
    assert rows(old_registry.path, "SELECT * FROM kept_site ORDER BY 1, 2, 3") == kept
    assert rows(old_registry.path, "SELECT * FROM location ORDER BY 1") == locations
    assert [(delta.id, delta.kept, delta.percentiles) for delta in old_registry.list()[0]] == [
        (THREE, 0, ()), (TWO, 4, (99.0,)), (ONE, 6, (99.9,)),
    ]  # fmt: skip
    assert [delta.id for delta in old_registry.list(Filters(percentile=99.9))[0]] == [ONE]
    event = old_registry.get(ONE).events[0]
    assert (event.kind, event.at, event.detail) == (
        "registered", "2026-03-01T08:00:00.000000Z", {"folder": "/deltas/old-1"},
    )  # fmt: skip
    assert {finding.code for finding in old_registry.check()} == {"folder-gone"}
    make_delta(tmp_path / "delta")
    old_registry.register(tmp_path / "delta", aliases=["prod"])
    assert old_registry.list()[1] == 4


def test_the_backup_is_the_old_registry_complete_and_readable(old_registry: Registry) -> None:
    before = dump(old_registry.path)
    done = upgrade.upgrade(old_registry.database)
    assert done.backup is not None
    assert done.backup.name.startswith("registry.sqlite.backup-0001-")
    assert dump(done.backup) == before
    beside = sorted(path.name for path in done.backup.parent.iterdir())
    assert beside == ["registry.sqlite", done.backup.name]


def test_a_killed_upgrade_leaves_no_half_backup(old_registry: Registry) -> None:
    """Killed while the copy is not yet on the disk for certain: no file has a backup's name."""
    before = dump(old_registry.path)
    child = os.fork()
    if child == 0:
        upgrade.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        try:
            upgrade.upgrade(old_registry.database)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    names = [path.name for path in old_registry.path.parent.iterdir() if "backup" in path.name]
    assert len(names) == 1
    assert names[0].endswith(".partial")
    assert dump(old_registry.path) == before
    done = upgrade.upgrade(old_registry.database)
    assert done.backup is not None
    assert dump(done.backup) == before


def test_a_backup_that_fails_leaves_nothing(old_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upgrade.os, "fsync", full)
    with pytest.raises(RegistryError, match="the backup cannot be written"):
        upgrade.upgrade(old_registry.database)
    assert old_registry.status().revision == "0001"
    assert [path.name for path in old_registry.path.parent.iterdir() if "backup" in path.name] == []


def test_a_registry_that_is_upgraded_while_a_writer_waits_is_not_written(registry: Registry, tmp_path: Path) -> None:
    """The revision is read again under the lock: another release may have changed the tables in between."""
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    database = registry.database
    looked = database.revision

    def then_another_release_comes() -> str | None:
        found = looked()
        with closing(sqlite3.connect(registry.path)) as connection:
            connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
            connection.commit()
        return found

    database.revision = then_another_release_comes  # type: ignore[method-assign]
    before = rows(registry.path, "SELECT count(*) FROM alias")
    with pytest.raises(RegistryVersionError, match="9999"):
        registry.set_alias("prod", registry.list()[0][0].id)
    assert rows(registry.path, "SELECT count(*) FROM alias") == before


def test_rows_still_in_the_write_ahead_log_reach_the_backup(old_registry: Registry) -> None:
    with closing(sqlite3.connect(old_registry.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("UPDATE base SET model_type = 'i2v'")
        done = upgrade.upgrade(old_registry.database)
    assert done.backup is not None
    assert rows(done.backup, "SELECT model_type FROM base") == [("i2v",)]


def test_upgrading_again_changes_and_copies_nothing(old_registry: Registry) -> None:
    upgrade.upgrade(old_registry.database)
    done = upgrade.upgrade(old_registry.database)
    assert (done.before, done.after, done.backup) == (HEAD, HEAD, None)


def test_an_upgrade_that_fails_leaves_the_old_registry(old_registry: Registry) -> None:
    before = dump(old_registry.path)
    with closing(sqlite3.connect(old_registry.path)) as connection:
        connection.execute("INSERT INTO kept_site VALUES (999, 'single', 'head.head', 'a row without its delta')")
        connection.commit()
    with pytest.raises(RegistryError, match="rows without their parents; nothing was changed"):
        upgrade.upgrade(old_registry.database)
    assert old_registry.status().revision == "0001"
    with closing(sqlite3.connect(old_registry.path)) as connection:
        connection.execute("DELETE FROM kept_site WHERE delta_key = 999")
        connection.commit()
    assert dump(old_registry.path) == before


def test_a_registry_from_the_future_is_refused(registry: Registry, tmp_path: Path) -> None:
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    with closing(sqlite3.connect(registry.path)) as connection:
        connection.execute("UPDATE hfq_revision SET version_num = '0099'")
        connection.commit()
    before = dump(registry.path)
    for use in (
        registry.list,
        lambda: registry.register(tmp_path / "delta"),
        lambda: upgrade.upgrade(registry.database),
    ):
        with pytest.raises(RegistryVersionError, match="newer hfq"):
            use()
    assert registry.status().state == "newer"
    assert dump(registry.path) == before
    assert list(tmp_path.glob("*backup*")) == []


@pytest.fixture
def connection(registry: Registry) -> Any:
    upgrade.upgrade(registry.database)
    engine = sa.create_engine(f"sqlite:///{registry.path}")
    with engine.connect() as connection:
        yield connection


def test_alembic_check_finds_the_models_and_the_migrations_equal(connection: sa.Connection) -> None:
    alembic.command.check(upgrade.alembic_config(connection))


def test_migrations_also_make_the_constraints_that_alembic_does_not_compare(connection: sa.Connection) -> None:
    fresh = sa.create_engine("sqlite://")
    Table.metadata.create_all(fresh)
    migrated, modelled = sa.inspect(connection), sa.inspect(fresh)
    for table in Table.metadata.tables:
        for what in ("check_constraints", "foreign_keys", "unique_constraints", "pk_constraint"):
            found, expected = (getattr(side, f"get_{what}")(table) for side in (migrated, modelled))
            if isinstance(found, list):
                found, expected = (sorted(side, key=lambda entry: entry["name"]) for side in (found, expected))
            assert found == expected, (table, what)
        tables = [side.get_table_options(table) for side in (migrated, modelled)]
        assert tables[0] == tables[1]


def test_a_registry_that_is_current_is_not_written(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened for writing: a read-only registry would be refused")

    monkeypatch.setattr(upgrade, "connect_for_writing", refuse)
    monkeypatch.setattr(type(registry.database), "make_file", refuse)
    done = upgrade.upgrade(registry.database)
    assert (done.before, done.after, done.backup) == (HEAD, HEAD, None)


def test_the_list_of_revisions_is_that_of_the_scripts(connection: sa.Connection) -> None:
    scripts = alembic.script.ScriptDirectory.from_config(upgrade.alembic_config(connection))
    assert tuple(reversed([script.revision for script in scripts.walk_revisions()])) == REVISIONS


@pytest.mark.parametrize("statement", ["UPDATE event SET kind = 'x'", "DELETE FROM event"])
def test_events_are_only_ever_added(registry: Registry, tmp_path: Path, statement: str) -> None:
    make_delta(tmp_path / "delta")
    registry.register(tmp_path / "delta")
    with (
        closing(sqlite3.connect(registry.path)) as connection,
        pytest.raises(sqlite3.IntegrityError, match="only ever added"),
    ):
        connection.execute(statement)

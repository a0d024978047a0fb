"""Creating a registry and bringing an older one to this release: a copy first, then one transaction."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import alembic.command
import alembic.config
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from hfq.migrations import HEAD, REVISIONS, script_location
from hfq.schema.errors import RegistryError

from .database import BUSY_TIMEOUT_S, Database, connect_for_writing, require_current, revision_of, translated_errors
from .selection_models import Table  # through the last of the models: all tables are known

__all__ = ["Upgrade", "alembic_config", "upgrade"]


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What was done. `before` is None for a new file; `backup` is None where there was nothing to lose."""

    path: Path
    before: str | None
    after: str
    backup: Path | None


def alembic_config(connection: sa.Connection) -> alembic.config.Config:
    """Alembic's settings for one open connection; no file is read."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["target_metadata"] = Table.metadata
    return config


def upgrade(database: Database, to_revision: str = HEAD) -> Upgrade:
    """Create the registry, or upgrade an older one after copying it to `<name>.backup-<revision>-<time>`.

    The lock is held from before the copy until the commit, so the copy is the state that was upgraded. An error or a
    killed process leaves the database as it was.

    Raises:
        RegistryVersionError: the registry was written by a newer release.
        NotARegistryError, RegistryReadOnlyError, RegistryBusyError, MissingPathError
    """
    path = database.path
    if database.exists() and database.revision() == to_revision:  # looked at without writing: it may be read-only
        return Upgrade(path, to_revision, to_revision, None)
    database.make_file()
    engine = sa.create_engine(
        "sqlite://", creator=lambda: connect_for_writing(path, foreign_keys=False), poolclass=NullPool
    )
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with translated_errors(path), engine.connect() as connection, connection.begin():
        before = revision_of(connection, path)
        if before == to_revision:
            return Upgrade(path, before, before, None)
        backup = None
        if before is not None:
            _require_upgradable(before, path)
            backup = _back_up(path, before)
        alembic.command.upgrade(alembic_config(connection), to_revision)
        orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if orphans:
            raise RegistryError(
                "the upgrade would leave rows without their parents; nothing was changed",
                where=path,
                found=f"{len(orphans)} rows, the first in table {orphans[0][0]}",
                todo="please report it",
            )
    return Upgrade(path, before, to_revision, backup)


def _require_upgradable(revision: str, path: Path) -> None:
    if revision not in REVISIONS:
        require_current(revision, path)


def _back_up(path: Path, revision: str) -> Path:
    """A complete copy beside the registry. It is written under another name first, so a backup is never half of one."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target = path.with_name(f"{path.name}.backup-{revision}-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.backup-{revision}-{stamp}-{number}")
    partial = target.with_name(f"{target.name}.partial")
    source = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)
    try:
        with closing(source), closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
        descriptor = os.open(partial, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.rename(target)
    except OSError as error:
        raise RegistryError(
            "the backup cannot be written; nothing was changed", where=target, found=error.strerror
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target

"""Connections to the registry's file: who may write, when the lock is taken, and what a reader does without a file.

- One connection per transaction: nothing is carried across a fork, and the file stands alone when nobody works. Who
  has much to write keeps one more open meanwhile, which is never used (`hold`).
- A writer begins with BEGIN IMMEDIATE: the lock is taken before anything is looked up, so two writers cannot both find
  a row missing. A reader begins with plain BEGIN under query_only.
- WAL, synchronous=FULL: readers never wait, and a registration that was reported survives a power cut.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, StaticPool

from hfq.migrations import HEAD, REVISIONS, VERSION_TABLE
from hfq.schema.errors import (
    MissingPathError,
    NotARegistryError,
    RegistryBusyError,
    RegistryDamagedError,
    RegistryError,
    RegistryReadOnlyError,
    RegistryVersionError,
    UnreadableFileError,
)

from .address import Address
from .selection_models import Table  # through the last of the models: all tables are known

__all__ = ["BUSY_TIMEOUT_S", "Database", "connect_for_writing", "require_current", "revision_of", "translated_errors"]

BUSY_TIMEOUT_S: Final = 30.0

_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CLOSED_TO_US: Final = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite says into one of our errors, which names the file and the next step."""
    try:
        yield
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary result code
        if code == sqlite3.SQLITE_NOTADB:
            raise NotARegistryError(
                "not an SQLite database", where=path, todo="set HFQ_REGISTRY to the registry's file"
            ) from error
        if code == sqlite3.SQLITE_CORRUPT:
            raise RegistryDamagedError(
                "the registry is damaged",
                where=path,
                found=cause,
                todo="restore a backup, or set HFQ_REGISTRY to a new file and register the deltas again",
            ) from error
        if code in _BUSY:
            raise RegistryBusyError(
                "another process is writing to the registry",
                where=path,
                found=f"still locked after {BUSY_TIMEOUT_S:.0f} s",
                todo="try again when it has finished",
            ) from error
        if code in _CLOSED_TO_US:
            raise RegistryReadOnlyError(
                "the registry cannot be opened or written",
                where=path,
                found=cause,
                todo="check the permissions of the file and of its folder",
            ) from error
        raise RegistryError("the database refused", where=path, found=cause, todo="run `hfq db check`") from error


def revision_of(connection: sa.Connection, path: Path) -> str | None:
    """The revision that a database says it has; None for an empty one.

    Raises:
        NotARegistryError: another program's database.
    """
    tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())
    if not tables:
        return None
    if VERSION_TABLE in tables:
        revision = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
        if isinstance(revision, str):
            return revision
    raise NotARegistryError(
        "an SQLite database, but not a registry of hfq",
        where=path,
        found=f"tables {', '.join(sorted(map(str, tables))[:5])}",
        todo="set HFQ_REGISTRY to another file",
    )


def require_current(revision: str | None, path: Path) -> None:
    """Refuse a database of another revision than this release.

    Raises:
        RegistryVersionError: older (and how to upgrade it), or newer (and what to install).
    """
    if revision == HEAD:
        return
    if revision in REVISIONS:
        raise RegistryVersionError(
            "the registry is of an older revision",
            where=path,
            expected=HEAD,
            found=revision,
            todo="run `hfq db upgrade`, which backs it up first",
        )
    raise RegistryVersionError(
        "the registry was written by a newer hfq",
        where=path,
        expected=f"at most {HEAD}",
        found=revision,
        todo="upgrade hfq (`pip install --upgrade hfq`)",
    )


def _uri(path: Path, query: str) -> str:
    return f"{path.absolute().as_uri()}?{query}"


def _open(path: Path, query: str) -> sqlite3.Connection:
    return sqlite3.connect(_uri(path, query), uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


def connect_for_writing(path: Path, *, foreign_keys: bool = True) -> sqlite3.Connection:
    """A connection in WAL mode to an existing file; the caller begins its own transaction.

    `foreign_keys=False` is for migrations alone: rebuilding a table with the pragma ON deletes its children's rows.
    """
    connection = _open(path, "mode=rw")
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        _use_wal(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switching needs the file for oneself and does not wait for it by itself: several processes may start at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return  # some file systems cannot share memory and answer with another mode, which is safe too
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _connect_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that cannot change a row, also where neither the file nor its folder can be written."""
    connection = _open(path, "mode=rw")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in _CLOSED_TO_US or not os.access(path, os.R_OK):
            raise
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise
        # WAL wants to create its index beside the file. Where that is impossible nobody writes, so none is needed.
        connection = _open(path, "mode=ro&immutable=1")
    connection.execute("PRAGMA query_only=ON")
    return connection


def _empty_engine() -> sa.Engine:
    """What a reader sees where there is no registry yet: all tables, no row, nothing on disk."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    Table.metadata.create_all(engine)
    return engine


class Database:
    """The registry's file, opened anew for each transaction."""

    def __init__(self, address: Address) -> None:
        self.path = address.path
        self._is_default = address.is_default
        path = address.path
        self._reader = sa.create_engine("sqlite://", creator=lambda: _connect_for_reading(path), poolclass=NullPool)
        self._writer = sa.create_engine("sqlite://", creator=lambda: connect_for_writing(path), poolclass=NullPool)
        self._anchor: sqlite3.Connection | None = None
        sa.event.listen(self._reader, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        sa.event.listen(self._writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))

    def hold(self) -> None:
        """Keep the write-ahead log between transactions: the last connection to close would move it into the file.

        That takes several waits for the disk, a commit takes one. Nothing is held where there is no registry yet.
        """
        if self._anchor is None and self.revision() is not None:
            with translated_errors(self.path):
                anchor = sqlite3.connect(
                    _uri(self.path, "mode=rw"), uri=True, isolation_level=None, check_same_thread=False
                )
                anchor.execute("SELECT count(*) FROM sqlite_master").fetchone()  # joins those who use the log
                self._anchor = anchor

    def release(self) -> None:
        """The end of `hold`: the file stands alone again when nobody else works."""
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None

    def exists(self) -> bool:
        """Whether there is a file.

        Raises:
            NotARegistryError: something that is not a file is in its place.
        """
        try:
            mode = self.path.stat().st_mode
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UnreadableFileError("cannot be looked at", where=self.path, found=error.strerror) from error
        if not stat.S_ISREG(mode):
            raise NotARegistryError("not a file", where=self.path, todo="set HFQ_REGISTRY to a file")
        return True

    def revision(self) -> str | None:
        """The revision on disk; None where there is no file or an empty one.

        Raises:
            NotARegistryError, RegistryReadOnlyError
        """
        if not self.exists():
            return None
        with translated_errors(self.path), self._reader.connect() as connection:
            return revision_of(connection, self.path)

    def make_file(self) -> None:
        """Create an empty file where there is none. The folder is made only for the default place.

        Raises:
            MissingPathError: the folder of a chosen place does not exist.
            RegistryReadOnlyError
        """
        try:
            if self._is_default:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except FileNotFoundError:
            raise MissingPathError(
                "the folder for the registry does not exist",
                where=self.path.parent,
                todo="create it, or set HFQ_REGISTRY to another file",
            ) from None
        except OSError as error:
            raise RegistryReadOnlyError(
                "the registry cannot be created", where=self.path, found=error.strerror, todo="set HFQ_REGISTRY"
            ) from error

    def check_writable(self) -> None:
        """Take the write lock and give it back: what would stop a later `writing` stops now. Makes no registry.

        Raises:
            RegistryVersionError, NotARegistryError, RegistryReadOnlyError, RegistryBusyError
        """
        if (revision := self.revision()) is None:
            return
        require_current(revision, self.path)
        with translated_errors(self.path), self._writer.connect() as connection, connection.begin() as transaction:
            # Another process may have upgraded the file in between. A page is written as well, and taken back: the
            # lock alone is given for a file whose folder cannot be written.
            require_current(revision_of(connection, self.path), self.path)
            connection.exec_driver_sql("CREATE TABLE hfq_probe (probe INTEGER)")
            transaction.rollback()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session over one consistent state of the registry; an empty one where there is no registry yet.

        Raises:
            RegistryVersionError, NotARegistryError, RegistryReadOnlyError, RegistryBusyError
        """
        engine = self._reader
        if (revision := self.revision()) is None:
            engine = _empty_engine()
        else:
            require_current(revision, self.path)
        with translated_errors(self.path), Session(engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that holds the write lock from its first statement; it commits when the block ends without error.

        Raises:
            RegistryVersionError, NotARegistryError, RegistryReadOnlyError, RegistryBusyError, MissingPathError
        """
        if (revision := self.revision()) is None:
            from .upgrade import upgrade  # loads Alembic

            upgrade(self)
        else:
            require_current(revision, self.path)
        with translated_errors(self.path), Session(self._writer) as session, session.begin():
            # Again under the lock: another process may have upgraded the file in between.
            require_current(revision_of(session.connection(), self.path), self.path)
            yield session

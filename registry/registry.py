"""The registry as a user holds it: `open_registry()` and the methods of `Registry`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from hfq.migrations import HEAD, REVISIONS
from hfq.schema.documents import read_document
from hfq.schema.errors import FolderGoneError, MissingPathError

from .address import find_address
from .aliases import AliasChange, check_alias, list_aliases, remove_alias, set_alias
from .check import Finding, check_database
from .database import Database
from .events import events_of
from .folder import DOCUMENT, claims_id, read_delta_folder
from .lineage import Lineage, read_lineage
from .lookup import Filters, find_deltas, resolve
from .models import Alias, Base, Calibration, Delta, Event, Recipe
from .records import DeltaRecord, DeltaSummary, delta_record
from .store import Registration, store_delta
from .text import display_id

__all__ = ["Registry", "Status", "open_registry"]


@dataclass(frozen=True, slots=True)
class Status:
    """What `hfq db status` says. `state` is absent, empty, older, current or newer; `counts` only when current."""

    path: Path
    state: str
    revision: str | None
    head: str
    size_bytes: int
    counts: dict[str, int]


def open_registry(url: str | os.PathLike[str] | None = None) -> Registry:
    """The registry at `url` (a path or `sqlite:///...`), else HFQ_REGISTRY, else the user's data folder.

    Nothing is created or read yet: a registry that does not exist is empty until something is registered.

    Raises:
        UsageError: a URL that cannot be read, or one of another database than SQLite.
    """
    return Registry(Database(find_address(url)))


class Registry:
    """Deltas and where they come from. Safe to share between threads and across forks: no connection is kept open.

    Every method may raise NotARegistryError, RegistryDamagedError, RegistryVersionError, RegistryBusyError or
    RegistryReadOnlyError.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @property
    def path(self) -> Path:
        """The database file, which need not exist yet."""
        return self.database.path

    def register(self, delta_folder: str | os.PathLike[str], *, aliases: Iterable[str] = ()) -> str:
        """Verify a delta's folder, remember it, and return the delta's id (64 hex digits). Twice is the same row.

        Raises:
            MissingPathError, SchemaViolationError, WrongIdError, TruncatedFileError, TrailingBytesError,
            DigestMismatchError: the folder is not the delta that its documents describe.
            UsageError: a name that cannot be an alias.
        """
        return self.admit(delta_folder, aliases=aliases).id

    def admit(self, delta_folder: str | os.PathLike[str], *, aliases: Iterable[str] = ()) -> Registration:
        """`register`, and say what was new about it."""
        names = tuple(check_alias(name) for name in aliases)
        facts = read_delta_folder(delta_folder)
        with self.database.writing() as session:
            return store_delta(session, facts, names)

    def resolve(self, text: str) -> str:
        """The full id behind an id, `delta:` and a prefix, a bare prefix of at least 4 digits, or an alias.

        Raises:
            UnknownIdError, AmbiguousIdError
        """
        with self.database.reading() as session:
            return resolve(session, text)

    def get(self, text: str) -> DeltaRecord:
        """Everything that is known about a delta.

        Raises:
            UnknownIdError, AmbiguousIdError
        """
        with self.database.reading() as session:
            return _read(session, text)

    def lineage(self, text: str) -> Lineage:
        """Where a delta comes from, and its siblings.

        Raises:
            UnknownIdError, AmbiguousIdError
        """
        with self.database.reading() as session:
            return read_lineage(session, _read(session, text))

    def list(self, filters: Filters | None = None, *, limit: int | None = None) -> tuple[tuple[DeltaSummary, ...], int]:
        """The newest deltas that pass the filters, newest first, and how many pass in all.

        Raises:
            UsageError: a base that is not hex digits.
        """
        with self.database.reading() as session:
            return find_deltas(session, filters or Filters(), limit)

    def folder(self, text: str) -> Path:
        """A folder of this machine that holds the delta: the one registered last that still claims its id.

        Raises:
            UnknownIdError, AmbiguousIdError
            FolderGoneError: none of them does.
        """
        record = self.get(text)
        for place in record.locations:
            if claims_id(Path(place.folder), record.id):
                return Path(place.folder)
        raise FolderGoneError(
            f"{display_id(record.id)} no longer lies where it was registered",
            where=record.locations[0].folder if record.locations else None,
            todo="bring the folder back, or `hfq register FOLDER` where a copy lies now",
        )

    def locate(self, argument: str | os.PathLike[str]) -> Path:
        """The folder that a DELTA argument means: an existing folder as it is, else an id or an alias.

        Raises:
            MissingPathError: it is written like a path and there is nothing.
            UnknownIdError, AmbiguousIdError, FolderGoneError
        """
        path = Path(argument).expanduser()
        if path.is_dir():
            return path
        text = os.fspath(argument)
        if path.exists() or os.sep in text or text.startswith((".", "~")):
            raise MissingPathError("no such folder", where=text, expected="a delta's folder, its id or an alias")
        return self.folder(text)

    def identify(self, argument: str | os.PathLike[str]) -> str:
        """The id of a registered delta from a DELTA argument: a folder, an id or an alias.

        Raises:
            UnknownIdError, AmbiguousIdError, and what `hfq.schema.documents.read_document` raises for a folder.
        """
        path = Path(argument).expanduser()
        text = os.fspath(argument)
        return self.resolve(read_document(path / DOCUMENT, "ptq-state")["id"] if path.is_dir() else text)

    def set_alias(self, name: str, argument: str | os.PathLike[str]) -> AliasChange:
        """Let `name` mean a delta (a folder, an id or an alias), also when it meant another before.

        Raises:
            UsageError: a name that reads like an id or a path.
            UnknownIdError, AmbiguousIdError
        """
        check_alias(name)
        delta_id = self.identify(argument)  # before writing: no registry is created to say that it knows nothing
        with self.database.writing() as session:
            return set_alias(session, name, session.scalars(sa.select(Delta).where(Delta.id == delta_id)).one())

    def remove_alias(self, name: str) -> str:
        """Forget an alias and return the id that it named.

        Raises:
            UnknownIdError
        """
        if self.database.revision() is None:
            self.resolve(name)  # unknown, by definition
        with self.database.writing() as session:
            return remove_alias(session, name).id

    def aliases(self) -> dict[str, str]:
        """Every alias and the id it names."""
        with self.database.reading() as session:
            return list_aliases(session)

    def status(self) -> Status:
        """What is on disk, without changing it; also for a database of another revision.

        Raises:
            NotARegistryError
        """
        path, revision = self.path, self.database.revision()
        if revision is None:
            return Status(path, "empty" if path.exists() else "absent", None, HEAD, _size_bytes(path), {})
        if revision != HEAD:
            state = "older" if revision in REVISIONS else "newer"
            return Status(path, state, revision, HEAD, _size_bytes(path), {})
        tables = {
            "deltas": Delta,
            "bases": Base,
            "recipes": Recipe,
            "calibrations": Calibration,
            "aliases": Alias,
            "events": Event,
        }
        with self.database.reading() as session:
            counts = {
                name: session.scalar(sa.select(sa.func.count()).select_from(table)) or 0
                for name, table in tables.items()
            }
        return Status(path, "current", revision, HEAD, _size_bytes(path), counts)

    def check(self) -> tuple[Finding, ...]:
        """Everything that is not as it was written; empty when all is well. Reads every registered folder."""
        return tuple(check_database(self.database))


def _read(session: Session, text: str) -> DeltaRecord:
    delta_id = resolve(session, text)
    row = session.scalars(sa.select(Delta).where(Delta.id == delta_id)).one()
    return delta_record(row, events_of(session, delta_id))


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

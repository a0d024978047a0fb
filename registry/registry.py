"""The registry as a user holds it: `open_registry()` and the methods of `Registry`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session, joinedload

from hfq.schema.errors import FolderGoneError, UnknownIdError, UsageError

from .address import find_address
from .aliases import NO_ALIAS, AliasChange, check_alias, expect_alias, list_aliases, remove_alias, set_alias
from .arguments import existing_folder, given, id_in_folder
from .check import Finding, check_database
from .clips.clip_document import Variant
from .clips.registry import ClipRegistry
from .database import Database
from .evaluation import Evaluation, read_evaluation
from .events import events_of, record_event
from .folder import DeltaFacts, claims_id, read_delta_folder
from .hub_store import DeltaPlace, OnHub, store_copy, store_on_hub
from .judging import (
    Compared,
    Demand,
    Gated,
    Routed,
    compare_variants,
    find_base,
    gate_delta,
    route_base,
)
from .leaderboard import LEADERS, Leaderboard, read_leaderboard
from .lineage import Lineage, read_lineage
from .lookup import Filters, find_deltas, resolve
from .models import Delta
from .prompts import Seen, seen_prompts
from .records import DeltaRecord, DeltaSummary, delta_record
from .score_imports import Withdrawal, find_import, record_of_variant, withdraw_import
from .score_sources import ScoreFiles
from .score_store import StoredScore, read_scores, store_measurement, store_reviews
from .score_writer import Imported, Side, store_scores
from .scores.policy import Policy
from .scores.values import Measurement, ReviewOutcome, SettingValue
from .status import NO_REGISTRY, Status, read_status
from .store import Registration, store_delta
from .text import display_id

__all__ = ["Registry", "Status", "open_registry"]


def open_registry(url: str | os.PathLike[str] | None = None) -> Registry:
    """The registry at `url` (a path or `sqlite:///...`), else HFQ_REGISTRY, else the user's data folder.

    Nothing is created or read yet: a registry that does not exist is empty until something is registered.

    Raises:
        UsageError: a URL that cannot be read, or one of another database than SQLite.
    """
    return Registry(Database(find_address(url)))


class Registry(ClipRegistry):
    """Deltas and where they come from. Safe to share between threads and across forks: no connection is kept open.

    Every method may raise NotARegistryError, RegistryDamagedError, RegistryVersionError, RegistryBusyError or
    RegistryReadOnlyError.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def __enter__(self) -> Registry:
        """For many writes in a row, each of which then waits once for the disk; not to be carried across a fork."""
        self.database.hold()
        return self

    def __exit__(self, *_: object) -> None:
        self.database.release()

    @property
    def path(self) -> Path:
        """The database file, which need not exist yet."""
        return self.database.path

    @property
    def is_there(self) -> bool:
        """Whether anything was ever registered: a file with tables, of whatever revision."""
        return self.database.revision() is not None

    def register(self, delta_folder: str | os.PathLike[str], *, aliases: Iterable[str] = ()) -> str:
        """Verify a delta's folder, remember it, and return the delta's id (64 hex digits). Twice is the same row.

        Raises:
            MissingPathError, SchemaViolationError, WrongIdError, TruncatedFileError, TrailingBytesError,
            DigestMismatchError: the folder is not the delta that its documents describe.
            UsageError: a name that cannot be an alias.
        """
        return self.admit(delta_folder, aliases=aliases).id

    def admit(
        self,
        delta_folder: str | os.PathLike[str],
        *,
        aliases: Iterable[str] = (),
        ask_hub: Callable[[DeltaFacts], OnHub] | None = None,
    ) -> Registration:
        """`register`, and say what was new; `ask_hub` says what the Hub confirms, before anything is written."""
        names = tuple(check_alias(name) for name in aliases)
        facts = read_delta_folder(given(delta_folder))
        on_hub = ask_hub(facts) if ask_hub is not None else OnHub()
        with self.database.writing() as session:
            registration = store_delta(session, facts, names)
            store_on_hub(session, facts.id, on_hub)
            return registration

    def resolve(self, text: str) -> str:
        """The full id behind an id, `delta:` and a prefix, a bare prefix of at least 4 digits, or an alias.

        Raises:
            UnknownIdError, AmbiguousIdError
        """
        with self._asked() as session:
            return resolve(session, text)

    def get(self, text: str) -> DeltaRecord:
        """Everything that is known about a delta.

        Raises:
            UnknownIdError, AmbiguousIdError
        """
        with self._asked() as session:
            return _read(session, text)

    def lineage(self, text: str) -> Lineage:
        """Where a delta comes from, and its siblings.

        Raises:
            UnknownIdError, AmbiguousIdError
        """
        with self._asked() as session:
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
            UsageError: an empty argument.
            MissingPathError: it is written like a path and there is nothing.
            UnknownIdError, AmbiguousIdError, FolderGoneError
        """
        return existing_folder(argument) or self.folder(os.fspath(argument))

    def identify(self, argument: str | os.PathLike[str]) -> str:
        """The id of a registered delta from a DELTA argument: a folder, an id or an alias.

        Raises:
            UnknownIdError, AmbiguousIdError, and what `id_in_folder` raises.
        """
        return self.resolve(id_in_folder(argument))

    def set_alias(
        self, name: str, argument: str | os.PathLike[str], *, expect: str | os.PathLike[str] | None = None
    ) -> AliasChange:
        """Let `name` mean a delta (a folder, an id or an alias), also when it meant another before.

        Args:
            expect: what it must mean until now, `NO_ALIAS` for nothing; None asks for nothing. The check and the move
                are one transaction: of two people who both saw the old meaning, one moves it.

        Raises:
            UsageError: a name that reads like an id, a path or `NO_ALIAS`.
            AliasMovedError: it means something else than `expect`.
            UnknownIdError, AmbiguousIdError
        """
        check_alias(name)
        delta_id = self.identify(argument)  # before writing: no registry is created to say that it knows nothing
        expected = None if expect is None or expect == NO_ALIAS else self.identify(expect)
        with self.database.writing() as session:
            if expect is not None:
                expect_alias(session, name, expected)
            return set_alias(session, name, session.scalars(sa.select(Delta).where(Delta.id == delta_id)).one())

    def remove_alias(self, name: str, *, expect: str | os.PathLike[str] | None = None) -> str:
        """Forget an alias and return the id that it named.

        Args:
            expect: what it must mean until now, as for `set_alias`.

        Raises:
            UnknownIdError, AmbiguousIdError, AliasMovedError
        """
        if self.database.revision() is None:
            self.resolve(name)  # unknown, by definition
        expected = None if expect is None else self.identify(expect)
        with self.database.writing() as session:
            if expected is not None:
                expect_alias(session, name, expected)
            return remove_alias(session, name).id

    def aliases(self) -> dict[str, str]:
        """Every alias and the id it names."""
        with self.database.reading() as session:
            return list_aliases(session)

    def add_event(self, kind: str, text: str, place: DeltaPlace | None = None, **detail: str) -> None:
        """Add a line to the history of a registered delta, such as `pushed`, and the `place` where it lies since then.

        Raises:
            UnknownIdError, AmbiguousIdError
        """
        delta_id = self.resolve(text)
        with self.database.writing() as session:
            record_event(session, kind, delta_id, **detail)
            if place is not None:
                store_copy(session, delta_id, place, kind)

    def variant(self, argument: str | os.PathLike[str] | None, *, of_base: bool = False) -> Variant:
        """The delta that a DELTA argument means, or with `of_base` its base; `base:` and digits name a base directly.

        Without an argument it is the only registered base.

        Raises:
            UnknownIdError, AmbiguousIdError
        """
        text = None if argument is None else os.fspath(argument)
        if text is not None and not text.lower().startswith("base:"):
            try:
                delta_id = self.identify(text)
            except UnknownIdError:
                with self.database.reading() as session:
                    try:
                        return Variant("base", find_base(session, text))
                    except UnknownIdError:
                        pass
                raise
            return Variant("base", self.get(delta_id).base.id) if of_base else Variant("delta", delta_id)
        with self.database.reading() as session:
            return Variant("base", find_base(session, text))

    def import_scores(self, variant: Variant, found: ScoreFiles, settings: Mapping[str, SettingValue]) -> int:
        """Remember the metrics of one import, and return how many of them did not count before."""
        return self.record_scores([Side(variant, found.scores, settings, found.sha256, found.origin)]).new[0]

    def record_scores(self, sides: Sequence[Side]) -> Imported:
        """Remember scores that belong together as one import: a variant's, and those of its base measured beside them.

        Raises:
            UsageError: see `store_scores`.
        """
        with self.database.writing() as session:
            return store_scores(session, sides)

    def withdraw_import(self, argument: str | os.PathLike[str], reason: str, *, of_base: bool = False) -> Withdrawal:
        """Take back an import of scores, costs or reviews: what it replaced counts again, and it stays visible.

        Args:
            argument: `import:` and digits; or a variant, which means what was recorded last of it and still stands.
            of_base: the base of the variant.

        Raises:
            UnknownIdError, AmbiguousIdError
            UnknownScoresError: nothing stands of the variant.
            UsageError: no reason.
        """
        text = os.fspath(argument)
        if not self.is_there:
            self.resolve(text)  # unknown, by definition
        variant = None if text.lower().startswith("import:") else self._variant_or_import(text, of_base)
        with self.database.writing() as session:
            row = find_import(session, text) if variant is None else record_of_variant(session, variant)
            return withdraw_import(session, row, reason)

    def _variant_or_import(self, text: str, of_base: bool) -> Variant | None:
        try:
            return self.variant(text, of_base=of_base)
        except UnknownIdError:
            with self.database.reading() as session:
                try:
                    find_import(session, text)
                except UnknownIdError:
                    pass
                else:
                    return None
            raise

    def add_measurement(self, variant: Variant, measurement: Measurement) -> bool:
        """Remember what running a variant took; False where it repeats the last one."""
        with self.database.writing() as session:
            return store_measurement(session, variant, measurement)

    def add_reviews(self, variant: Variant, outcomes: Sequence[ReviewOutcome], source_sha256: str) -> bool:
        """Remember the outcomes of one file; False where all of them count already."""
        with self.database.writing() as session:
            return store_reviews(session, variant, outcomes, source_sha256)

    def scores(self, variant: Variant) -> tuple[tuple[StoredScore, ...], Seen | None]:
        """The scores that count of a variant, and the prompts that it was made with; None for a base: with none."""
        with self.database.reading() as session:
            return read_scores(session, variant.id), seen_prompts(session, variant)

    def evaluation(self, variant: Variant) -> Evaluation:
        """Everything that was measured of a variant: scores, those of its base, costs, reviews.

        Raises:
            UnknownIdError: the delta is not registered.
        """
        with self.database.reading() as session:
            return read_evaluation(session, variant)

    def leaderboard(
        self,
        metric: str,
        base: str | None = None,
        *,
        suite: str | None = None,
        prompt_set: str | None = None,
        limit: int = LEADERS,
    ) -> Leaderboard:
        """The best deltas by a metric's mean, of a base by first digits (of its id or a bf16 root), else the only one.

        Raises:
            UnknownIdError, AmbiguousIdError, and what `read_leaderboard` raises.
        """
        with self.database.reading() as session:
            found = find_base(session, base)
            return read_leaderboard(session, found, metric, suite=suite, prompt_set=prompt_set, limit=limit)

    def compare(self, first: Variant, second: Variant) -> Compared:
        """Two variants video by video.

        Raises:
            NotComparableError
        """
        with self.database.reading() as session:
            return compare_variants(session, first, second)

    def gate(self, policy: Policy, workload: str, variant: Variant, *, content_class: str | None = None) -> Gated:
        """Whether a delta passes a workload against its base.

        Raises:
            UnknownWorkloadError
            UsageError: a base, which is what deltas are held against.
        """
        policy.workload(workload)
        if variant.kind == "base":
            raise UsageError("a gate holds a delta against its base", expected="a delta", found=variant)
        with self.database.reading() as session:
            return gate_delta(session, policy, workload, variant.id, content_class=content_class)

    def route(self, policy: Policy, workload: str, base: Variant, demand: Demand | None = None) -> Routed:
        """The cheapest delta on a base that passes a workload, or the base; see `route_base` for what it raises."""
        with self.database.reading() as session:
            return route_base(session, policy, workload, base.id, demand or Demand())

    def status(self) -> Status:
        """What is on disk, without changing it; also for a database of another revision.

        Raises:
            NotARegistryError
        """
        return read_status(self.database)

    def check(self) -> tuple[Finding, ...]:
        """Everything that is not as it was written; empty when all is well. Reads every registered folder."""
        return tuple(check_database(self.database))

    @contextmanager
    def _asked(self) -> Iterator[Session]:
        """A session to look a delta up in; whoever finds none is told where none could be."""
        try:
            with self.database.reading() as session:
                yield session
        except UnknownIdError as error:
            if self.database.revision() is not None:
                raise
            raise UnknownIdError(error.what, where=self.path, found=error.found, todo=NO_REGISTRY) from None


def _read(session: Session, text: str) -> DeltaRecord:
    delta_id = resolve(session, text)
    parents = (joinedload(Delta.base), joinedload(Delta.recipe), joinedload(Delta.calibration))
    row = session.scalars(sa.select(Delta).where(Delta.id == delta_id).options(*parents)).one()
    return delta_record(session, row, events_of(session, delta_id))

"""`OUT.partial`: unfinished work that a kill at any instant leaves so that the same command can go on.

The folder holds `started.json` (what decides the result), `journal.jsonl` (a line per finished piece, each with its
digest; its lock keeps a second process away and ends with the first, however that ends), a folder of finished pieces,
and `result/`, where the output is put together. A finished result is *renamed* to OUT and only then the rest is
removed, so that in every instant the pieces, the result or both are there. What this package does not write into such
a folder is neither taken over nor removed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hfq.schema.atomic import fsync_folder, partial_of, publish_folder, refuse_existing, write_file
from hfq.schema.canonical import canonical_json, sha256_hex
from hfq.schema.documents import parse_json, read_bytes
from hfq.schema.errors import DigestMismatchError, HfqError, MalformedFileError, OutputExistsError, ResumeMismatchError
from hfq.schema.folder_lock import HOLDER, FolderLock

__all__ = ["JOURNAL", "Difference", "WorkFolder", "WorkKind", "check_output", "clear_finished", "first_difference"]

JOURNAL: Final = "journal.jsonl"
_STARTED: Final = "started.json"
_RESULT: Final = "result"
_TEMPORARY: Final = re.compile(r"\.(.+)\.\d+\.tmp")


@dataclass(frozen=True)
class WorkKind:
    """A kind of work, and what it writes.

    Attributes:
        name: a noun, for messages.
        items: name of the folder of finished pieces; empty where there are none.
        item: matches every path below `items` that belongs there, folders too.
        results: names of the files of a finished output.
        optional: names of the files that only some outputs have.
    """

    name: str
    items: str
    item: re.Pattern[str]
    results: frozenset[str]
    optional: frozenset[str] = frozenset()

    def owns(self, path: Path) -> bool:
        """Whether such work writes this path, relative to its folder, or had begun to when it was killed."""
        temporary = _TEMPORARY.fullmatch(path.name)
        parts = (*path.parts[:-1], temporary[1] if temporary else path.name)
        if parts in {(_STARTED,), (JOURNAL,), (JOURNAL + HOLDER,), (_RESULT,)}:
            return True
        below = parts[1:] if parts[0] == _RESULT else parts
        if len(below) == 1 and below[0] in self.results | self.optional:
            return True
        return below[0] == self.items and (len(below) == 1 or self.item.fullmatch("/".join(below[1:])) is not None)

    def refuse_foreign(self, partial: Path) -> None:
        """Check that everything in a folder is this work's, and change nothing.

        Raises:
            OutputExistsError
        """
        strange = None
        if partial.is_symlink() or not partial.is_dir():
            strange = "a link or a file"
        else:
            for path in _below(partial):
                if path.is_symlink() or not self.owns(path.relative_to(partial)):
                    strange = path.relative_to(partial).as_posix()
        if strange is not None:
            raise OutputExistsError(
                f"not an unfinished {self.name}, or not that alone",
                where=partial,
                found=strange,
                todo="move that away, or choose another name",
            )

    def remove(self, partial: Path, folder: Path) -> None:
        """Remove `folder`, which is `partial` or below it, except the lock and what is not this work's."""
        for path in [*_below(folder), folder]:
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):  # something of somebody else is in it
                    path.rmdir()
            elif self.owns(path.relative_to(partial)) and path not in (partial / JOURNAL, partial / (JOURNAL + HOLDER)):
                path.unlink(missing_ok=True)

    def remove_all(self, partial: Path, lock: FolderLock) -> None:
        """Remove all of this work, and nothing else."""
        # Without this record a rest is no work: the next run begins anew whatever else is still here.
        (partial / _STARTED).unlink(missing_ok=True)
        fsync_folder(partial)
        self.remove(partial, partial)
        lock.remove()
        with contextlib.suppress(OSError):  # something of somebody else is in it
            partial.rmdir()


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder, contents before containers; links are not followed."""
    for place, folders, files in os.walk(folder, topdown=False):
        for name in sorted(files) + sorted(folders):
            yield Path(place) / name


def check_output(out: Path, kind: WorkKind, *, resume: bool) -> None:
    """Check, before any work, that it may begin, or go on, or that a finished output may be looked at.

    Raises:
        OutputExistsError: `out` is there (with `resume` that is no error yet, see `clear_finished`), or its partial
            folder is and `resume` is false, another process is at work in it, or it holds something else.
        UsageError: the folder that would hold it is not there.
    """
    if resume and all((out / name).is_file() for name in kind.results):
        return
    refuse_existing(out, resume=True)
    partial = partial_of(out)
    if not os.path.lexists(partial):
        return
    kind.refuse_foreign(partial)
    if (partial / JOURNAL).exists():
        FolderLock(partial / JOURNAL, kind.name).release()
    if not resume:
        refuse_existing(out, resume=False)


class WorkFolder:
    """The partial folder of one output, open and locked.

    Attributes:
        partial: `OUT.partial`.
        items: the folder of finished pieces.
        result: an empty folder for the finished output.
        is_new: whether nothing had been started here.
        entries: what the journal says, in the order of its lines.
    """

    def __init__(self, out: Path, kind: WorkKind, inputs: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folder, or go on in it.

        Args:
            inputs: what decides the result. The first that differs is named, in this order.

        Raises:
            what `check_output` raises, and OutputExistsError for an `out` in any case
            ResumeMismatchError: the work was started with other inputs.
            MalformedFileError, DigestMismatchError: a journal that was not written by this package, or was changed.
        """
        self.partial = partial_of(out)
        self.items, self.result = self.partial / kind.items, self.partial / _RESULT
        self.entries: list[dict[str, Any]] = []
        self._out, self._kind = out, kind
        refuse_existing(out, resume=True)
        check_output(out, kind, resume=resume)
        try:
            self.partial.mkdir(exist_ok=resume)
        except FileExistsError:  # another process has made it since
            check_output(out, kind, resume=False)
            raise
        self._lock = FolderLock(self.partial / JOURNAL, kind.name)
        try:
            self._begin(inputs)
        except BaseException:
            self.close()
            raise

    def _begin(self, inputs: Mapping[str, Any]) -> None:
        try:
            refuse_existing(self._out, resume=True)
        except HfqError:
            if not (self.partial / _STARTED).exists():  # the other process has finished since, and this one made these
                self.discard()
            raise
        self._kind.refuse_foreign(self.partial)
        started = self.partial / _STARTED
        self.is_new = not started.exists()
        if self.is_new:
            self._lock.file.truncate(0)
        else:
            refuse_difference(parse_json(read_bytes(started), str(started)), inputs, self.partial, self._kind.name)
            self._read_lines()
        self._size_bytes = os.fstat(self._lock.file.fileno()).st_size
        self._clear_result()
        self.items.mkdir(exist_ok=True)
        if self.is_new:
            write_file(started, canonical_json(_plain(inputs)))

    def _clear_result(self) -> None:
        """What a killed run had put together is put together again; pieces among it go back to the others."""
        if self._kind.items and (self.result / self._kind.items).is_dir():
            os.rename(self.result / self._kind.items, self.items)
        if self.result.is_dir():
            self._kind.remove(self.partial, self.result)
        for path in self.partial.iterdir():
            # Outputs of an earlier release stood beside the journal.
            if path.name in self._kind.results | self._kind.optional or _TEMPORARY.fullmatch(path.name):
                path.unlink()
        for path in self.items.glob(".*.tmp") if self._kind.items else ():
            path.unlink()
        self.result.mkdir()

    def _read_lines(self) -> None:
        path = self.partial / JOURNAL
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        for line in data[:end].splitlines():
            written = parse_json(line, str(path))
            if not isinstance(written, dict) or set(written) != {"entry", "sha256"}:
                raise MalformedFileError("not a journal entry", where=path, todo="remove the folder and start again")
            if sha256_hex(canonical_json(written["entry"])) != written["sha256"]:
                raise DigestMismatchError(
                    f"a line of the unfinished {self._kind.name} was changed",
                    where=path,
                    todo="remove the folder and start again",
                )
            self.entries.append(written["entry"])
        if end < len(data):
            # The run was killed while it wrote this line; its piece is done again.
            self._lock.file.truncate(end)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a line into the journal; when this returns, a crash cannot lose it."""
        digest = sha256_hex(canonical_json(dict(entry)))
        data = canonical_json({"entry": dict(entry), "sha256": digest}) + b"\n"
        file = self._lock.file
        # A full disk may have taken half of a line from another thread: nothing is written behind that.
        file.truncate(self._size_bytes)
        written = 0
        while written < len(data):
            written += file.write(data[written:])
        os.fsync(file.fileno())
        self._size_bytes += written
        self.entries.append(dict(entry))

    def keep_items(self) -> None:
        """Make the finished pieces a part of the result."""
        os.rename(self.items, self.result / self._kind.items)

    def publish(self) -> None:
        """Give the finished result its name, then remove the rest.

        Raises:
            OutputExistsError: something of that name has appeared; the work stays.
        """
        publish_folder(self.result, self._out)
        fsync_folder(self.partial)
        self.discard()

    def remove(self, folder: Path) -> None:
        """Remove a folder below this one, except what is not of this work."""
        self._kind.remove(self.partial, folder)

    def discard(self) -> None:
        """Remove all of this work, and nothing else."""
        self._kind.remove_all(self.partial, self._lock)

    def close(self) -> None:
        """Stop; the folder stays."""
        self._lock.release()


def clear_finished(out: Path, kind: WorkKind, inputs: Mapping[str, Any]) -> None:
    """Remove what a kill left beside an output that had its name already. Other work, and what is not of such work,
    stays.

    Raises:
        OutputExistsError: another process is at work there.
    """
    partial = partial_of(out)
    if not os.path.lexists(partial):
        return
    try:
        kind.refuse_foreign(partial)
    except OutputExistsError:
        return
    lock = FolderLock(partial / JOURNAL, kind.name)
    try:
        started = partial / _STARTED
        if not started.exists() or first_difference(parse_json(read_bytes(started), str(started)), inputs) is None:
            kind.remove_all(partial, lock)
    finally:
        lock.release()


@dataclass(frozen=True)
class Difference:
    """A field, and what it was and is, as text."""

    field: str
    before: str
    now: str


def first_difference(before: Any, now: Any, field: str = "") -> Difference | None:
    """The first field in which two documents differ, in the order of `now`; None when they are equal."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        dot = "." if field else ""
        pairs = [(f"{field}{dot}{name}", before.get(name), now.get(name)) for name in {**now, **before}]
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        pairs = [(f"{field}[{index}]", *pair) for index, pair in enumerate(zip(before, now, strict=True))]
    else:
        return None if before == now else Difference(field, _shown(before), _shown(now))
    found = (first_difference(left, right, name) for name, left, right in pairs)
    return next((difference for difference in found if difference is not None), None)


def refuse_difference(before: Any, now: Mapping[str, Any], partial: Path, what: str) -> None:
    """Check that unfinished work was started with the same inputs.

    Raises:
        ResumeMismatchError: naming the first field that differs.
    """
    found = first_difference(before, now)
    if found is not None:
        raise ResumeMismatchError(
            f"the unfinished {what} was started with other inputs",
            where=f"{partial}: {found.field}",
            expected=found.before,
            found=found.now,
            todo="use the same inputs, or remove the folder and start again",
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(member) for name, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    text = str(value)
    return text[:80] if len(text) <= 80 or not isinstance(value, dict | list | tuple) else f"{len(value)} entries"

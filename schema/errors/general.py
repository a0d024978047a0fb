"""Failures of any room: files, arguments, contradictions."""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AmbiguousIdError",
    "ContradictedClaimError",
    "DigestMismatchError",
    "DuplicateKeyError",
    "HfqError",
    "InterruptedRunError",
    "MalformedFileError",
    "MissingDependencyError",
    "MissingPathError",
    "OutOfMemoryError",
    "OutputExistsError",
    "ResumeMismatchError",
    "SchemaViolationError",
    "TooLargeError",
    "TrailingBytesError",
    "TruncatedFileError",
    "UnknownIdError",
    "UnknownSchemaVersionError",
    "UnreadableFileError",
    "UsageError",
    "is_out_of_memory",
]


def _one_line(text: object, limit: int = 400) -> str:
    """Text from a file may hold control characters or megabytes; a message holds neither."""
    line = "".join(ch if ch.isprintable() else "�" for ch in str(text).replace("\n", " "))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


class HfqError(Exception):
    """Base of all errors that reach a user.

    Args:
        what: one clause, no final stop.
        where: file, tensor or field.
        expected: what would have been right.
        found: what was there.
        todo: the next command or action.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        todo: str | None = None,
    ) -> None:
        self.what = _one_line(what)
        self.where = None if where is None else _one_line(where)
        self.expected = None if expected is None else _one_line(expected)
        self.found = None if found is None else _one_line(found)
        self.todo = None if todo is None else _one_line(todo)
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.found is not None:
            text += f"; found {self.found}" if self.expected is None else f", found {self.found}"
        if self.todo:
            text += f"; {self.todo}"
        return text

    def to_json(self) -> dict[str, Any]:
        """The error as the `error` member of a `--json` document."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "message": str(self),
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "todo": self.todo,
        }


class UnreadableFileError(HfqError):
    """A file exists and cannot be read (permission, not a regular file, I/O error)."""

    code = "unreadable"


class MalformedFileError(HfqError):
    """A file is not what its name or place says."""

    code = "malformed"


class TruncatedFileError(MalformedFileError):
    """A file ends before its own header says it does."""

    code = "truncated"


class TrailingBytesError(MalformedFileError):
    """A file goes on after its own header says it ends."""

    code = "trailing-bytes"


class DuplicateKeyError(MalformedFileError):
    """A name occurs twice: in a JSON object, in a safetensors header or across shards."""

    code = "duplicate-key"


class SchemaViolationError(MalformedFileError):
    """A document does not follow its JSON Schema: unknown, missing or ill-typed field."""

    code = "schema-violation"


class TooLargeError(MalformedFileError):
    """A document or header is larger than any honest one."""

    code = "too-large"


class UnknownSchemaVersionError(MalformedFileError):
    """A document of a major version that this release cannot read."""

    code = "unknown-schema-version"


class UsageError(HfqError):
    """Arguments that contradict each other or mean nothing."""

    code = "usage"
    exit_code = 2


class MissingPathError(HfqError):
    """A path that does not exist."""

    code = "missing-path"
    exit_code = 2


class OutputExistsError(HfqError):
    """The output is already there; nothing is overwritten."""

    code = "output-exists"
    exit_code = 2


class OutOfMemoryError(HfqError):
    """The system or a limit gives this process no more memory."""

    code = "out-of-memory"


class MissingDependencyError(HfqError):
    """An optional package is needed and not installed."""

    code = "missing-dependency"
    exit_code = 2


class ResumeMismatchError(HfqError):
    """The unfinished output was started with other inputs."""

    code = "resume-mismatch"
    exit_code = 2


class DigestMismatchError(HfqError):
    """Bytes whose digest is not the recorded one."""

    code = "digest-mismatch"
    exit_code = 3


class ContradictedClaimError(HfqError):
    """Somebody says that a variant made a clip, and the registry knows that another did."""

    code = "contradicted-claim"
    exit_code = 3


class UnknownIdError(HfqError):
    """An id, prefix or alias that the registry does not know."""

    code = "unknown-id"
    exit_code = 5


class AmbiguousIdError(HfqError):
    """A prefix that fits more than one entry."""

    code = "ambiguous-id"
    exit_code = 5


class InterruptedRunError(HfqError):
    """The user stopped the command."""

    code = "interrupted"
    exit_code = 130


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception of any library says that there is no more memory: torch has a class for devices alone; on a
    CPU, and for threads, only the words say it."""
    words = ("can't allocate memory", "out of memory", "can't start new thread")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))

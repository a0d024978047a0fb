"""Reading and writing the JSON documents. A document from outside is hostile until its schema has been checked."""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import jsonschema
import jsonschema.validators

from .canonical import CanonicalizationError, content_id
from .errors import (
    DuplicateKeyError,
    MalformedFileError,
    MissingPathError,
    SchemaViolationError,
    TooLargeError,
    TrailingBytesError,
    TruncatedFileError,
    UnknownSchemaVersionError,
    UnreadableFileError,
    WrongIdError,
)

__all__ = ["KINDS", "MAX_DOCUMENT_BYTES", "parse_document", "read_bytes", "read_document", "schema_of", "validate"]

MAX_DOCUMENT_BYTES: Final = 32 * 1024 * 1024
"""A two-expert 14B delta is under 2 MB; a calibration of 1,000 prompts under 1 MB."""

KINDS: Final = {
    "ptq-state": 1, "recipe": 1, "calibration": 1, "provenance": 1, "report": 1, "analysis": 1, "onnx-report": 1,
    "clip": 1, "policy": 1, "calls": 1,
}  # fmt: skip
"""Documents and the major version that this release reads and writes."""

_MAX_PARTS: Final = 2_000_000
"""Marks that begin a value or follow one; a Python object takes a hundred bytes where `[],` takes three."""

_MAX_DEPTH: Final = 32
"""The deepest document of this package has nine levels; what nests without end breaks whoever compares or prints it."""

_SCHEMA_NAME: Final = re.compile(r"hfq\.([a-z-]+)/([0-9]{1,9})")


@functools.cache
def schema_of(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind, from the package."""
    source = importlib.resources.files(__package__) / f"{kind}-{KINDS[kind]}.json"
    schema: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    return schema


@functools.cache
def _validator(kind: str) -> Any:
    schema = schema_of(kind)
    validator_class = jsonschema.validators.validator_for(schema)
    validator_class.check_schema(schema)
    return jsonschema.validators.extend(validator_class, {"pattern": _pattern})(schema)


def _pattern(_: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    # A schema's `$` is the end of the text; that of Python's `re` also matches before a last line feed.
    if isinstance(instance, str) and (instance.endswith("\n") or not re.search(pattern, instance)):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def read_bytes(path: Path, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        MissingPathError: no such file, or a link to nothing.
        UnreadableFileError: a folder, FIFO, socket or device, no permission, an I/O error.
        TooLargeError
    """
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingPathError("no such file", where=path) from None
    except OSError as error:
        raise UnreadableFileError("cannot be opened", where=path, found=error.strerror) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnreadableFileError("not a regular file", where=path)
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > limit:
            raise TooLargeError("too large", where=path, expected=f"at most {limit} bytes", found=status.st_size)
        try:
            return file.read(limit)
        except OSError as error:
            raise UnreadableFileError("cannot be read", where=path, found=error.strerror) from error


def _no_duplicates(where: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise DuplicateKeyError("a name occurs twice", where=where, found=repr(key))
            result[key] = value
        return result

    return build


def parse_json(data: bytes, where: str, constant: Callable[[str], Any] | None = None) -> Any:
    """JSON with unique names, finite numbers, whole Unicode characters and bounded depth.

    Args:
        constant: makes a value of `NaN`, `Infinity` and `-Infinity`, which Python's writers put into files; without it
            they are refused.

    Raises:
        MalformedFileError, DuplicateKeyError, TruncatedFileError, TrailingBytesError, TooLargeError
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MAX_PARTS:
        raise TooLargeError("a document of too many parts", where=where, expected=f"at most {_MAX_PARTS}")

    def refuse_constant(name: str) -> NoReturn:
        raise MalformedFileError("a number that JSON does not have", where=where, found=name)

    def finite(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise MalformedFileError("a number beyond binary64", where=where, found=digits)
        return value

    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_no_duplicates(where),
            parse_constant=constant or refuse_constant,
            parse_float=finite,
        )
    except UnicodeDecodeError as error:
        raise MalformedFileError("not UTF-8", where=where, found=f"byte {error.start}") from None
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            raise TruncatedFileError("the JSON text ends too early", where=where) from None
        if error.msg == "Extra data":
            raise TrailingBytesError(
                "the JSON text goes on after its end", where=where, found=f"more at character {error.pos}"
            ) from None
        raise MalformedFileError("not JSON", where=where, found=f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise MalformedFileError("nested too deeply", where=where) from None
    except ValueError as error:
        raise MalformedFileError("not JSON", where=where, found=error) from None
    _check_depth(value, where)
    if _HALF_CHARACTER.search(text):
        _check_characters(value, where)
    return value


_HALF_CHARACTER: Final = re.compile(r"\\u[dD][89a-fA-F]")


def _check_depth(value: Any, where: str) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise MalformedFileError("nested too deeply", where=where, expected=f"at most {_MAX_DEPTH} levels")


def _check_characters(value: Any, where: str) -> None:
    """Refuse halves of surrogate pairs: no UTF-8, hence no hash, no database row and no terminal line holds them."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise MalformedFileError("half a character (a lone surrogate)", where=where) from None


def validate(document: Any, kind: str, where: str) -> dict[str, Any]:
    """Check a parsed document against the schema of its kind and return it.

    Raises:
        UnknownSchemaVersionError: another major version, or another kind of document.
        SchemaViolationError: an unknown, missing or ill-typed field; the message names it.
    """
    expected = f"hfq.{kind}/{KINDS[kind]}"
    if not isinstance(document, dict):
        raise SchemaViolationError("not a JSON object", where=where, expected=expected)
    name = document.get("schema")
    found = _SCHEMA_NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise SchemaViolationError("no schema name", where=where, expected=expected, found=name)
    if found[1] != kind:
        raise SchemaViolationError("another kind of document", where=where, expected=expected, found=name)
    if int(found[2]) != KINDS[kind]:
        raise UnknownSchemaVersionError(
            "a document of a version that this release cannot read",
            where=where,
            expected=expected,
            found=name,
            todo=f"install hfq {found[2]}.x, the release line for version {found[2]} documents",
        )
    error = min(_validator(kind).iter_errors(document), key=_depth, default=None)
    if error is not None:
        error = _explain(error)
        field = "/".join(str(part) for part in error.absolute_path) or "(top level)"
        raise SchemaViolationError(error.message, where=f"{where}: {field}")
    return document


def _depth(error: Any) -> int:
    return len(error.path)


def _explain(error: Any) -> Any:
    """The error inside the alternative that was meant: that with the right tag (`format`, `kind`, `op`) and type."""
    while error.validator == "oneOf" and error.context:
        branches: dict[int, list[Any]] = {}
        for child in error.context:
            branches.setdefault(child.schema_path[0], []).append(child)
        meant = [children for children in branches.values() if not any(map(_is_other_kind, children))]
        tags = [child for child in error.context if child.validator == "const" and len(child.relative_path) == 1]
        if len(meant) != 1:
            if not meant and tags:
                tags[0].message = f"{tags[0].instance!r} is not one of {[tag.validator_value for tag in tags]}"
                return tags[0]
            return error
        error = min(meant[0], key=_depth)
    return error


def _is_other_kind(error: Any) -> bool:
    depth = len(error.relative_path)
    return (error.validator == "const" and depth == 1) or (error.validator == "type" and depth == 0)


def parse_document(data: bytes, kind: str, where: str) -> dict[str, Any]:
    """Parse and validate; a document that carries its content id must hash to it.

    Raises:
        MalformedFileError and its subclasses, WrongIdError
    """
    document = validate(parse_json(data, where), kind, where)
    try:
        found = content_id(document)
    except CanonicalizationError as error:
        raise MalformedFileError("a value that has no canonical form", where=where, found=error) from None
    if "id" in document and document["id"] != found:
        raise WrongIdError(
            "the document was changed after it was made",
            where=where,
            expected=f"id {document['id'][:12]}…",
            found=f"content {found[:12]}…",
            todo="fetch it again from where it came",
        )
    return document


def read_document(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Read, parse and validate a document of `kind` ("ptq-state", "recipe", "calibration", "provenance", "report",
    "analysis", "onnx-report", "clip", "calls").

    Raises:
        MissingPathError, UnreadableFileError, TooLargeError, and what `parse_document` raises
    """
    location = Path(path)
    return parse_document(read_bytes(location), kind, str(location))

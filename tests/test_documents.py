"""The documents' reader: schemas that are schemas, canonical ids, and text that is not what it says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hfq.schema.canonical import CanonicalizationError, canonical_json, content_id, sha256_hex
from hfq.schema.documents import KINDS, parse_document, parse_json, read_bytes, read_document, schema_of, validate
from hfq.schema.errors import (
    DuplicateKeyError,
    HfqError,
    MalformedFileError,
    MissingPathError,
    SchemaViolationError,
    TooLargeError,
    TrailingBytesError,
    TruncatedFileError,
    UnknownSchemaVersionError,
    UnreadableFileError,
)


def parts(schema: Any) -> list[dict[str, Any]]:
    """Every schema inside a schema."""
    if isinstance(schema, list):
        return [part for item in schema for part in parts(item)]
    if not isinstance(schema, dict):
        return []
    return [schema, *(part for value in schema.values() for part in parts(value))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_schema_is_one_and_closed(kind: str) -> None:
    schema = schema_of(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"hfq.{kind}/{KINDS[kind]}"
    for part in parts(schema):
        if part.get("type") == "object":
            assert "additionalProperties" in part, part
        if isinstance(part.get("pattern"), str):
            assert part["pattern"].startswith("^"), part
            assert part["pattern"].endswith("$"), part


def test_the_recipe_inside_a_delta_is_the_recipe() -> None:
    recipe, inside = schema_of("recipe"), schema_of("ptq-state")["$defs"]["recipe"]
    assert inside["properties"] == recipe["properties"]
    assert inside["required"] == recipe["required"]


def test_canonical_json_is_rfc_8785() -> None:
    value = {"\u20ac": "Euro", "\r": 1, "a": [1e21, 1e-7, 0.1, 100.0, -0.0, 333333333.33333329], "A": '\x1f"\\é'}
    expected = '{"\\r":1,"A":"\\u001f\\"\\\\é","a":[1e+21,1e-7,0.1,100,0,333333333.3333333],"€":"Euro"}'
    assert canonical_json(value).decode() == expected
    for bad in (float("nan"), float("inf"), 2**53 + 2, {1: 2}, "\ud800", object()):
        with pytest.raises((CanonicalizationError, ValueError)):
            canonical_json(bad)


def test_an_id_leaves_itself_out() -> None:
    document = {"b": 1, "a": 2}
    assert content_id(document) == content_id({**document, "id": "x"}) == sha256_hex(b'{"a":2,"b":1}')


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", TruncatedFileError),
        (b"  ", TruncatedFileError),
        (b"{", TruncatedFileError),
        (b'{"a"', TruncatedFileError),
        (b'{"a": "x', TruncatedFileError),
        (b"[1, 2,", TruncatedFileError),
        (b"{} {}", TrailingBytesError),
        (b"{}\0", TrailingBytesError),
        (b"{'a': 1}", MalformedFileError),
        (b'{"a": 1,}', MalformedFileError),
        (b"\xef\xbb\xbf{}", MalformedFileError),
        (b"\xff", MalformedFileError),
        (b'{"a": NaN}', MalformedFileError),
        (b'{"a": -Infinity}', MalformedFileError),
        (b'{"a": 1e400}', MalformedFileError),
        (b'{"a": ' + b"1" * 5000 + b"}", MalformedFileError),
        (b'{"a": "\\ud800"}', MalformedFileError),
        (b'{"\\udfff": 1}', MalformedFileError),
        (b'{"a": 1, "b": 2, "a": 1}', DuplicateKeyError),
        (b'{"x": {"a": 1, "\\u0061": 1}}', DuplicateKeyError),
        (b"[" * 40 + b"]" * 40, MalformedFileError),
        (b"[" * 200_000, MalformedFileError),
        (b"[" + b"0," * 2_000_001 + b"0]", TooLargeError),
    ],
)
def test_text_that_is_refused(text: bytes, error: type[HfqError]) -> None:
    with pytest.raises(error) as caught:
        parse_json(text, "there")
    assert type(caught.value) is error
    assert caught.value.exit_code == 1
    assert "there" in str(caught.value)


def test_text_that_is_fine() -> None:
    assert parse_json(b' {"a": [1, 2.5, "\\ud83d\\ude00 \\\\ud800", null, true]}\n', "x") == {
        "a": [1, 2.5, "\U0001f600 \\ud800", None, True]
    }
    assert parse_json(b"[" * 30 + b"]" * 30, "x")


def test_every_cut_of_a_document_is_refused(small_delta: Path) -> None:
    text = (small_delta / "provenance.json").read_bytes().rstrip()
    for end in range(len(text)):
        with pytest.raises(MalformedFileError):
            parse_document(text[:end], "provenance", "x")


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        ([], SchemaViolationError, "not a JSON object"),
        ({}, SchemaViolationError, "no schema name"),
        ({"schema": 1}, SchemaViolationError, "no schema name"),
        ({"schema": "hfq.report/1\n"}, SchemaViolationError, "schema"),
        ({"schema": "hfq.recipe/1"}, SchemaViolationError, "another kind"),
        ({"schema": "hfq.report/2"}, UnknownSchemaVersionError, "install hfq 2.x"),
        ({"schema": "hfq.report/999999999"}, UnknownSchemaVersionError, "install"),
        ({"schema": "hfq.report/9999999999"}, SchemaViolationError, "no schema name"),
        ({"schema": "hfq.report/1"}, SchemaViolationError, "required"),
    ],
)
def test_documents_that_are_refused(document: Any, error: type[HfqError], words: str) -> None:
    with pytest.raises(error, match=words):
        validate(document, "report", "x")


def test_a_violation_names_the_field_and_stays_short(small_delta: Path) -> None:
    document = json.loads((small_delta / "ptq_state.json").read_bytes())
    document["sites"]["high_noise"]["blocks.0.ffn.0"]["weight"]["profile"] = "x" * 100_000
    with pytest.raises(SchemaViolationError, match=r"sites/high_noise/blocks.0.ffn.0/weight/profile") as caught:
        validate(document, "ptq-state", "x")
    assert len(str(caught.value)) < 1500


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "large").write_bytes(b"x" * 11)
    cases: list[tuple[Path, type[HfqError]]] = [
        (tmp_path, UnreadableFileError),
        (tmp_path / "fifo", UnreadableFileError),
        (tmp_path / "link", MissingPathError),
        (tmp_path / "gone", MissingPathError),
        (tmp_path / "large" / "below", MissingPathError),
        (tmp_path / "large", TooLargeError),
    ]
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for path, error in cases:
        with pytest.raises(error):
            read_bytes(path, 10)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(UnreadableFileError):
        read_document(tmp_path, "report")

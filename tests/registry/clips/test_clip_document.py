"""What a clip says of its origin: the same bytes for the same words, and nothing that is not under the schema."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from made_clips import BASE, DELTA_A, A, document

from hfq.registry.clips.clip_document import MAX_DOCUMENT_BYTES, Variant, parse_clip_document, prompt_sha256
from hfq.schema.errors import (
    ClipDocumentError,
    DuplicateKeyError,
    HfqError,
    SchemaViolationError,
    TooLargeError,
    UnknownSchemaVersionError,
    UsageError,
)


@pytest.mark.parametrize(
    "made",
    [
        document(),
        document(None),
        document(prompt="a red circle"),
        document(category="people"),
        document(prompt_sha256=None, seed=None, settings={}, expert_steps=None),
        document(prompt="ein Köter 🐕", prompt_sha256=prompt_sha256("ein Köter 🐕"), seed=2**53 - 1),
    ],
)
def test_a_document_comes_back(made: Any) -> None:
    data = made.to_bytes()
    assert parse_clip_document(data, "here") == made
    assert data == parse_clip_document(data, "here").to_bytes()
    assert ("prompt" in json.loads(data)) == (made.prompt is not None)
    assert json.loads(data).get("category") == made.category


def test_a_document_of_a_release_without_categories_is_still_one() -> None:
    text = json.loads(document().to_bytes())
    assert "category" not in text
    assert parse_clip_document(json.dumps(text).encode(), "here").category is None


@pytest.mark.parametrize("category", ["", "x" * 81, 3, None])
def test_a_category_is_a_short_text(category: Any) -> None:
    text = json.loads(document().to_bytes()) | {"category": category}
    with pytest.raises(SchemaViolationError, match="category"):
        parse_clip_document(json.dumps(text).encode(), "here")
    text["category"] = "x" * 80
    assert parse_clip_document(json.dumps(text).encode(), "here").category == "x" * 80


def test_who_made_it() -> None:
    assert document().variant == A == Variant("delta", DELTA_A)
    lines = f"high_noise\t{BASE['high_noise']}\nlow_noise\t{BASE['low_noise']}"
    assert document(None).variant == Variant("base", hashlib.sha256(lines.encode()).hexdigest())
    assert str(A) == "delta:aaaaaaaaaaaa"


def test_a_scene_is_prompt_and_seed() -> None:
    assert document().scene == document(None, settings={}).scene
    assert document().scene != document(seed=8).scene
    assert document().scene != document(prompt_sha256=prompt_sha256("a blue circle")).scene
    assert document(seed=None).scene is None
    assert document(prompt_sha256=None).scene is None


def test_the_prompt_is_hashed_as_it_is() -> None:
    assert prompt_sha256("é ") == hashlib.sha256(b"\xc3\xa9 ").hexdigest()
    with pytest.raises(UsageError):
        prompt_sha256("\ud800")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"delta": "a" * 63}, UsageError),
        ({"base": {}}, UsageError),
        ({"base": {"middle": "1" * 64}}, UsageError),
        ({"seed": -1}, UsageError),
        ({"seed": 2**53}, UsageError),
        ({"settings": {"size": [1, 2]}}, UsageError),
        ({"settings": {"a b": 1}}, UsageError),
        ({"settings": {"x": float("nan")}}, UsageError),
        ({"expert_steps": {"high_noise": -1}}, UsageError),
        ({"prompt": "another"}, ClipDocumentError),
        ({"settings": {f"s{i}": "x" * 1000 for i in range(40)}}, TooLargeError),
    ],
)
def test_what_cannot_be_said(changes: dict[str, Any], error: type[HfqError]) -> None:
    delta = changes.pop("delta", DELTA_A)
    with pytest.raises(error) as caught:
        document(delta, **changes).to_bytes()
    assert caught.type is error


def edited(**changes: Any) -> bytes:
    return json.dumps(document().to_json() | changes).encode()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (edited(schema="hfq.clip/2"), UnknownSchemaVersionError),
        (edited(schema="hfq.report/1"), SchemaViolationError),
        (edited(delta="A" * 64), SchemaViolationError),
        (edited(delta="a" * 64 + "\n"), SchemaViolationError),
        (edited(extra=1), SchemaViolationError),
        (edited(prompt=None), SchemaViolationError),
        (edited(prompt="forged"), ClipDocumentError),
        (edited(prompt="x", prompt_sha256=None), ClipDocumentError),
        (edited(seed=True), SchemaViolationError),
        (b'{"schema":"hfq.clip/1","schema":"hfq.clip/1"}', DuplicateKeyError),
        (b" " * (MAX_DOCUMENT_BYTES + 1), TooLargeError),
    ],
)
def test_forged_documents(data: bytes, error: type[HfqError]) -> None:
    with pytest.raises(error) as caught:
        parse_clip_document(data, "here")
    assert caught.type is error
    assert len(str(caught.value)) < 2000

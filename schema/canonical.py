"""Canonical bytes and content ids: the same document gives the same hash on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import rfc8785

CanonicalizationError = rfc8785.CanonicalizationError

__all__ = ["CanonicalizationError", "canonical_json", "content_id", "sha256_hex"]


def canonical_json(value: Any) -> bytes:
    """UTF-8 bytes of `value` in the JSON Canonicalization Scheme (RFC 8785).

    Raises:
        CanonicalizationError: for NaN, infinity, integers beyond 2**53 and types that JSON does not have.
    """
    return bytes(rfc8785.dumps(value))


def sha256_hex(data: bytes) -> str:
    """Hex SHA-256, 64 digits, lower case."""
    return hashlib.sha256(data).hexdigest()


def content_id(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a document without its `id` member."""
    return sha256_hex(canonical_json({key: value for key, value in document.items() if key != "id"}))

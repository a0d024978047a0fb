"""`hfq.clip/1`: what a clip says of its origin. The comment tag and the signed manifest carry the same document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hfq.registry.folder import base_id
from hfq.registry.text import DISPLAY_DIGITS
from hfq.schema.canonical import CanonicalizationError, canonical_json, sha256_hex
from hfq.schema.documents import parse_document
from hfq.schema.errors import ClipDocumentError, SchemaViolationError, TooLargeError, UsageError
from hfq.schema.version import VERSION

__all__ = [
    "MAX_CATEGORY",
    "MAX_DOCUMENT_BYTES",
    "ClipDocument",
    "Setting",
    "Variant",
    "parse_clip_document",
    "prompt_sha256",
]

MAX_DOCUMENT_BYTES: Final = 32_000
"""A comment of a QuickTime file has a 16-bit length; a document without prompt is under 2 kB."""

MAX_CATEGORY: Final = 80
"""Characters; as in the schema, and as outcomes of reviewers are held to."""

Setting = str | int | float | bool | None


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """What can have made a clip: a delta, or a base without one.

    Attributes:
        kind: "delta" or "base".
        id: 64 hex digits: the delta's content id, or `hfq.registry.folder.base_id` of the base's bf16 roots.
    """

    kind: str
    id: str

    @classmethod
    def of(cls, delta: str | None, base: Mapping[str, str]) -> Variant:
        """The delta when there is one, else the base of these bf16 roots (role -> 64 hex digits)."""
        return cls("base", base_id(base)) if delta is None else cls("delta", delta)

    def __str__(self) -> str:
        return f"{self.kind}:{self.id[:DISPLAY_DIGITS]}"


def prompt_sha256(prompt: str) -> str:
    """Hex SHA-256 of the prompt's UTF-8 bytes, exactly as given to the pipeline.

    Raises:
        UsageError: a prompt with half a surrogate pair, which has no UTF-8 form.
    """
    try:
        return sha256_hex(prompt.encode())
    except UnicodeEncodeError:
        raise UsageError("the prompt is not Unicode text", found="a lone surrogate") from None


@dataclass(frozen=True, slots=True)
class ClipDocument:
    """Which model made a clip, and how it was asked.

    Attributes:
        delta: content id of the delta, 64 hex digits; None for the base alone.
        base: role -> bf16 root of each expert.
        prompt_sha256: see the function of that name; None when the prompt is not known.
        prompt: the text itself, only when its author asked for that.
        seed: of the initial noise.
        settings: size, steps, guidance and the like; simple values.
        expert_steps: role -> sampling steps that this expert ran; None when not known.
        hfq: the release that wrote the document.
        category: of the prompt, as its author sorts content; at most MAX_CATEGORY characters.
    """

    delta: str | None
    base: Mapping[str, str]
    prompt_sha256: str | None = None
    prompt: str | None = None
    seed: int | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    expert_steps: Mapping[str, int] | None = None
    hfq: str = VERSION
    category: str | None = None

    @property
    def variant(self) -> Variant:
        """What the document names as the maker."""
        return Variant.of(self.delta, self.base)

    @property
    def scene(self) -> str | None:
        """Prompt and seed in one word: clips with the same one show the same scene. None when either is not known."""
        if self.prompt_sha256 is None or self.seed is None:
            return None
        return f"{self.prompt_sha256}:{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """The document under its schema; `prompt` and `category` are absent, not null, when there is none."""
        document: dict[str, Any] = {
            "schema": "hfq.clip/1",
            "delta": self.delta,
            "base": dict(self.base),
            "prompt_sha256": self.prompt_sha256,
            "seed": self.seed,
            "settings": dict(self.settings),
            "expert_steps": None if self.expert_steps is None else dict(self.expert_steps),
            "hfq": self.hfq,
        }
        if self.prompt is not None:
            document["prompt"] = self.prompt
        if self.category is not None:
            document["category"] = self.category
        return document

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785), which `parse_clip_document` takes back.

        Raises:
            UsageError: values that JSON or the schema does not have.
            TooLargeError: over MAX_DOCUMENT_BYTES.
            ClipDocumentError: a prompt with another hash.
        """
        try:
            data = canonical_json(self.to_json())
        except (CanonicalizationError, ValueError) as error:
            raise UsageError("a value that JSON does not have", where="what the clip should say", found=error) from None
        try:
            parse_clip_document(data, "what the clip should say")
        except SchemaViolationError as error:
            raise UsageError(error.what, where=error.where) from None
        return data


def parse_clip_document(data: bytes, where: str) -> ClipDocument:
    """Read a document from anywhere.

    Raises:
        TooLargeError: over MAX_DOCUMENT_BYTES.
        ClipDocumentError: a prompt that does not hash to `prompt_sha256`.
        and what `hfq.schema.documents.parse_document` raises.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise TooLargeError("too large", where=where, expected=f"at most {MAX_DOCUMENT_BYTES} bytes", found=len(data))
    return _checked(parse_document(data, "clip", where), where)


def _checked(document: Mapping[str, Any], where: str) -> ClipDocument:
    # JSON Schema counts 3.0 as an integer.
    prompt, digest, steps = document.get("prompt"), document["prompt_sha256"], document["expert_steps"]
    if prompt is not None and digest != sha256_hex(prompt.encode()):
        raise ClipDocumentError(
            "the prompt is not the one of its hash", where=where, expected=f"sha256 {digest}", found="other text"
        )
    return ClipDocument(
        delta=document["delta"],
        base=document["base"],
        prompt_sha256=digest,
        prompt=prompt,
        seed=None if document["seed"] is None else int(document["seed"]),
        settings=document["settings"],
        expert_steps=None if steps is None else {role: int(count) for role, count in steps.items()},
        hfq=document["hfq"],
        category=document.get("category"),
    )
